"""Evaluation: the target of every example is ranked among all items.

Axes: E examples, C clicks, N parts of a batch, R rows of a part, K items of a list.
"""

import collections
import contextlib
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import baselines, metrics, parallel, results
from srgnn_jax import config as config_lib
from srgnn_jax.checkpoint import (
    Checkpoints,
    Progress,
    check_same_model,
    check_same_run,
    is_single_run,
    make_workdir,
)
from srgnn_jax.data import batches
from srgnn_jax.data.counts import data_name
from srgnn_jax.data.sessions import Examples, check_rows
from srgnn_jax.errors import UserError
from srgnn_jax.model.layers import Params
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.steps import check_finite, list_step, rank_step

log = logging.getLogger(__name__)

# Sessions that are ranked at a time: at least, if there are so many, and at most.
MIN_ROWS, MAX_ROWS = 64, 512


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
        devices: parallel.Devices,
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
        # Fewer rows at a time go over the whole table faster than many over blocks of
        # it, unless they become too few to be worth the reading of the table.
        rows = devices.max_scores // model.num_items
        self.max_rows = min(max(MIN_ROWS, rows), MAX_ROWS)
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


def make_evaluator(
    config: ConfigDict,
    model: nn.Module,
    examples: Examples,
    devices: parallel.Devices,
    after_batch: Callable[[], None] | None = None,
) -> Evaluator:
    """Builds the evaluator that a config asks for; see `Evaluator`."""
    return Evaluator(
        model,
        examples,
        config.ks,
        config.eval_batch_size,
        devices,
        config.progress and parallel.is_main_process(),
        after_batch,
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
        title = (
            f"epoch {progress.best_epoch} (step {progress.best_step}), "
            + results.how_chosen(config.select_on, config.select_by)
        )
    return "\n".join(["", title, "", *metric_table(config.ks, columns)])


def metric_table(
    ks: Sequence[int], columns: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Renders metrics in percent, and seconds where all columns have some.

    Args:
      ks: the list lengths.
      columns: metrics, by what stands above them; one that lacks a list length is blank
        there.
    """
    rows = {"": list(columns)}
    for name in metrics.names(ks):
        rows[name] = [
            f"{100 * column[name]:.2f}" if name in column else ""
            for column in columns.values()
        ]
    if all("seconds" in column for column in columns.values()):
        rows["seconds"] = [f"{column['seconds']:.1f}" for column in columns.values()]
    left, width = max(map(len, rows)), max(8, *map(len, columns)) + 2
    return [
        f"{name:<{left}}" + "".join(f"{cell:>{width}}" for cell in row)
        for name, row in rows.items()
    ]


def restore_best(
    checkpoints: Checkpoints,
    progress: Progress,
    model: nn.Module,
    devices: parallel.Devices,
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


def evaluate_workdir(
    workdir: str,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> dict[str, float]:
    """Evaluates the best checkpoint of a workdir on the test split; prints the table.

    Ranks and lists are broken down in the workdir's results.json. Where the workdir is
    that of several seeds, each is evaluated, and the means are returned.

    Args:
      workdir: of a run.
      config: fields for the run's own config to be replaced by, where they may differ,
        such as `data_dir` and `ks`; the run's own config if None.
      model: what made the run's model, unless it is SRGNN; see `config.make_model`.

    Returns:
      The mean of every metric.
    """
    folder = pathlib.Path(workdir).expanduser()
    seeds = seed_folders(folder)
    if seeds:
        each = []
        for seed, path in seeds.items():
            parallel.say(f"\nseed {seed}")
            one = None if config is None else config_lib.with_seed(config, seed)
            each.append(evaluate_workdir(str(path), one, model))
        report_seeds(folder, list(seeds))
        return {n: float(np.mean([means[n] for means in each])) for n in each[0]}
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        progress = checkpoints.progress()
        own = config_lib.from_dict(progress.config)
        asked = config_lib.to_dict(own if config is None else config)
        # Other list lengths join the run's own: its records lose nothing.
        own.ks = tuple(dict.fromkeys((*own.ks, *asked["ks"])))
        config = config_lib.from_dict({**asked, "ks": own.ks})
        config_lib.validate(config)
        devices = config_lib.find_devices(config)
        with parallel.main_process_first():
            data = config_lib.load_data(config)
        made = config_lib.make_model(config, progress.num_items, model)
        check_same_run(
            progress,
            Progress.at_start(config, data, made),
            config_lib.MAY_DIFFER_IN_EVALUATION,
        )
        params, _ = restore_best(checkpoints, progress, made, devices)
    splits = config_lib.make_splits(config, data)
    evaluate = make_evaluator(config, made, splits.evaluated["test"], devices)
    test, run = evaluate_best(config, progress, splits, evaluate, params)
    if parallel.is_main_process():
        try:
            command = ""
            if (folder / results.FILE).exists():
                command = results.read(folder / results.FILE)["command"]
            results.record(folder, own, data, splits, command, run)
        except UserError as error:
            log.warning("%s: what was found is only printed", error)
    return test


def evaluate_best(
    config: ConfigDict,
    progress: Progress,
    splits: config_lib.Splits,
    evaluate: Evaluator,
    params: Params,
) -> tuple[dict[str, float], results.Results]:
    """Evaluates the best epoch on test and prints the table.

    Args:
      config: of the run.
      progress: of the run.
      splits: of the run.
      evaluate: of the test split.
      params: of the best epoch, or of the last step while there is none.

    Returns:
      The mean of every metric, and what results.json records; see `results.of_run`.
    """
    test, rank = evaluate.with_ranks(params)
    lists = evaluate.lists(params, min(max(config.ks), progress.num_items - 1))
    parallel.say(report(config, progress, test, splits))
    return test, results.of_run(progress, config, splits, test, rank, lists)


def seed_folders(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Finds the workdirs of the seeds of a run of several; none of a single run."""
    found = {}
    for path in folder.glob("seed_*"):
        seed = path.name.removeprefix("seed_")
        if seed.isdecimal() and path.is_dir():
            found[int(seed)] = path
    return {} if is_single_run(folder) else dict(sorted(found.items()))


def report_seeds(folder: pathlib.Path, seeds: Sequence[int]) -> None:
    """Joins the results of several seeds in results.json and prints their table."""
    if not parallel.is_main_process():
        return
    each = [results.read(folder / f"seed_{s}" / results.FILE) for s in seeds]
    merged = results.merge(each)
    results.write(folder / results.FILE, merged)
    parallel.say("\n" + results.seeds_table(merged))


def evaluate_baselines(
    config: ConfigDict, workdir: str, command: str = ""
) -> dict[str, dict[str, float]]:
    """Evaluates every baseline on the test split; prints a table, writes a file.

    They learn from the sessions that a training with this config would learn from.

    Args:
      config: see configs/default.py.
      workdir: folder for baselines.json.
      command: the command line, for that file.

    Returns:
      For each of `baselines.METHODS` the mean of every metric, and under "seconds" how
      long it took to learn and to rank.

    Raises:
      UserError: what the user can mend, such as a file that is missing.
    """
    config_lib.validate(config)
    with parallel.main_process_first():
        data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    folder = make_workdir(workdir)
    train, test = splits.train_sessions, splits.evaluated["test"]
    reached = {}
    for name, learn in tqdm(
        baselines.METHODS.items(),
        desc="baselines",
        disable=None if config.progress and parallel.is_main_process() else True,
        leave=False,
    ):
        start = time.perf_counter()
        ranks = baselines.target_ranks(learn(train, data.vocabulary.num_items), test)
        reached[name] = metrics.means(ranks, config.ks)
        reached[name]["seconds"] = time.perf_counter() - start
    record = {
        "command": command,
        "dataset": data_name(config.dataset, config.train_fraction),
        "data": data.fingerprint,
        "select_on": config.select_on,
        "train_sessions": len(train),
        "test_examples": len(test),
        "test": reached,
    }
    held_out = len(splits.evaluated.get("valid", ()))
    parallel.say(
        "\n".join(
            [
                f"test, {len(test):,} examples; learnt from {len(train):,} sessions"
                + (
                    f"\n{held_out:,} examples are held out for validation"
                    * bool(held_out)
                ),
                "",
                *metric_table(config.ks, reached),
            ]
        )
    )
    if parallel.is_main_process():
        results.write(folder / results.BASELINES_FILE, record)
    return reached
