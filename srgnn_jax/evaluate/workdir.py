"""Evaluates the run of a workdir, and simple baselines on the data of a config."""

import contextlib
import dataclasses
import logging
import pathlib
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax import tables
from srgnn_jax.data.counts import data_name
from srgnn_jax.data.sessions import Dataset, Examples, Sessions
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import baselines, joined, metrics, results_json
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.model.layers import Params
from srgnn_jax.model.readout import ATTENTION_READOUTS
from srgnn_jax.runs.checkpoint import Checkpoints, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import load_vocabulary, make_workdir, seed_folders

# The baselines shown next to every result: the weakest, the first to beat, and the
# strongest, which takes seconds for a test split of at most so many examples.
SHOWN_BASELINES = ("POP", "Markov", "STAN")
MOST_EXAMPLES = 100_000
# What later papers added; it wins where the paper's settings lose. See
# configs/click_log.py.
PLUS = {"normalize": True, "item_dropout": 0.3, "reverse_positions": 32}
# How the epoch was chosen, by `config.select_on`, for people at a terminal.
_CHOSEN = {
    "valid": "chosen by {} on validation",
    "test": "chosen by {} on TEST, as in the papers' codes",
    "last": "the last, chosen on no split",
}

log = logging.getLogger(__name__)


def make_evaluator(
    config: ConfigDict,
    model: nn.Module,
    examples: Examples,
    devices: layouts.Devices,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluator:
    """Builds the evaluator that a config asks for; see `Evaluator`.

    Raises UserError if it cannot be joined with neighbours; see `joined.check`.
    """
    joined.check(config)
    return Evaluator(
        model,
        examples,
        config.ks,
        config.eval_batch_size,
        devices,
        config.progress,
        after_batch,
    )


def _metric_rows(
    ks: Sequence[int], columns: Sequence[Mapping[str, float]]
) -> list[list[str]]:
    return [
        [name, *(tables.percent(column.get(name)) for column in columns)]
        for name in metrics.names(ks)
    ]


def metric_table(
    ks: Sequence[int], columns: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Renders metrics as a table, by column header, and seconds if there are any."""
    each = list(columns.values())
    rows = [["", *columns], *_metric_rows(ks, each)]
    if any("seconds" in column for column in each):
        took = (column.get("seconds") for column in each)
        rows += [["seconds", *("" if s is None else f"{s:.1f}" for s in took)]]
    return tables.plain(rows)


def own_config(workdir: str, fields: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of a workdir's run with some fields replaced."""
    folder = pathlib.Path(workdir).expanduser()
    one = next(iter(seed_folders(folder).values()), folder)
    with contextlib.closing(Checkpoints(one)) as checkpoints:
        own = _as_evaluated(one, checkpoints.progress())
    return config_lib.from_dict({**config_lib.to_dict(own), **fields})


def evaluate_workdir(
    workdir: str,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> dict[str, float]:
    """Evaluates the best checkpoint of a workdir on test; returns the metrics' means.

    Prints a table, and writes a breakdown of ranks and lists to the workdir's
    results.json. If the workdir has several seeds, each is evaluated, and the means are
    over all of them. With `config.joined`, the workdir from then on recommends joined
    with neighbours.

    Args:
      config: replaces the run's own, as it was last evaluated, in fields that may
        differ: `data_dir`, `ks`, `joined`, ...
      model: what made the run's model, unless it is SRGNN; see `config.make_model`.
    """
    folder = pathlib.Path(workdir).expanduser()
    if seeds := seed_folders(folder):
        each = []
        if config is None:
            config, *others = (own_config(str(path), {}) for path in seeds.values())
            fields = config_lib.AFTER_TRAINING
            if any(one[field] != config[field] for one in others for field in fields):
                message = "the seeds were last evaluated differently"
                raise UserError(f"{message}; set --config.joined")
        for seed, path in seeds.items():
            processes.say(f"\nseed {seed}")
            one = config_lib.with_seed(config, seed)
            each.append(evaluate_workdir(str(path), one, model))
        report_seeds(folder, list(seeds))
        return {n: float(np.mean([means[n] for means in each])) for n in each[0]}
    opened = open_run(folder, config, model)
    splits, progress = opened.splits, opened.progress
    test, run = evaluate_best(
        opened.config, progress, splits, opened.evaluator(), opened.params
    )
    if processes.is_main_process():
        path = folder / results_json.FILE
        try:
            command = results_json.read(path)["command"] if path.exists() else ""
            record(folder, opened.own, opened.data, splits, command, run)
        except (UserError, OSError) as error:
            log.warning("%s: the results are only printed", error)
    return test


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run with everything its evaluation needs: its best checkpoint and its data."""

    config: ConfigDict  # for the evaluation
    own: ConfigDict  # of the training, except for additional list lengths
    progress: Progress
    data: Dataset
    splits: config_lib.Splits
    model: nn.Module
    params: Params
    devices: layouts.Devices

    @property
    def test(self) -> Examples:
        """The examples that it is evaluated on."""
        return self.splits.evaluated["test"]

    def evaluator(self) -> Evaluator:
        """Returns the evaluator for test."""
        return make_evaluator(self.config, self.model, self.test, self.devices)


def open_run(
    folder: pathlib.Path,
    config: ConfigDict | None = None,
    model: config_lib.MakeModel | None = None,
) -> OpenedRun:
    """Opens the run of a workdir; see `evaluate_workdir`."""
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        progress = checkpoints.progress()
        own = _as_evaluated(folder, progress)
        asked = config_lib.to_dict(own if config is None else config)
        # Other list lengths are added to the run's own, so its records lose nothing.
        own.ks = tuple(dict.fromkeys((*own.ks, *asked["ks"])))
        config = config_lib.from_dict({**asked, "ks": own.ks})
        for field in config_lib.AFTER_TRAINING:
            own[field] = config[field]
        config_lib.validate(config)
        devices = config_lib.find_devices(config)
        with processes.main_process_first():
            data = config_lib.load_data(config)
        made = config_lib.make_model(config, progress.num_items, model)
        config_lib.check_same_run(
            progress,
            config_lib.start_of_run(config, data, made),
            config_lib.MAY_DIFFER_IN_EVALUATION,
        )
        params, _ = restore_best(checkpoints, progress, made, devices)
    splits = _with_test(config_lib.make_splits(config, data))
    if progress.parents:
        vocabulary = load_vocabulary(folder, progress.vocabulary)
        splits = dataclasses.replace(splits, is_new=vocabulary.new_rows)
    return OpenedRun(config, own, progress, data, splits, made, params, devices)


def _with_test(splits: config_lib.Splits) -> config_lib.Splits:
    """Raises UserError if nothing was kept for test."""
    if not len(splits.evaluated["test"]):
        raise UserError(
            "config.test_days is 0: nothing is kept for test, so there is nothing to "
            "evaluate on; evaluate on later clicks with --mode=evaluate --sessions=LOG"
        )
    return splits


def _as_evaluated(folder: pathlib.Path, progress: Progress) -> ConfigDict:
    """Returns the config of a run, with the fields of its last evaluation."""
    config = config_lib.from_dict(progress.config)
    path = folder / results_json.FILE
    with contextlib.suppress(UserError):
        last = config_lib.from_dict(results_json.read(path)["config"])
        for field in config_lib.AFTER_TRAINING:
            config[field] = last[field]
    return config


def record(
    folder: pathlib.Path,
    config: ConfigDict,
    data: Dataset,
    splits: config_lib.Splits,
    command: str,
    run: results_json.Results,
) -> None:
    """Writes the results of `evaluate_best`; the workdir answers so from then on.

    Raises UserError or OSError if a file cannot be written.
    """
    num_items = data.vocabulary.num_items
    joined.save(folder, config, splits.train_sessions, num_items, run)
    results_json.record(folder, config, data, splits, command, run)


def evaluate_best(
    config: ConfigDict,
    progress: Progress,
    splits: config_lib.Splits,
    evaluate: Evaluator,
    params: Params,
) -> tuple[dict[str, float], results_json.Results]:
    """Evaluates the best epoch on test; prints it next to simple recommenders.

    `params` are those of the best epoch, or of the last step if there is none yet.
    Returns the mean of every metric, and the record of the run for results.json.
    """
    k = min(max(config.ks), progress.num_items - 1)
    found = None
    if config.joined:
        model, after_batch = evaluate.model, evaluate.after_batch
        found = joined.evaluate(config, model, params, splits, k, after_batch)
        test, rank, lists = found.test, found.rank, found.lists
        columns = {"joined test": test, "SR-GNN test": found.network}
    else:
        test, rank, lists = evaluate.with_lists(params, k)
        columns = {"SR-GNN test": test}
    title = f"step {progress.step}: no epoch is complete"
    if progress.best_step:
        chosen = _CHOSEN[config.select_on].format(config.select_by)
        title = f"epoch {progress.best_epoch} (step {progress.best_step}), {chosen}"
        if found and found.valid:
            columns["joined valid"] = found.valid[found.weights]
        elif config.select_on == "valid":
            columns["SR-GNN valid"] = progress.best_metrics
    run = results_json.of_run(progress, config, splits, test, rank, lists)
    # After a warm start.
    for age, means in run["test_breakdown"].get("age", {}).items():
        columns[age] = {name: means[name] for name in metrics.names(config.ks)}
    if found:
        run |= found.record()
        weight, again = found.weights
        chosen = "" if found.valid is None else ", chosen on validation"
        title += f"\njoined with {config.neighbours}, weight {weight}, "
        title += f"and repeats, weight {again}{chosen}"
    if processes.is_main_process():
        reached = baseline_metrics(config, splits, progress.num_items)
        run["test_baselines"] = reached
        columns |= {f"{name} test": means for name, means in reached.items()}
        advice = lost_to(config, test, reached)
        table = metric_table(config.ks, columns)
        processes.say("\n".join(["", title, "", *table, *advice]))
    return test, run


def baseline_metrics(
    config: ConfigDict, splits: config_lib.Splits, num_items: int
) -> dict[str, dict[str, float]]:
    """Returns the test metrics of the baselines shown next to a result, by name."""
    train, test = splits.train_sessions.whole(), splits.evaluated["test"]
    names = SHOWN_BASELINES if len(test) <= MOST_EXAMPLES else SHOWN_BASELINES[:-1]
    return {name: _reach(name, train, test, num_items, config.ks) for name in names}


def _reach(
    name: str, train: Sessions, test: Examples, num_items: int, ks: Sequence[int]
) -> dict[str, float]:
    """Returns the mean of every metric for a baseline."""
    scorer = baselines.METHODS[name](train, num_items)
    return metrics.means(target_ranks(scorer, test), ks)


def lost_to(
    config: ConfigDict,
    test: Mapping[str, float],
    reached: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Returns lines on a better baseline and what to try; none if none is better."""
    metric = config.select_by
    best = max(reached, key=lambda name: reached[name].get(metric, 0.0))
    if reached[best].get(metric, 0.0) <= test.get(metric, 0.0):
        return []
    tried = [name for name in PLUS if not config[name]]
    if config.readout not in ATTENTION_READOUTS:
        tried = [name for name in tried if name != "reverse_positions"]
    flags = " ".join(f"--config.{name}={PLUS[name]}" for name in tried)
    first = f"try {flags}, as in configs/click_log.py, then" if tried else "try"
    advice = f"{best} has a better {metric}: {first} more epochs, and --mode=search"
    if not config.joined and config.select_on == "valid":
        what = "neighbours and repeat clicks to this network"
        advice += f"; --mode=evaluate --config.joined=True adds {what}"
    return ["", *textwrap.wrap(advice, 80, break_on_hyphens=False)]


def report_seeds(folder: pathlib.Path, seeds: Sequence[int]) -> None:
    """Merges the results of several seeds in results.json and prints their table."""
    if not processes.is_main_process():
        return
    each = [results_json.read(folder / f"seed_{s}" / results_json.FILE) for s in seeds]
    merged = results_json.merge(each)
    results_json.write(folder / results_json.FILE, merged)
    processes.say("\n" + seeds_table(merged))


def seeds_table(results: results_json.Results) -> str:
    """Renders test metrics by seed, their mean and their standard deviation."""
    runs, protocol = results["runs"], results["protocol"]
    summed_up = (results[key]["test"] for key in ("mean", "standard_deviation"))
    columns = [*(run["test"] for run in runs), *summed_up]
    header = ["", *(f"seed {run['seed']}" for run in runs), "mean", "std"]
    rows = [["epoch", *(str(run["best_epoch"]) for run in runs), "", ""]]
    rows += _metric_rows(results["config"]["ks"], columns)
    chosen = _CHOSEN[protocol["select_on"]].format(protocol["select_by"])
    title = f"test metrics in percent; each seed's epoch was\n{chosen}"
    return f"{title}\n\n{tables.markdown(header, rows)}"


def evaluate_baselines(
    config: ConfigDict, workdir: str, command: str = ""
) -> dict[str, dict[str, float]]:
    """Evaluates every baseline on the test split; prints a table.

    If the workdir holds a run on the same data, its result is in the first column. The
    baselines learn from the sessions that training with this config would use, or from
    the sessions behind its examples. Returns, for each of `baselines.METHODS`, the mean
    of every metric and the "seconds" that learning and ranking took. baselines.json in
    the workdir has the same, and the `command` line. Raises UserError for what the user
    can fix, such as a missing file.
    """
    config_lib.validate(config)
    with processes.main_process_first():
        data = config_lib.load_data(config)
    splits = _with_test(config_lib.make_splits(config, data))
    folder = make_workdir(workdir)
    train, test = splits.train_sessions.whole(), splits.evaluated["test"]
    reached = {}
    num_items = data.vocabulary.num_items
    for name in processes.progress_bar(
        config.progress, baselines.METHODS, desc="baselines", unit=" methods"
    ):
        start = time.perf_counter()
        reached[name] = _reach(name, train, test, num_items, config.ks)
        reached[name]["seconds"] = time.perf_counter() - start
    lines = [f"test, {len(test):,} examples; learnt from {len(train):,} sessions"]
    if "valid" in splits.evaluated:
        held_out = len(splits.evaluated["valid"])
        lines.append(f"{held_out:,} examples are held out for validation")
    path, columns = folder / results_json.FILE, reached
    own = results_json.read(path) if path.exists() else None
    if own and own["data"]["fingerprint"] == data.fingerprint:
        columns = {"SR-GNN": own["mean"]["test"], **reached}
    processes.say("\n".join([*lines, "", *metric_table(config.ks, columns)]))
    if processes.is_main_process():
        record = {
            "command": command,
            "dataset": data_name(config.dataset, config.train_fraction),
            "data": data.fingerprint,
            "select_on": config.select_on,
            "train_sessions": len(train),
            "test_examples": len(test),
            "test": reached,
        }
        results_json.write(folder / results_json.BASELINES_FILE, record)
    return reached
