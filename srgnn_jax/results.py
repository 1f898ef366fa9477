"""RESULTS.md of many runs: tables in Markdown, published figures among them.

    python -m srgnn_jax.results results/*.json > RESULTS.md

Arguments are results.json and baselines.json files, or folders that hold some.
"""

import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from srgnn_jax import config as config_lib
from srgnn_jax.configs import default
from srgnn_jax.data.counts import PUBLISHED_COUNTS
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import metrics, results_json
from srgnn_jax.evaluate.published import PUBLISHED, PUBLISHED_K
from srgnn_jax.evaluate.results_json import BASELINES_FILE, FILE, Results
from srgnn_jax.tables import markdown, percent

# By `config.select_on`: what chooses the epoch.
SPLITS = {"valid": "validation", "test": "test", "last": "no split: the last"}
# By what is summed up beside test: the label of its row.
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
# What the label of a run leaves out: what changes no number, and what its section, its
# other columns and the counts of its data say.
_NOT_IN_LABELS = (
    config_lib.MAY_DIFFER_IN_EVALUATION
    | results_json.FIELDS_OF_PLACES
    | {"dataset", "runs", "seed", "select_on", *config_lib.PREPARATION_FIELDS}
)


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
    counts = [results["data"]["counts"] for results in ours]
    k = metrics.usual_k([k for results in ours for k in results["config"]["ks"]])
    shown = [f"recall@{k}", f"mrr@{k}"]
    rows = [row for results in ours for row in _rows_of_run(results, shown)]
    for found in baselines:
        learnt = f"learnt from {found['train_sessions']:,} sessions, this code"
        for method, values in found["test"].items():
            reached = [percent(values.get(metric)) for metric in shown]
            took = _minutes([values.get("seconds")])
            rows.append([f"{method}, {learnt}", "", "", *reached, "", took])
    # Other counts than the published ones are of another preparation.
    tested = {one["test_examples"] for one in (*counts, *baselines)}
    published = {PUBLISHED_COUNTS.get(name, {}).get("test_examples")}
    if name in PUBLISHED and tested == published and k == PUBLISHED_K:
        rows += [
            [f"{model}, {source}", "", "", f"{recall:.2f}", f"{mrr:.2f}", "", ""]
            for model, recall, mrr, source in PUBLISHED[name]
        ]
    counted = [
        f"{counts[0][key]:,} {key.replace('_', ' ')}"
        for key in ("train_examples", "test_examples", "items")
        if counts and key in counts[0]
    ]
    lines = ["", f"## {TITLES.get(name, name)}"]
    if counted:
        lines += ["", ", ".join(counted) + "."]
    header = ["", "epoch chosen on", "seeds", *shown, "epoch", "training, a seed"]
    lines += ["", *markdown(header, rows)]
    for results in ours:
        lines += _details(results, shown)
    for found in baselines:
        lines += ["", "Baselines:", *_command(found)]
    return lines


def _changes(results: Results) -> dict[str, Any]:
    """Returns the fields of a config that change numbers and are not the default's."""
    usual = config_lib.to_dict(default.get_config())
    return {
        field: value
        for field, value in results["config"].items()
        if field not in _NOT_IN_LABELS and usual.get(field, value) != value
    }


def _label(results: Results) -> str:
    changes = _changes(results).items()
    return ", ".join(["SR-GNN", *(f"{field}={value}" for field, value in changes)])


def _rows_of_run(results: Results, shown: Sequence[str]) -> list[list[str]]:
    """Renders what the seeds of a run reached on test, and what is told beside it."""

    def reached(split):
        means, deviations = results["mean"][split], results["standard_deviation"][split]
        return [percent(means.get(name), deviations.get(name)) for name in shown]

    runs = results["runs"]
    about = [SPLITS[results["protocol"]["select_on"]], str(len(runs))]
    epochs = [f"{run['best_epoch']} of {run['epochs']}" for run in runs]
    best = ", ".join(epochs[:1] if len(set(epochs)) == 1 else epochs)
    took = _minutes([run.get("train_seconds") for run in runs])
    label = f"**{_label(results)}**, this code"
    others = [
        [said, *about, *reached(other), "", ""]
        for other, said in OTHER_ROWS.items()
        if results["mean"].get(other)
    ]
    return [[label, *about, *reached("test"), best, took], *others]


