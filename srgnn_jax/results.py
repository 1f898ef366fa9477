"""Results of runs: results.json, Markdown tables of it, and RESULTS.md of many.

    python -m srgnn_jax.results results/*.json > RESULTS.md

Arguments are results.json and baselines.json files, or folders that hold some. All of
results.json that depends on the clock has "second" in its key: the rest is the same
whenever the same command is run on the same machine.
"""

import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

import srgnn_jax
from srgnn_jax import breakdown, metrics
from srgnn_jax import config as config_lib
from srgnn_jax.checkpoint import Progress
from srgnn_jax.configs import default
from srgnn_jax.data.counts import PUBLISHED_COUNTS, data_name
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.errors import UserError
from srgnn_jax.published import PUBLISHED, PUBLISHED_K

Results = dict[str, Any]

FILE, BASELINES_FILE = "results.json", "baselines.json"
# What each of the two holds at least.
_KEYS = (
    {"config", "data", "mean", "protocol", "runs", "standard_deviation"},
    {"data", "dataset", "test", "test_examples", "train_sessions"},
)
# By `config.select_on`: what chooses the epoch, and what becomes of test.
SPLITS = {"valid": "validation", "test": "test", "last": "no split: the last"}
TEST = {
    "valid": "evaluated once, for the epoch that validation chose",
    "test": "evaluated every epoch, and it chose the epoch",
    "last": "evaluated once, after the last epoch",
}
# By what `summary` tells of beside test: the label of its row.
OTHER_ROWS = {
    "test_each_best": "the same, each metric at its best",
    "valid": "the same, on validation",
}
TITLES = {
    "diginetica": "Diginetica",
    "yoochoose_1_64": "Yoochoose 1/64",
    "yoochoose_1_4": "Yoochoose 1/4",
    "synthetic": "Made clicks",
}
# Flags that say where things lie, and what stands in a record instead of their values;
# None: nothing does.
PLACES = {
    "workdir": None,
    "config.prepared_dir": None,
    "config.data_dir": "DIR",
}
_FIELDS_OF_PLACES = frozenset({"data_dir", "prepared_dir"})
# What the label of a run leaves out: what changes no number, and what its section, its
# other columns and the counts of its data say.
_NOT_IN_LABELS = (
    config_lib.MAY_DIFFER_IN_EVALUATION
    | _FIELDS_OF_PLACES
    | {"dataset", "runs", "seed", "select_on", *config_lib.PREPARATION_FIELDS}
)


def how_chosen(select_on: str, select_by: str) -> str:
    """Tells a person at the terminal how the epoch was chosen."""
    return {
        "valid": f"chosen by {select_by} on validation",
        "test": f"chosen by {select_by} on TEST, as in the papers' codes",
        "last": "the last, chosen on no split",
    }[select_on]


