"""Evaluation: the target of every example is ranked among all items.

Axes: C clicks.
"""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Int
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import baselines, item_table, metrics, parallel
from srgnn_jax import config as config_lib
from srgnn_jax.checkpoint import Checkpoints, Progress, check_same_run
from srgnn_jax.data import batches
from srgnn_jax.data.batches import Batch
from srgnn_jax.data.sessions import Examples
from srgnn_jax.graph import AnyArray
from srgnn_jax.model import SRGNN, Params, init_params

# Sessions that are at least ranked at a time, if the batch has so many.
MIN_ROWS = 64


def evaluate_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: SRGNN,
    ks: Sequence[int],
    max_scores: int = item_table.MAX_SCORES,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Returns the sums of the ranking metrics over a batch; see `metrics.ranking_sums`.

    Args:
      params: of the model.
      clicks: what the batch's starts point into.
      batch: this device's parts of the batch; see `data.batches`.
      model: the model.
      ks: the list lengths.
      max_scores: scores held at a time.
      axis_name: axis of the devices that share the batch, or None.
    """

    def sums_of_part(part):
        rank: Any = model.apply(
            {"params": params},
            part.tiers,
            part.target,
            max_scores,
            method="target_rank",
        )
        return metrics.ranking_sums(rank, part.weight, ks)

    return parallel.total(
        batches.sum_over_parts(sums_of_part, clicks, batch), axis_name
    )


class Evaluator:
    """Evaluates parameters on one split, as often as asked, with one compiled step."""

    def __init__(
        self,
        model: SRGNN,
        examples: Examples,
        ks: Sequence[int],
        batch_size: int,
        devices: parallel.Devices,
        progress: bool = False,
    ):
        self._examples = examples
        self._batch_size = batch_size
        self._devices = devices
        self._progress = progress
        # Fewer rows at a time go over the whole table faster than many over blocks of
        # it, unless they become too few to be worth the reading of the table.
        scores = devices.max_scores * devices.item_shards
        self.max_rows = max(MIN_ROWS, scores // model.num_items)
        self._with_clicks = devices.hold_clicks(examples.items)
        step = functools.partial(
            evaluate_step,
            model=devices.split_model(model),
            ks=tuple(ks),
            max_scores=devices.max_scores,
            axis_name=devices.axis_name,
        )
        self._step = devices.compile(step)

    def __call__(self, params: Params) -> dict[str, float]:
        """Returns the mean of every metric, and `examples_per_second`.

        The clock starts with the first batch on its way: a first call compiles before.
        """
        start = math.inf
        pending = []
        sums: dict[str, float] = {}
        bar = tqdm(
            total=len(self._examples),
            desc="evaluate",
            unit=" examples",
            disable=None if self._progress else True,
            leave=False,
        )
        for batch in batches.eval_batches(
            self._examples,
            self._batch_size,
            self._devices.shards,
            self._devices.max_positions,
            self.max_rows,
        ):
            pending.append(self._step(params, *self._with_clicks(batch)))
            start = min(start, time.perf_counter())
            if len(pending) == 8:
                # Sums are fetched late, so that the device always has work in hand.
                _add(sums, pending.pop(0))
            bar.update(batch.examples)
        for last in pending:
            _add(sums, last)
        bar.close()
        count = sums.pop("examples")
        means = {name: value / count for name, value in sums.items()}
        means["examples_per_second"] = count / (time.perf_counter() - start)
        return means


def _add(sums: dict[str, float], more: dict[str, jax.Array]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + float(value)


def make_evaluator(
    config: ConfigDict, model: SRGNN, examples: Examples, devices: parallel.Devices
) -> Evaluator:
    """Builds the evaluator that a config asks for."""
    return Evaluator(
        model,
        examples,
        config.ks,
        config.eval_batch_size,
        devices,
        config.progress and parallel.is_main_process(),
    )


def report(
    config: ConfigDict,
    progress: Progress,
    test: Mapping[str, float],
    splits: config_lib.Splits,
) -> str:
    """Renders what a run reached, in percent, the popularity baseline beside it.

    Args:
      config: of the run.
      progress: of the run; holds the validation metrics of its best epoch.
      test: the test metrics of the best epoch, or of the last step while there is none.
      splits: of the run.
    """
    columns = {"SR-GNN test": test}
    if config.select_on == "valid" and progress.best_step:
        columns["SR-GNN valid"] = progress.best_metrics
    columns["POP test"] = baselines.popularity(
        splits.train_sessions, splits.evaluated["test"], progress.num_items, config.ks
    )
    title = f"step {progress.step}: no epoch is complete"
    if progress.best_step:
        split = {"valid": "validation", "test": "TEST, as in the papers' codes"}
        title = (
            f"best epoch {progress.best_epoch} (step {progress.best_step}), chosen by "
            f"{config.select_by} on {split[config.select_on]}"
        )
    lines = ["", title, "", " " * 10 + "".join(f"{name:>14}" for name in columns)]
    return "\n".join(lines + metric_lines(config.ks, *columns.values()))


def metric_lines(ks: Sequence[int], *columns: Mapping[str, float]) -> list[str]:
    """Renders each metric's name and its value in each column, in percent."""
    return [
        f"{name:<10}" + "".join(f"{100 * column[name]:14.2f}" for column in columns)
        for name in (f"{m}@{k}" for k in ks for m in ("recall", "mrr", "ndcg"))
    ]


def restore_best(
    checkpoints: Checkpoints,
    progress: Progress,
    model: SRGNN,
    devices: parallel.Devices,
) -> tuple[Params, int]:
    """Reads the parameters of the best epoch, or of the last step while there is none.

    Returns:
      The parameters, laid out for the devices, and their step.
    """
    shapes = {"params": jax.eval_shape(lambda: init_params(model, 0))}
    step = progress.best_step or progress.step
    return checkpoints.restore(devices.layout(shapes), step)["params"], step


def evaluate_workdir(
    workdir: str, config: ConfigDict | None = None
) -> dict[str, float]:
    """Evaluates the best checkpoint of a workdir on the test split; prints the table.

    Args:
      workdir: of a run.
      config: fields for the run's own config to be replaced by, where they may differ,
        such as `data_dir`; the run's own config if None.

    Returns:
      The mean of every metric.
    """
    folder = pathlib.Path(workdir).expanduser()
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        progress = checkpoints.progress()
        if config is None:
            config = config_lib.from_dict(progress.config)
        config_lib.validate(config)
        devices = config_lib.find_devices(config)
        with parallel.main_process_first():
            data = config_lib.load_data(config)
        check_same_run(progress, Progress.at_start(config, data))
        model = config_lib.make_model(config, progress.num_items)
        params, _ = restore_best(checkpoints, progress, model, devices)
    splits = config_lib.make_splits(config, data)
    evaluate = make_evaluator(config, model, splits.evaluated["test"], devices)
    test = evaluate(params)
    parallel.say(report(config, progress, test, splits))
    return test
