"""RESULTS.md of many runs: tables in Markdown, published figures among them.

    python -m srgnn_jax.results results/*.json > RESULTS.md

Arguments are results.json and baselines.json files, or folders that hold some.
"""

import pathlib
import statistics
import sys
from collections.abc import Iterator, Sequence

import polars as pl

from srgnn_jax import config as config_lib
from srgnn_jax.configs import default
from srgnn_jax.data.counts import PUBLISHED_COUNTS
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import metrics, results_json
from srgnn_jax.evaluate.published import PUBLISHED, PUBLISHED_K, Figure
from srgnn_jax.evaluate.results_json import BASELINES_FILE, FILE, Results
from srgnn_jax.tables import markdown, percent

# What tells one data set of a name from another, and a section's first line.
COUNTS = "train_examples", "test_examples", "items"
# By `config.select_on`: what chooses the epoch.
SPLITS = {"valid": "validation", "test": "test", "last": "no split: the last"}
TITLES = {
    "diginetica": "Diginetica",
    "yoochoose_1_64": "Yoochoose 1/64",
    "yoochoose_1_4": "Yoochoose 1/4",
    "retailrocket": "RetailRocket",
    "tmall": "Tmall",
    "nowplaying": "Nowplaying",
    "gowalla": "Gowalla",
    "lastfm": "LastFM",
    "diginetica_811": "Diginetica, sessions split 8:1:1",
    "yoochoose_811": "Yoochoose, sessions split 8:1:1",
    "retailrocket_811": "RetailRocket, sessions split 8:1:1",
    "tmall_811": "Tmall, sessions split 8:1:1",
    "lastfm_811": "LastFM, sessions split 8:1:1",
    "synthetic": "Made clicks",
}
# What the label of a run leaves out: what changes no number, and what its section, its
# other columns and the counts of its data say.
_NOT_IN_LABELS = (
    (config_lib.MAY_DIFFER_IN_EVALUATION - config_lib.AFTER_TRAINING)
    | results_json.FIELDS_OF_PLACES
    | {"dataset", "runs", "seed", "select_on", *config_lib.PREPARATION_FIELDS}
)
HEAD = """\
# Results

Recall (the papers' P@20) and MRR on test, in percent; for several seeds the \
mean ± the standard deviation. One epoch of a run serves all metrics, and each row \
says which split chose it, if any did. Where that was test, what the papers' codes \
print stands below: each metric at its own best epoch; where it was validation, what \
that epoch reached there. Published figures that another paper quotes are marked 2nd; \
their epoch is by the default of the public code, as far as it was read. Written by

    python -m srgnn_jax.results results/*.json > RESULTS.md"""


def document(stored: Sequence[Results]) -> str:
    """Renders results.json and baselines.json files, in any order, as RESULTS.md."""
    by_data: dict[tuple, list[Results]] = {}
    # What is read in another way is the same if it has the same counts.
    known = {
        one["data"]["fingerprint"]: (
            one["data"]["name"],
            *(one["data"]["counts"][count] for count in COUNTS),
        )
        for one in stored
        if "runs" in one
    }
    for one in stored:
        data = one["data"]["fingerprint"] if "runs" in one else one["data"]
        key = known.get(data, (one.get("dataset", ""), data))
        by_data.setdefault(key, []).append(one)
    keys = sorted(by_data, key=lambda key: ([*TITLES, key[0]].index(key[0]), key))
    blocks = [block for key in keys for block in _section(key[0], by_data[key])]
    return "\n\n".join([HEAD, *filter(str.strip, blocks)]) + "\n"


def _section(name: str, stored: Sequence[Results]) -> Iterator[str]:
    """Renders the runs and the baselines of one data set, block by block."""

    def place(run):
        return len(_changes(run)), run["protocol"]["select_on"], run["name"]

    ours = sorted((found for found in stored if "runs" in found), key=place)
    baselines = [found for found in stored if "runs" not in found]
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
    # Other counts than the published ones, if these are known, are of another
    # preparation.
    tested = {one["test_examples"] for one in (*counts, *baselines)}
    published = PUBLISHED_COUNTS.get(name, {}).get("test_examples")
    if published in (None, *tested) and len(tested) == 1 and k == PUBLISHED_K:
        rows += [_published_row(figure) for figure in PUBLISHED.get(name, ())]
    yield f"## {TITLES.get(name, name)}"
    if counts:
        yield ", ".join(f"{counts[0][x]:,} {x.replace('_', ' ')}" for x in COUNTS) + "."
    header = ["", "epoch chosen on", "seeds", *shown, "epoch", "training, a seed"]
    yield markdown(header, rows)
    for results in ours:
        yield from _details(results, shown)
    for found in baselines:
        yield "Baselines:"
        yield f"    {found.get('command', '')}"


def _published_row(figure: Figure) -> list[str]:
    label = f"{figure.model}, {figure.source}" + ", 2nd" * figure.second_hand
    pair = figure.recall, figure.mrr
    reached = ["" if value is None else f"{value:.2f}" for value in pair]
    return [label, figure.chosen_on, "", *reached, "", ""]


def _changes(results: Results) -> list[str]:
    """Returns the fields of a config that change numbers and are not the default's."""
    usual = config_lib.to_dict(default.get_config())
    return [
        f"{field}={value}"
        for field, value in results["config"].items()
        if field not in _NOT_IN_LABELS and usual.get(field, value) != value
    ]