def portable_command(arguments: Sequence[str]) -> str:
    """Returns the command line of `srgnn_jax.main` without what is one machine's."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name in PLACES:
            if not equals:
                next(rest, None)
            if PLACES[name]:
                kept.append(f"--{name}={PLACES[name]}")
        elif name.removeprefix("no") != "config.progress":
            kept.append(argument)
    return shlex.join(["python", "-m", "srgnn_jax.main", *kept])


def of_run(
    progress: Progress,
    config: ConfigDict,
    splits: config_lib.Splits,
    test: Mapping[str, float],
    rank: Int[np.ndarray, " E"],
    lists: Int[np.ndarray, "E K"],
) -> Results:
    """Returns what is recorded of one seed.

    Args:
      progress: of the run.
      config: of the run.
      splits: of the run.
      test: the test metrics of its best epoch, and `examples_per_second`.
      rank: of each test example's target.
      lists: the items with the highest scores for each test example.
    """
    examples = splits.evaluated["test"]
    items = splits.train_sessions.items
    clicks = np.bincount(items, minlength=progress.num_items)
    means = dict(test)
    speed = means.pop("examples_per_second")
    selected = progress.best_metrics if progress.best_step else None
    return {
        "seed": config.seed,
        "best_epoch": progress.best_epoch,
        "best_step": progress.best_step,
        "epochs": progress.epoch,
        "steps": progress.step,
        "test": means,
        "valid": selected if config.select_on == "valid" else None,
        "test_recall_curve": metrics.recall_curve(rank),
        "test_lists": {
            "length": lists.shape[1],
            **breakdown.list_traits(lists, clicks),
        },
        "test_breakdown": breakdown.break_down(rank, examples, clicks, config.ks),
        "test_seconds": len(rank) / speed,
    }


def collect(
    config: ConfigDict,
    fingerprint: str,
    counts: Mapping[str, int | float],
    command: str,
    runs: Sequence[Results],
) -> Results:
    """Returns what results.json holds.

    Args:
      config: of the first run.
      fingerprint: of the data.
      counts: of the data.
      command: the command line that made them, or nothing.
      runs: what `of_run` returned for each seed.
    """
    fields = config_lib.to_dict(config)
    return {
        "name": config.name,
        "command": command,
        "protocol": {
            "select_on": config.select_on,
            "select_by": config.select_by,
            "test": TEST[config.select_on],
        },
        "data": {
            "name": data_name(config.dataset, config.train_fraction),
            "fingerprint": fingerprint,
            "counts": dict(counts),
        },
        "config": {k: v for k, v in fields.items() if k not in _FIELDS_OF_PLACES},
        "versions": {
            "srgnn_jax": srgnn_jax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            "cpu_cores": os.cpu_count(),
        },
        **summary(runs),
        "runs": list(runs),
    }


def summary(runs: Sequence[Results]) -> Results:
    """Returns mean and standard deviation of the metrics over the seeds."""
    found: Results = {"mean": {}, "standard_deviation": {}}
    for split in ("test", *OTHER_ROWS):
        each = [run[split] for run in runs if run.get(split)]
        values = {name: [one[name] for one in each] for name in (each or [{}])[0]}
        found["mean"][split] = {k: statistics.fmean(v) for k, v in values.items()}
        found["standard_deviation"][split] = {
            k: statistics.stdev(v) for k, v in values.items() if len(v) > 1
        }
    return found


def merge(several: Sequence[Results]) -> Results:
    """Joins the results of runs that differ in their seeds."""
    runs = [run for results in several for run in results["runs"]]
    config = {**several[0]["config"], "runs": len(runs)}
    return {**several[0], "config": config, **summary(runs), "runs": runs}


def write(path: pathlib.Path, results: Results) -> None:
    """Writes a results.json or a baselines.json, as a whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error


def record(
    folder: pathlib.Path,
    config: ConfigDict,
    data: Dataset,
    splits: config_lib.Splits,
    command: str,
    run: Results,
) -> None:
    """Writes results.json of a workdir with one run.

    Args:
      folder: the workdir.
      config: of the run.
      data: of the run.
      splits: of the run.
      command: the command line that made it, or nothing.
      run: what `of_run` returned.
    """
    records = read_lines(folder / "metrics.jsonl")
    seconds = train_seconds(records, len(splits.train))
    counts = {**data.counts, **splits.counts}
    run = {**run, "by_epoch": by_epoch(records), "train_seconds": seconds}
    if config.select_on == "test":
        run["test_each_best"] = each_best(run["by_epoch"])
    write(folder / FILE, collect(config, data.fingerprint, counts, command, [run]))


def train_seconds(records: Sequence[Results], examples: int) -> float:
    """Returns how long the epochs took that metrics.jsonl records, without evaluation.

    An epoch whose steps were all taken before the run was broken off has no rate: it
    counts like the others, and there is 0 where none has one.

    Args:
      records: lines of a run's metrics.jsonl.
      examples: in an epoch.
    """
    epochs = [record for record in records if "epoch" in record]
    rates = [epoch["train/examples_per_second"] for epoch in epochs]
    known = [rate for rate in rates if rate]
    return len(epochs) * examples / statistics.harmonic_mean(known) if known else 0.0


