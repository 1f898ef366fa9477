"""Compares epochs of ml-100k with RecBole's, in RecBole's configuration, on the CPU.

    python -m benchmarks.against_recbole --epochs=2 --rounds=3

The first run installs RecBole 1.2.1 into its own environment, .venv-recbole, as
`make parity` does. In each round, RecBole (see `benchmarks.recbole_epochs`) and then
`srgnn_jax.main` with configs/recbole_ml100k.py train the same epochs with a validation
after each, and evaluate on test, each in its own process. It measures

- the whole process: imports, reading and preparing the raw file, compilation, training,
  evaluation. Nothing prepared or compiled is kept from one round to the next;
- the training of the first epoch, which on our side includes compilation;
- the training of a later epoch;
- the validation after a later epoch.

Losses and metrics are shown as evidence that both train the same model.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from benchmarks import common
from tests import recreate_golden


class Measured(NamedTuple):
    """Measurements of one process.

    Attributes:
      process: seconds from start to end.
      first: seconds of training in the first epoch.
      later: seconds of training in a later epoch, on average.
      valid: seconds of the validation after a later epoch, on average.
      loss: mean training loss of the last epoch.
      recall: recall@10 on test, a fraction.
      mrr: mrr@10 on test, a fraction.
    """

    process: float
    first: float
    later: float
    valid: float
    loss: float
    recall: float
    mrr: float


ROWS = {
    "process": "process, start to end, s",
    "first": "training, first epoch, s",
    "later": "training, a later epoch, s",
    "valid": "validation after it, s",
    "loss": "loss of the last epoch",
    "recall": "recall@10 on test",
    "mrr": "mrr@10 on test",
}
TIMES = ("process", "first", "later", "valid")


def measured(
    seconds: float,
    records: Sequence[Mapping[str, float]],
    counts: Mapping[str, int],
) -> Measured:
    """Reads the figures from the records of our run.

    Args:
      seconds: of the whole process.
      records: as in metrics.jsonl; at least two epochs.
      counts: as in counts.json.
    """
    epochs = [record for record in records if "epoch" in record]
    train, valid = (
        [
            counts[f"{split}_examples"] / x[f"{split}/examples_per_second"]
            for x in epochs
        ]
        for split in ("train", "valid")
    )
    (test,) = (record for record in records if "test/mrr@10" in record)
    return Measured(
        seconds,
        train[0],
        statistics.mean(train[1:]),
        statistics.mean(valid[1:]),
        epochs[-1]["train/loss"],
        test["test/recall@10"],
        test["test/mrr@10"],
    )


def train_here(work: pathlib.Path, epochs: int) -> Measured:
    """Runs our code in an empty folder."""
    (data,) = recreate_golden.ENVIRONMENT.glob(
        "lib/*/*/recbole/dataset_example/ml-100k"
    )
    seconds, records = common.train_here(
        work / "run",
        [
            f"--config={common.ROOT / 'configs' / 'recbole_ml100k.py'}",
            f"--config.data_dir={data}",
            f"--config.prepared_dir={work / 'prepared'}",
            f"--config.epochs={epochs}",
        ],
        {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled")},
    )
    counts = json.loads((work / "run" / "counts.json").read_text())
    return measured(seconds, records, counts)


def train_recbole(work: pathlib.Path, epochs: int) -> tuple[Measured, dict]:
    """Runs RecBole in an empty folder; also returns everything it reported."""
    seconds, _ = common.run_process(
        [
            *(recreate_golden.PYTHON, "-W", "ignore"),
            *("-m", "benchmarks.recbole_epochs", work, str(epochs)),
        ],
        {"PYTHONPATH": str(common.ROOT)},
        # RecBole writes logs into its working directory.
        work,
    )
    found = json.loads((work / "recbole.json").read_text())
    train, valid = found["train_seconds"], found["valid_seconds"]
    return Measured(
        seconds,
        train[0],
        statistics.mean(train[1:]),
        statistics.mean(valid[1:]),
        found["loss"],
        found["recall"],
        found["mrr"],
    ), found


def table(
    recbole: Sequence[Measured], ours: Sequence[Measured]
) -> tuple[dict[str, dict[str, float]], list[dict[str, object]]]:
    """Returns the ratios, above 1 if ours is faster, and the rows of the table."""
    rows: list[dict[str, object]] = []
    found = {}
    for field, what in ROWS.items():
        theirs, here = ([getattr(x, field) for x in runs] for runs in (recbole, ours))
        row: dict[str, object] = {
            "": what,
            "RecBole": statistics.median(theirs),
            "ours": statistics.median(here),
            "times faster": "",
            "least": "",
            "greatest": "",
        }
        if field in TIMES:
            found[field] = common.ratios(theirs, here)
            row |= zip(
                ("times faster", "least", "greatest"),
                found[field].values(),
                strict=True,
            )
        rows.append(row)
    return found, rows


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--epochs", type=int, default=2, help="in each round; 2 or more"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error("--epochs must be at least 2: the first is counted separately")
    jax.config.update("jax_platforms", "cpu")
    load = common.load_of_others()
    recreate_golden.install_recbole()

    recbole: list[Measured] = []
    ours: list[Measured] = []
    for i in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            theirs, report = train_recbole(pathlib.Path(name), arguments.epochs)
        with tempfile.TemporaryDirectory() as name:
            here = train_here(pathlib.Path(name), arguments.epochs)
        recbole.append(theirs)
        ours.append(here)
        print(
            f"round {i + 1}: {theirs.process / here.process:.2f} times faster from "
            f"start to end, {theirs.later / here.later:.2f} in a later epoch",
            file=sys.stderr,
            flush=True,
        )
    found, rows = table(recbole, ours)
    common.show(
        "against_recbole",
        {
            "arguments": vars(arguments),
            "recbole_says": report,
            "load_before": load,
            "times_faster": found,
            "recbole": [x._asdict() for x in recbole],
            "ours": [x._asdict() for x in ours],
        },
        rows,
    )


if __name__ == "__main__":
    main()
