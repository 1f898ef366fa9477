"""Evaluation: ranks the target of every example among all items.

Axes: E examples, C clicks, N parts of a batch, R rows of a part, K items of a list, K1
K + 1, X values of an example.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from srgnn_jax.data import batches
from srgnn_jax.data.batches import Batch
from srgnn_jax.data.sessions import Examples, check_rows
from srgnn_jax.devices import layouts, processes, suits
from srgnn_jax.devices.tiers import encode
from srgnn_jax.evaluate import metrics
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import MAX_SCORES
from srgnn_jax.model.layers import Params

# The sessions ranked at a time are a multiple of this, if there are that many: per
# column, a product with 64 columns takes 0.7 of the time of one with 97, on CPU.
MIN_ROWS = 64
# Batches queued on a device while the results of earlier ones are fetched.
IN_HAND = 8


def rank_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    k: int = 0,
    max_scores: int = MAX_SCORES,
    axis_name: str | None = None,
    item_axis: str | None = None,
) -> Int[Array, "N R K1"]:
    """Ranks the targets of a batch, on all devices, and lists the k best items.

    See `train_step` for the arguments.

    Returns:
      The rank of each target, 1 = best, followed by the rows of the k best items.
    """

    def ranked(part):
        session, table = encode(
            model, params, part.tiers, max_scores=max_scores, axis_name=item_axis
        )
        rank, best = table.rank_and_top_k(session, part.target, k)
        return jnp.append(rank[:, None], best, axis=1)

    found = batches.map_parts(ranked, clicks, batch)
    # The parts of all devices, in device order.
    return jax.lax.all_gather(found, axis_name, tiled=True) if axis_name else found


def rows_at_a_time(devices: layouts.Devices, num_items: int) -> int:
    """Returns how many sessions are ranked at a time.

    Ranking few of them over the whole table is faster than many over blocks of it, as
    long as they are enough to be worth reading the table.
    """
    rows = suits.scores_to_rank(devices.max_scores) // num_items
    return min(max(rows - rows % MIN_ROWS, MIN_ROWS), devices.max_rows)


@dataclasses.dataclass
class Evaluator:
    """Evaluates parameters on one split, any number of times, with one compiled step.

    The devices return ranks. The host computes the metrics from them, in float64 and in
    the order of the examples. Neither `batch_size` nor the number of devices that share
    a batch changes the arithmetic of an example (see `batches.eval_batches`), so
    neither changes a digit.

    `after_batch` is called after each batch and may end the evaluation by raising.
    """

    model: nn.Module
    examples: Examples
    ks: Sequence[int]
    batch_size: int
    devices: layouts.Devices
    progress: bool = False
    after_batch: Callable[[], None] = lambda: None

    def __post_init__(self):
        check_rows(self.examples.items, self.model.num_items)
        self.max_rows = rows_at_a_time(self.devices, self.model.num_items)
        self.with_clicks = self.devices.hold_clicks(self.examples.items)
        options = {"model": self.model, **self.devices.step_options}
        self._compiled = functools.cache(
            lambda k: self.devices.compile(functools.partial(rank_step, k=k, **options))
        )

    def __call__(self, params: Params) -> dict[str, float]:
        """Returns the mean of every metric, and `examples_per_second`."""
        return self.with_lists(params, 0)[0]

    def with_lists(
        self, params: Params, k: int
    ) -> tuple[dict[str, float], Int[np.ndarray, " E"], Int[np.ndarray, "E K"]]:
        """Returns means, ranks and lists from one pass over the examples.

        Returns:
          The means; the rank of each example's target, 1 = best; and the rows of the k
          items with the highest scores for each example.
        """
        step = self._compiled(k)
        values, seconds = self.by_example(
            lambda batch: step(params, *self.with_clicks(batch)), "evaluate"
        )
        rank, lists = values[:, 0], values[:, 1:]
        means = metrics.means(rank, self.ks)
        return {**means, "examples_per_second": len(rank) / seconds}, rank, lists

    def by_example(
        self, step: Callable[[Batch], jax.Array], name: str, in_hand: int = IN_HAND
    ) -> tuple[Int[np.ndarray, "E X"], float]:
        """Returns what a step computes for each example, and the seconds it took.

        The clock starts when the first batch is on its way, after the first call has
        compiled; the progress bar shows `name` from then on.
        """
        start = math.inf
        found: list[jax.Array | np.ndarray] = []
        numbers: list[np.ndarray] = []
        with processes.progress_bar(
            self.progress, total=len(self.examples), desc=processes.COMPILING
        ) as bar:
            for batch in batches.eval_batches(
                self.examples,
                self.batch_size,
                self.devices.shards,
                self.devices.max_positions,
                self.max_rows,
                self.devices.tiering,
            ):
                found.append(step(batch))
                if start == math.inf:
                    start = time.perf_counter()
                    processes.begin(bar, name)
                numbers.append(np.where(batch.length > 0, batch.example, -1))
                if len(found) >= in_hand:
                    # Fetched late, so that the device always has work queued.
                    found[-in_hand] = np.asarray(found[-in_hand])
                bar.update(batch.examples)
                self.after_batch()
            values = np.concatenate([np.asarray(x) for x in found])
        seconds = time.perf_counter() - start
        number = np.concatenate(numbers).reshape(-1)
        values = values.reshape(len(number), -1)
        by_example = np.empty((len(self.examples), values.shape[1]), values.dtype)
        by_example[number[number >= 0]] = values[number >= 0]
        return by_example, seconds