def by_epoch(records: Sequence[Results]) -> list[Results]:
    """Returns the records of the epochs, without what depends on the clock.

    Args:
      records: lines of a run's metrics.jsonl.
    """
    return [
        {key: value for key, value in record.items() if "second" not in key}
        for record in records
        if "epoch" in record
    ]


def each_best(epochs: Sequence[Results]) -> dict[str, float]:
    """Returns the best of each test metric over the epochs of a run.

    The papers' codes report these, which belong to no single epoch.

    Args:
      epochs: see `by_epoch`.
    """
    best: dict[str, float] = {}
    for epoch in epochs:
        for key, value in epoch.items():
            split, _, name = key.partition("/")
            if split == "test":
                best[name] = max(value, best.get(name, 0.0))
    return best


def read_lines(path: pathlib.Path) -> list[Results]:
    """Reads a metrics.jsonl; there are no lines where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read(path: pathlib.Path) -> Results:
    """Reads a results.json or a baselines.json."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON file ({error})") from error
    for holds in _KEYS:
        if isinstance(found, dict) and holds <= found.keys():
            return found
    raise UserError(f"{path} is neither a {FILE} nor a {BASELINES_FILE} of a run")


def _percent(mean: float | None, deviation: float | None = None) -> str:
    if mean is None:
        return ""
    text = f"{100 * mean:.2f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.2f}"


def _means(results: Results, split: str, shown: Sequence[str]) -> list[str]:
    """Renders some metrics of all seeds."""
    means, deviations = results["mean"][split], results["standard_deviation"][split]
    return [_percent(means.get(name), deviations.get(name)) for name in shown]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, ruler, *rows)]


def seeds_table(results: Results) -> str:
    """Renders test metrics by seed, their mean and their standard deviation."""
    names = metrics.names(results["config"]["ks"])
    runs = results["runs"]
    columns = [run["test"] for run in runs]
    columns += [results[key]["test"] for key in ("mean", "standard_deviation")]
    rows = [["epoch", *(str(run["best_epoch"]) for run in runs), "", ""]]
    rows += [[name, *(_percent(one.get(name)) for one in columns)] for name in names]
    protocol = results["protocol"]
    title = "test metrics in percent; each seed's epoch was\n" + how_chosen(
        protocol["select_on"], protocol["select_by"]
    )
    header = ["", *(f"seed {run['seed']}" for run in runs), "mean", "std"]
    return "\n".join([title, "", *_table(header, rows)])


def _changes(results: Results) -> dict[str, Any]:
    """Returns the fields of a config that change numbers and are not the default's."""
    usual = config_lib.to_dict(default.get_config())
    return {
        field: value
        for field, value in results["config"].items()
        if field not in _NOT_IN_LABELS and usual.get(field, value) != value
    }


def document(stored: Sequence[Results]) -> str:
    """Renders RESULTS.md: a section for each data set.

    Args:
      stored: contents of results.json and baselines.json files, in any order.
    """
    ours = [results for results in stored if "runs" in results]
    baselines = [results for results in stored if "runs" not in results]
    names = {
        results["data"]["fingerprint"]: results["data"]["name"] for results in ours
    }
    for results in baselines:
        names.setdefault(results["data"], results["dataset"])
    lines = [
        "# Results",
        "",
        "Recall (the papers' P@20) and MRR on test, in percent; for several seeds the "
        "mean ± the standard deviation. One epoch of a run serves all metrics, and "
        "each row says which split chose it, if any did. Where that was test, what the "
        "papers' codes print stands below: each metric at its own best epoch; where it "
        "was validation, what that epoch reached there. "
        "Published figures of models other than SR-GNN are quoted at second hand. "
        "Written by",
        "",
        "    python -m srgnn_jax.results results/*.json > RESULTS.md",
    ]
    order = [*TITLES, *sorted(set(names.values()) - TITLES.keys())]
    for name in order:
        fingerprints = sorted(key for key, value in names.items() if value == name)
        for fingerprint in fingerprints:
            lines += _section(
                name,
                [r for r in ours if r["data"]["fingerprint"] == fingerprint],
                [r for r in baselines if r["data"] == fingerprint],
            )
    return "\n".join(lines) + "\n"