def _minutes(seconds: Sequence[float | None]) -> str:
    known = [value for value in seconds if value]
    if not known:
        return ""
    mean = statistics.fmean(known)
    return f"{mean / 60:.0f} min" if mean >= 90 else f"{mean:.0f} s"


def _command(results: Results) -> list[str]:
    command = results.get("command")
    return ["", f"    {command}"] if command else []


def _details(results: Results, shown: Sequence[str]) -> list[str]:
    """Renders what made the row of a run, its breakdown and its epochs."""
    runs, name = results["runs"], results["data"]["name"]
    machine, versions = results["machine"], results["versions"]
    lists = runs[0]["test_lists"]
    split = SPLITS[results["protocol"]["select_on"]]
    return [
        "",
        f"### {TITLES.get(name, name)}: {_label(results)}, epoch chosen on {split}",
        *_command(results),
        "",
        f"jax {versions['jax']} on {machine['devices']}, {machine['cpu_cores']} CPU "
        f"cores; the evaluation on test takes "
        f"{_minutes([run['test_seconds'] for run in runs])}.",
        f"The lists of {lists['length']} of seed {runs[0]['seed']} hold "
        f"{100 * lists['coverage']:.1f}% of all items; a listed item has "
        f"{lists['popularity']:,.1f} clicks in training on average.",
        *_breakdown(runs, shown),
        *_by_epoch(results, shown),
    ]


def _breakdown(runs: Sequence[Results], shown: Sequence[str]) -> list[str]:
    """Renders the metrics of each group.

    One seed has its intervals beside it, several have their standard deviation: the
    interval of one seed says nothing of the mean of several.
    """
    first = runs[0]["test_breakdown"]
    size = first["all"]["all"]["examples"]

    def cells(each, metric):
        if metric not in each[0]:
            return [""] if len(each) > 1 else ["", ""]
        values = [one[metric] for one in each]
        if len(each) > 1:
            return [percent(statistics.fmean(values), statistics.stdev(values))]
        low, high = each[0]["interval"][metric]
        return [percent(values[0]), f"{percent(low)} to {percent(high)}"]

    rows = []
    for trait, parts in first.items():
        for group, one in parts.items():
            each = [run["test_breakdown"][trait][group] for run in runs]
            label = "all examples" if trait == "all" else f"{trait}: {group}"
            row = [label, f"{100 * one['examples'] / size:.1f}%"]
            rows.append(row + [cell for m in shown for cell in cells(each, m)])
    if len(runs) > 1:
        said = f"Means of {len(runs)} seeds ± their standard deviation."
        header = ["", "of test", *shown]
    else:
        said = "Intervals are by bootstrap over sessions."
        interval = f"95%, seed {runs[0]['seed']}"
        header = ["", "of test", shown[0], interval, shown[1], interval]
    return [said, "", *markdown(header, rows)]


def _by_epoch(results: Results, shown: Sequence[str]) -> list[str]:
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
            *(percent(mean(records, column)) for column in columns),
        ]
        for epoch, records in sorted(epochs.items())
    ]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    header = [
        "epoch" if len(runs) == len(results["runs"]) else f"epoch (seed {seeds})",
        "train loss",
        *(column.replace("/", " ") for column in columns),
    ]
    return ["", *markdown(header, rows)]


def find(paths: Sequence[str]) -> list[Results]:
    """Reads results.json and baselines.json files, and those that folders hold."""
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        inside = [path / FILE, path / BASELINES_FILE] if path.is_dir() else [path]
        found = [file for file in inside if file.is_file() or file == path]
        if not found:
            raise UserError(f"{path} holds neither {FILE} nor {BASELINES_FILE}")
        files += found
    return [results_json.read(file) for file in files]


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
