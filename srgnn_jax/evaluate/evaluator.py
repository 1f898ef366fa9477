"""Evaluation: the target of every example is ranked among all items.

Axes: E examples, C clicks, N parts of a batch, R rows of a part, K items of a list.
"""

import collections
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples, check_rows
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import metrics
from srgnn_jax.evaluate.step import list_step, rank_step
from srgnn_jax.model.layers import Params
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite
from srgnn_jax.runs.progress import Progress, check_same_model

# Sessions that are ranked at a time: at least, if there are so many, and at most.
MIN_ROWS, MAX_ROWS = 64, 512


def rows_at_a_time(max_scores: int, num_items: int) -> int:
    """Returns how many sessions are ranked at a time.

    Few go over the whole table faster than many over blocks of it, unless they become
    too few to be worth the reading of the table.
    """
    return min(max(MIN_ROWS, max_scores // num_items), MAX_ROWS)


class Evaluator:
    """Evaluates parameters on one split, as often as asked, with one compiled step.

    The devices return ranks; metrics are taken from them here, in float64 and in the
    order of the examples. Neither `batch_size` nor the number of devices that share a
    batch changes what an example is computed with (see `batches.eval_batches`), so that
    they change no digit.

    `after_batch` is called after each batch, and may end the evaluation by raising.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        ks: Sequence[int],
        batch_size: int,
        devices: layouts.Devices,
        progress: bool = False,
        after_batch: Callable[[], None] | None = None,
    ):
        check_rows(examples.items, model.num_items)
        self._model = model
        self._examples = examples
        self._ks = tuple(ks)
        self._batch_size = batch_size
        self._devices = devices
        self._progress = progress
        self._after_batch = after_batch or (lambda: None)
        self.max_rows = rows_at_a_time(devices.max_scores, model.num_items)
        self._with_clicks = devices.hold_clicks(examples.items)
        self._rank_step = self._compile(rank_step)

    def _compile(self, step: Callable, **arguments: Any) -> Callable:
        return self._devices.compile(
            functools.partial(
                step,
                model=self._model,
                **self._devices.step_options,
                **arguments,
            )
        )

    def __call__(self, params: Params) -> dict[str, float]:
        """Returns the mean of every metric, and `examples_per_second`."""
        return self.with_ranks(params)[0]

    def with_ranks(
        self, params: Params
    ) -> tuple[dict[str, float], Int[np.ndarray, " E"]]:
        """Returns what a call does, and the rank of each example's target, 1 = best."""
        rank, seconds = self._run(self._rank_step, params)
        means = metrics.means(rank, self._ks)
        return {**means, "examples_per_second": len(rank) / seconds}, rank

    def lists(self, params: Params, k: int) -> Int[np.ndarray, "E K"]:
        """Returns the rows of the k items with the highest scores for each example."""
        return self._run(self._compile(list_step, k=k), params)[0]

    def _run(self, step: Callable, params: Params) -> tuple[np.ndarray, float]:
        """Gathers what a step returns for the rows of a batch, by example.

        Returns:
          That, and the seconds since the first batch was on its way: a first call
          compiles before.
        """
        start = math.inf
        found: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        pending: collections.deque[jax.Array] = collections.deque()
        bar = tqdm(
            total=len(self._examples),
            desc="evaluate",
            unit=" examples",
            disable=None if self._progress else True,
            leave=False,
        )
        with bar:
            for batch in batches.eval_batches(
                self._examples,
                self._batch_size,
                self._devices.shards,
                self._devices.max_positions,
                self.max_rows,
            ):
                pending.append(step(params, *self._with_clicks(batch)))
                start = min(start, time.perf_counter())
                numbers.append(np.where(batch.length > 0, batch.example, -1))
                if len(pending) == 8:
                    # Fetched late, so that the device always has work in hand.
                    found.append(np.asarray(pending.popleft()))
                bar.update(batch.examples)
                self._after_batch()
            found += map(np.asarray, pending)
        seconds = time.perf_counter() - start
        values = np.concatenate(found)
        number = np.concatenate(numbers)
        by_example = np.empty((len(self._examples), *values.shape[2:]), values.dtype)
        by_example[number[number >= 0]] = values[number >= 0]
        return by_example, seconds


def restore_best(
    checkpoints: Checkpoints,
    progress: Progress,
    model: nn.Module,
    devices: layouts.Devices,
) -> tuple[Params, int]:
    """Reads the parameters of the best epoch, or of the last step while there is none.

    Returns:
      The parameters, laid out for the devices, and their step.

    Raises:
      UserError: they are another model's, or not finite.
    """
    check_same_model(progress.model, config_lib.model_name(model))
    shapes = {"params": jax.eval_shape(lambda: init_params(model, 0))}
    step = progress.best_step or progress.step
    params = checkpoints.restore(devices.layout(shapes), step)["params"]
    try:
        check_finite(params)
    except ValueError as error:
        raise UserError(
            f"the checkpoint of step {step} is of no use: {error}"
        ) from None
    return params, step