def _section(
    name: str, ours: Sequence[Results], baselines: Sequence[Results]
) -> list[str]:
    """Renders one data set."""

    def place(results):
        changes = _changes(results)
        return len(changes), results["protocol"]["select_on"], results["name"]

    ours = sorted(ours, key=place)
    k = metrics.usual_k([k for results in ours for k in results["config"]["ks"]])
    shown = [f"recall@{k}", f"mrr@{k}"]
    rows, details = [], []
    for results in ours:
        changes = [f"{field}={value}" for field, value in _changes(results).items()]
        label = ", ".join(["SR-GNN", *changes])
        split = SPLITS[results["protocol"]["select_on"]]
        runs = results["runs"]
        about = [split, str(len(runs))]
        epochs = [f"{run['best_epoch']} of {run['epochs']}" for run in runs]
        rows.append(
            [
                f"**{label}**, this code",
                *about,
                *_means(results, "test", shown),
                ", ".join(epochs[:1] if len(set(epochs)) == 1 else epochs),
                _minutes([run.get("train_seconds") for run in runs]),
            ]
        )
        for other, said in OTHER_ROWS.items():
            if results["mean"].get(other):
                rows.append([said, *about, *_means(results, other, shown), "", ""])
        details += _details(f"{label}, epoch chosen on {split}", results, shown)
    rows += _rows_of_baselines(baselines, shown)
    counts = ours[0]["data"]["counts"] if ours else {}
    if _is_published(name, ours, baselines) and k == PUBLISHED_K:
        rows += [
            [
                f"{figures.model}, {figures.source}",
                *("", ""),
                *(f"{value:.2f}" for value in (figures.recall, figures.mrr)),
                *("", ""),
            ]
            for figures in PUBLISHED[name]
        ]
    for found in baselines:
        command = found.get("command", "")
        details += ["", "Baselines:"] + ["", f"    {command}"] * bool(command)
    counted = [
        f"{counts[key]:,} {key.replace('_', ' ')}"
        for key in ("train_examples", "test_examples", "items")
        if key in counts
    ]
    header = ["", "epoch chosen on", "seeds", *shown, "epoch", "training, a seed"]
    return [
        "",
        f"## {TITLES.get(name, name)}",
        *(["", ", ".join(counted) + "."] if counted else []),
        "",
        *_table(header, rows),
        *details,
    ]


def _is_published(
    name: str, ours: Sequence[Results], baselines: Sequence[Results]
) -> bool:
    """Tells whether a data set has the counts of the published preprocessing."""
    counts = [results["data"]["counts"]["test_examples"] for results in ours]
    counts += [found["test_examples"] for found in baselines]
    published = PUBLISHED_COUNTS.get(name, {}).get("test_examples")
    return name in PUBLISHED and set(counts) == {published}


def _rows_of_baselines(
    baselines: Sequence[Results], shown: Sequence[str]
) -> list[list[str]]:
    """Renders the baselines."""
    return [
        [
            f"{method}, learnt from {found['train_sessions']:,} sessions, this code",
            *("", ""),
            *(_percent(values.get(metric)) for metric in shown),
            "",
            _minutes([values.get("seconds")]),
        ]
        for found in baselines
        for method, values in found["test"].items()
    ]


