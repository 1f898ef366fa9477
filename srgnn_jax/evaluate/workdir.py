"""What a workdir holds is evaluated; simple baselines on the data of a config are.

Axes: E examples, K items of a list.
"""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax import tables
from srgnn_jax.data.counts import data_name
from srgnn_jax.data.sessions import Examples
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import baselines, metrics, results_json
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.scorer import target_ranks
from srgnn_jax.model.layers import Params
from srgnn_jax.runs.checkpoint import Checkpoints, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import make_workdir, seed_folders

log = logging.getLogger(__name__)


def make_evaluator(
    config: ConfigDict,
    model: nn.Module,
    examples: Examples,
    devices: layouts.Devices,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluator:
    """Builds the evaluator that a config asks for; see `Evaluator`."""
    return Evaluator(
        model,
        examples,
        config.ks,
        config.eval_batch_size,
        devices,
        config.progress,
        after_batch,
    )


def how_chosen(select_on: str, select_by: str) -> str:
    """Tells a person at the terminal how the epoch was chosen."""
    return {
        "valid": f"chosen by {select_by} on validation",
        "test": f"chosen by {select_by} on TEST, as in the papers' codes",
        "last": "the last, chosen on no split",
    }[select_on]


def metric_rows(
    ks: Sequence[int], columns: Sequence[Mapping[str, float]]
) -> list[list[str]]:
    """Renders metrics in percent, a row each; blank where a column lacks it."""
    return [
        [name, *(tables.percent(column.get(name)) for column in columns)]
        for name in metrics.names(ks)
    ]


def metric_table(
    ks: Sequence[int], columns: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Renders metrics, by what stands above them, and seconds where all have some."""
    each = list(columns.values())
    rows = [["", *columns], *metric_rows(ks, each)]
    if all("seconds" in column for column in each):
        rows += [["seconds", *(f"{column['seconds']:.1f}" for column in each)]]
    return tables.plain(rows)


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
            processes.say(f"\nseed {seed}")
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
        with processes.main_process_first():
            data = config_lib.load_data(config)
        made = config_lib.make_model(config, progress.num_items, model)
        config_lib.check_same_run(
            progress,
            config_lib.start_of_run(config, data, made),
            config_lib.MAY_DIFFER_IN_EVALUATION,
        )
        params, _ = restore_best(checkpoints, progress, made, devices)
    splits = config_lib.make_splits(config, data)
    evaluate = make_evaluator(config, made, splits.evaluated["test"], devices)
    test, run = evaluate_best(config, progress, splits, evaluate, params)
    if processes.is_main_process():
        path = folder / results_json.FILE
        try:
            command = results_json.read(path)["command"] if path.exists() else ""
            results_json.record(folder, own, data, splits, command, run)
        except UserError as error:
            log.warning("%s: what was found is only printed", error)
    return test


def evaluate_best(
    config: ConfigDict,
    progress: Progress,
    splits: config_lib.Splits,
    evaluate: Evaluator,
    params: Params,
) -> tuple[dict[str, float], results_json.Results]:
    """Evaluates the best epoch on test; prints it, the popularity baseline beside it.

    Args:
      config: of the run.
      progress: of the run.
      splits: of the run.
      evaluate: of the test split.
      params: of the best epoch, or of the last step while there is none.

    Returns:
      The mean of every metric, and what results.json records; see
      `results_json.of_run`.
    """
    k = min(max(config.ks), progress.num_items - 1)
    test, rank, lists = evaluate.with_lists(params, k)
    title = f"step {progress.step}: no epoch is complete"
    if progress.best_step:
        chosen = how_chosen(config.select_on, config.select_by)
        title = f"epoch {progress.best_epoch} (step {progress.best_step}), {chosen}"
    columns = {"SR-GNN test": test}
    if config.select_on == "valid" and progress.best_step:
        columns["SR-GNN valid"] = progress.best_metrics
    pop = baselines.pop(splits.train_sessions, progress.num_items)
    ranks = target_ranks(pop, splits.evaluated["test"])
    columns["POP test"] = metrics.means(ranks, config.ks)
    processes.say("\n".join(["", title, "", *metric_table(config.ks, columns)]))
    return test, results_json.of_run(progress, config, splits, test, rank, lists)


def report_seeds(folder: pathlib.Path, seeds: Sequence[int]) -> None:
    """Joins the results of several seeds in results.json and prints their table."""
    if not processes.is_main_process():
        return
    each = [results_json.read(folder / f"seed_{s}" / results_json.FILE) for s in seeds]
    merged = results_json.merge(each)
    results_json.write(folder / results_json.FILE, merged)
    processes.say("\n" + seeds_table(merged))


def seeds_table(results: results_json.Results) -> str:
    """Renders test metrics by seed, their mean and their standard deviation."""
    runs, protocol = results["runs"], results["protocol"]
    columns = [run["test"] for run in runs]
    columns += [results[key]["test"] for key in ("mean", "standard_deviation")]
    title = "test metrics in percent; each seed's epoch was\n" + how_chosen(
        protocol["select_on"], protocol["select_by"]
    )
    header = ["", *(f"seed {run['seed']}" for run in runs), "mean", "std"]
    rows = [["epoch", *(str(run["best_epoch"]) for run in runs), "", ""]]
    rows += metric_rows(results["config"]["ks"], columns)
    return "\n".join([title, "", *tables.markdown(header, rows)])


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
    with processes.main_process_first():
        data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    folder = make_workdir(workdir)
    train, test = splits.train_sessions, splits.evaluated["test"]
    reached = {}
    for name, learn in processes.progress_bar(
        config.progress, baselines.METHODS.items(), desc="baselines"
    ):
        start = time.perf_counter()
        ranks = target_ranks(learn(train, data.vocabulary.num_items), test)
        reached[name] = metrics.means(ranks, config.ks)
        reached[name]["seconds"] = time.perf_counter() - start
    said = [f"test, {len(test):,} examples; learnt from {len(train):,} sessions"]
    held_out = len(splits.evaluated.get("valid", ()))
    if held_out:
        said.append(f"{held_out:,} examples are held out for validation")
    processes.say("\n".join([*said, "", *metric_table(config.ks, reached)]))
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
