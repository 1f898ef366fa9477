"""Reads and writes results.json and baselines.json, the records of runs.

Everything in results.json that depends on the clock has "second" in its key. The rest
is the same every time the same command runs on the same machine.
"""

import json
import os
import pathlib
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

import srgnn_jax
from srgnn_jax import config as config_lib
from srgnn_jax.data.counts import data_name
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import breakdown, metrics
from srgnn_jax.runs.progress import Progress

Results = dict[str, Any]

FILE, BASELINES_FILE = "results.json", "baselines.json"
# Keys that each of the two files must have.
_KEYS = (
    {"config", "data", "mean", "protocol", "runs", "standard_deviation"},
    {"data", "dataset", "test", "test_examples", "train_sessions"},
)
# How test is used, by `config.select_on`.
TEST = {
    "valid": "evaluated once, for the epoch that validation chose",
    "test": "evaluated every epoch, and it chose the epoch",
    "last": "evaluated once, after the last epoch",
}
# Flags that name places, and what a record has instead of them.
PLACES = {
    "workdir": [],
    "config.prepared_dir": [],
    "config.data_dir": ["--config.data_dir=DIR"],
    "config.warm_start": ["--config.warm_start=DIR"],
}
FIELDS_OF_PLACES = frozenset({"data_dir", "prepared_dir", "warm_start"})


def portable_command(arguments: Sequence[str]) -> str:
    """Returns the command line of `srgnn_jax.main` without machine-specific flags."""
    kept = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name in PLACES:
            if not equals:
                next(rest, None)
            kept += PLACES[name]
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
    """Returns the record of one seed: its progress and its results on test.

    The last three arguments are what `Evaluator.with_lists` returns.
    """
    items = splits.train_sessions.items
    clicks = np.bincount(items, minlength=progress.num_items)
    chosen = config.select_on == "valid" and progress.best_step
    return {
        "seed": config.seed,
        "best_epoch": progress.best_epoch,
        "best_step": progress.best_step,
        "epochs": progress.epoch,
        "steps": progress.step,
        "test": {k: v for k, v in test.items() if k != "examples_per_second"},
        "valid": progress.best_metrics if chosen else None,
        "test_recall_curve": metrics.recall_curve(rank),
        "test_lists": {
            "length": lists.shape[1],
            **breakdown.list_traits(lists, clicks),
        },
        "test_breakdown": breakdown.break_down(
            rank, splits.evaluated["test"], clicks, config.ks, splits.is_new
        ),
        "parents": progress.parents,
        "test_seconds": len(rank) / test["examples_per_second"],
    }


def summary(runs: Sequence[Results]) -> Results:
    """Returns the mean and standard deviation of each metric over the seeds."""
    found: Results = {"mean": {}, "standard_deviation": {}}
    for split in ("test", "test_each_best", "valid"):
        each = [run[split] for run in runs if run.get(split)]
        values = {name: [one[name] for one in each] for name in (each or [{}])[0]}
        found["mean"][split] = {k: statistics.fmean(v) for k, v in values.items()}
        found["standard_deviation"][split] = {
            k: statistics.stdev(v) for k, v in values.items() if len(v) > 1
        }
    return found


def merge(several: Sequence[Results]) -> Results:
    """Merges the results of runs that differ in their seeds."""
    runs = [run for results in several for run in results["runs"]]
    config = {**several[0]["config"], "runs": len(runs)}
    return {**several[0], "config": config, **summary(runs), "runs": runs}


def record(
    folder: pathlib.Path,
    config: ConfigDict,
    data: Dataset,
    splits: config_lib.Splits,
    command: str,
    run: Results,
) -> None:
    """Writes a workdir's results.json with one run, as `of_run` returned it."""
    epochs = [x for x in read_lines(folder / "metrics.jsonl") if "epoch" in x]
    run = {
        **run,
        "by_epoch": [
            {key: value for key, value in epoch.items() if "second" not in key}
            for epoch in epochs
        ],
        "train_seconds": train_seconds(epochs, len(splits.train)),
    }
    if config.select_on == "test":
        run["test_each_best"] = each_best(run["by_epoch"])
    fields = config_lib.to_dict(config)
    results = {
        "name": config.name,
        "command": command,
        "protocol": {
            "select_on": config.select_on,
            "select_by": config.select_by,
            "test": TEST[config.select_on],
        },
        "data": {
            "name": data_name(config.dataset, config.train_fraction),
            "fingerprint": data.fingerprint,
            "counts": {**data.counts, **splits.counts},
        },
        "config": {k: v for k, v in fields.items() if k not in FIELDS_OF_PLACES},
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
        **summary([run]),
        "runs": [run],
    }
    write(folder / FILE, results)


def train_seconds(epochs: Sequence[Results], examples: int) -> float:
    """Returns how long epochs of `examples` examples took, without evaluation.

    An epoch whose steps were all taken before the run was interrupted has no rate: it
    counts like the others. If no epoch has a rate, the result is 0.
    """
    rates = [epoch["train/examples_per_second"] for epoch in epochs]
    known = [rate for rate in rates if rate]
    return len(epochs) * examples / statistics.harmonic_mean(known) if known else 0.0


def each_best(epochs: Sequence[Results]) -> dict[str, float]:
    """Returns the best value of each test metric over the epochs.

    The papers' code reports these, which belong to no single epoch.
    """
    names = {key: None for epoch in epochs for key in epoch if key.startswith("test/")}
    return {
        name.removeprefix("test/"): max(epoch.get(name, 0.0) for epoch in epochs)
        for name in names
    }


def read_lines(path: pathlib.Path) -> list[Results]:
    """Reads the lines of a metrics.jsonl; returns none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read(path: pathlib.Path) -> Results:
    """Reads a results.json or a baselines.json."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path} ({reason(error)})") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error})") from error
    if isinstance(found, dict) and any(holds <= found.keys() for holds in _KEYS):
        return found
    raise UserError(f"{path} is neither a {FILE} nor a {BASELINES_FILE} of a run")


def write(path: pathlib.Path, results: Results) -> None:
    """Writes a results.json or a baselines.json, completely or not at all."""
    write_text(path, json.dumps(results, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, completely or not at all; raises UserError if it cannot."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({reason(error)})") from error