def _label(results: Results) -> str:
    return ", ".join(["SR-GNN", *_changes(results)])


def _rows_of_run(results: Results, shown: Sequence[str]) -> Iterator[list[str]]:
    """Renders what the seeds of a run reached on test, and what is told beside it."""
    runs = results["runs"]
    epochs = [f"{run['best_epoch']} of {run['epochs']}" for run in runs]
    best = ", ".join(epochs[:1] if len(set(epochs)) == 1 else epochs)
    took = _minutes([run.get("train_seconds") for run in runs])
    chosen = SPLITS[results["protocol"]["select_on"]]
    networks = [{"test": run["joined"]["network"]} for run in runs if "joined" in run]
    alone = results_json.summary(networks)
    for found, split, label, *others in (
        (results, "test", f"**{_label(results)}**, this code", best, took),
        (results, "test_each_best", "the same, each metric at its best", "", ""),
        (alone, "test", "the same, the network alone", "", ""),
        (results, "valid", "the same, on validation", "", ""),
    ):
        if means := found["mean"].get(split):
            deviations = found["standard_deviation"][split]
            reached = [percent(means.get(x), deviations.get(x)) for x in shown]
            yield [label, chosen, str(len(runs)), *reached, *others]


def _minutes(seconds: Sequence[float | None]) -> str:
    known = [value for value in seconds if value]
    if not known:
        return ""
    mean = statistics.fmean(known)
    return f"{mean / 60:.0f} min" if mean >= 90 else f"{mean:.0f} s"


def _details(results: Results, shown: Sequence[str]) -> Iterator[str]:
    """Renders what made the row of a run, its breakdown and its epochs."""
    runs, name = results["runs"], results["data"]["name"]
    machine, lists = results["machine"], runs[0]["test_lists"]
    split = SPLITS[results["protocol"]["select_on"]]
    yield f"### {TITLES.get(name, name)}: {_label(results)}, epoch chosen on {split}"
    yield f"    {results['command']}"
    groups = "Intervals are by bootstrap over sessions."
    if len(runs) > 1:
        groups = f"Means of {len(runs)} seeds ± their standard deviation."
    if "joined" in runs[0]:
        yield _joined(results)
    yield (
        f"jax {results['versions']['jax']} on {machine['devices']}, "
        f"{machine['cpu_cores']} CPU cores; the evaluation on test takes "
        f"{_minutes([run['test_seconds'] for run in runs])}.\n"
        f"The lists of {lists['length']} of seed {runs[0]['seed']} hold "
        f"{100 * lists['coverage']:.1f}% of all items; a listed item has "
        f"{lists['popularity']:,.1f} clicks in training on average.\n{groups}"
    )
    yield _breakdown(runs, shown)
    yield from _by_epoch(results, shown)


def _joined(results: Results) -> str:
    """Renders how much what joins weighs."""
    runs, config = results["runs"], results["config"]
    weights, again = (
        ", ".join(str(run["joined"][name]) for run in runs)
        for name in ("weight", "repeats_weight")
    )
    is_given = config["neighbours_weight"] or config["repeats_weight"]
    chosen = "" if is_given else ", chosen on validation"
    return f"{config['neighbours']} weighs {weights}, repeats {again}{chosen}."


def _breakdown(runs: Sequence[Results], shown: Sequence[str]) -> str:
    """Renders the metrics of each group.

    One seed has its intervals beside it, several have their standard deviation: the
    interval of one seed says nothing of the mean of several.
    """
    first = runs[0]["test_breakdown"]
    size, several = first["all"]["all"]["examples"], len(runs) > 1
    rows = []
    for trait, group in [(t, g) for t in first for g in first[t]]:
        each = [run["test_breakdown"][trait][group] for run in runs]
        label = "all examples" if trait == "all" else f"{trait}: {group}"
        row = [label, f"{100 * each[0]['examples'] / size:.1f}%"]
        for metric in shown:
            values = [one[metric] for one in each if metric in one]
            if not values:
                row += [""] if several else ["", ""]
            elif several:
                row.append(percent(statistics.fmean(values), statistics.stdev(values)))
            else:
                low, high = each[0]["interval"][metric]
                row += [percent(values[0]), f"{percent(low)} to {percent(high)}"]
        rows.append(row)
    beside = [] if several else [f"95%, seed {runs[0]['seed']}"]
    header = ["", "of test", shown[0], *beside, shown[1], *beside]
    return markdown(header, rows)


def _by_epoch(results: Results, shown: Sequence[str]) -> Iterator[str]:
    """Renders mean loss and metrics of every epoch, of the runs that record them."""
    runs = [run for run in results["runs"] if run.get("by_epoch")]
    split = results["protocol"]["select_on"]
    columns = [] if split == "last" else [f"{split}/{metric}" for metric in shown]
    types = {"epoch": pl.Int64, **dict.fromkeys(["train/loss", *columns], pl.Float64)}
    records = [record for run in runs for record in run["by_epoch"]]
    means = pl.from_dicts(records, types).group_by("epoch").mean().sort("epoch")
    rows = [
        [str(epoch), f"{loss:.4f}", *map(percent, reached)]
        for epoch, loss, *reached in means.rows()
    ]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    epoch = "epoch" if len(runs) == len(results["runs"]) else f"epoch (seed {seeds})"
    if runs:
        names = (column.replace("/", " ") for column in columns)
        yield markdown([epoch, "train loss", *names], rows)


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