def _minutes(seconds: Sequence[float | None]) -> str:
    known = [value for value in seconds if value]
    if not known:
        return ""
    mean = statistics.fmean(known)
    return f"{mean / 60:.0f} min" if mean >= 90 else f"{mean:.0f} s"


def _details(label: str, results: Results, shown: Sequence[str]) -> list[str]:
    """Renders what a row of the table was made by, and its breakdown."""
    runs = results["runs"]
    machine, versions = results["machine"], results["versions"]
    made = (
        f"jax {versions['jax']} on {machine['devices']}, {machine['cpu_cores']} CPU "
        f"cores; the evaluation on test takes "
        f"{_minutes([run['test_seconds'] for run in runs])}."
    )
    first = runs[0]["test_breakdown"]
    size = first["all"]["all"]["examples"]
    rows = []
    for trait, parts in first.items():
        for group, one in parts.items():
            each = [run["test_breakdown"][trait][group] for run in runs]
            row = [
                "all examples" if trait == "all" else f"{trait}: {group}",
                f"{100 * one['examples'] / size:.1f}%",
            ]
            for metric in shown:
                if metric in one:
                    mean = statistics.fmean(values[metric] for values in each)
                    low, high = one["interval"][metric]
                    row += [_percent(mean), f"{_percent(low)} to {_percent(high)}"]
                else:
                    row += ["", ""]
            rows.append(row)
    lists = runs[0]["test_lists"]
    interval = f"95%, seed {runs[0]['seed']}"
    return [
        "",
        f"### {TITLES.get(results['data']['name'], results['data']['name'])}: {label}",
        *(["", f"    {results['command']}"] if results["command"] else []),
        "",
        made,
        f"The lists of {lists['length']} of seed {runs[0]['seed']} hold "
        f"{100 * lists['coverage']:.1f}% of all items; a listed item has "
        f"{lists['popularity']:,.1f} clicks in training on average.",
        "Intervals are by bootstrap over sessions.",
        "",
        *_table(["", "of test", shown[0], interval, shown[1], interval], rows),
        *_by_epoch_table(results, shown),
    ]


def _by_epoch_table(results: Results, shown: Sequence[str]) -> list[str]:
    """Renders mean loss and metrics of every epoch, of the runs that record them."""
    runs = [run for run in results["runs"] if run.get("by_epoch")]
    if not runs:
        return []
    epochs: dict[int, list[Results]] = {}
    for run in runs:
        for record in run["by_epoch"]:
            epochs.setdefault(record["epoch"], []).append(record)
    split = results["protocol"]["select_on"]
    columns = [] if split == "last" else [f"{split}/{metric}" for metric in shown]

    def mean(records, key):
        known = [record[key] for record in records if key in record]
        return statistics.fmean(known) if known else None

    rows = [
        [
            str(epoch),
            f"{mean(records, 'train/loss'):.4f}",
            *(_percent(mean(records, column)) for column in columns),
        ]
        for epoch, records in sorted(epochs.items())
    ]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    header = [
        "epoch" if len(runs) == len(results["runs"]) else f"epoch (seed {seeds})",
        "train loss",
        *(column.replace("/", " ") for column in columns),
    ]
    return ["", *_table(header, rows)]


def find(paths: Sequence[str]) -> list[Results]:
    """Reads results.json and baselines.json files, and those that folders hold."""
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = [path / FILE, path / BASELINES_FILE]
            found = [file for file in inside if file.is_file()]
            if not found:
                raise UserError(f"{path} holds neither {FILE} nor {BASELINES_FILE}")
            files += found
        else:
            files.append(path)
    return [read(file) for file in files]


def main() -> None:
    """Prints RESULTS.md of the files and folders that are given."""
    if len(sys.argv) < 2:
        sys.exit(f"usage: {__doc__.splitlines()[2].strip()}")
    try:
        print(document(find(sys.argv[1:])), end="")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
