"""Compares training and evaluation throughput with a rewrite of the authors' code.

    python -m benchmarks.against_original --data_dir=DIR
    python -m benchmarks.against_original

DIR holds all_train_seq.txt and test.txt, pickles from a source that you trust. Without
it, synthetic data of Diginetica's size is used. Needs torch: `make .venv/torch`.

In each round, `benchmarks.original` and then `srgnn_jax.main` train on the same
examples for the same number of steps, and evaluate the same test examples, each in its
own process, on the CPU. It measures

- training: examples per second, from the indices of a batch to the updated weights,
  over all steps except the first window, which on our side includes compilation;
- evaluation: examples per second, from the indices to the metrics, again without
  compilation, both as after each epoch and as at the end of a run. At the end, our side
  also lists the 20 best items of each example, which the other code always finds;
- the whole process, including reading the data and compiling (on our side, data
  prepared earlier, in an uncounted run).

Losses and metrics are shown as evidence that both train the same model.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import pickle
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import common


class Measured(NamedTuple):
    """Measurements of one process.

    Attributes:
      training: examples per second.
      evaluation: examples per second, as after each epoch.
      at_the_end: the same, as at the end of a run.
      seconds: of the whole process.
      loss: mean of the last window of steps.
      recall: recall@20 on test, a fraction.
      mrr: mrr@20 on test, a fraction.
    """

    training: float
    evaluation: float
    at_the_end: float
    seconds: float
    loss: float
    recall: float
    mrr: float


def measured(
    seconds: float,
    records: Sequence[Mapping[str, float]],
    evaluation: float | None = None,
) -> Measured:
    """Reads the figures from the records of a run that stopped within its first epoch.

    Args:
      seconds: of the whole process.
      records: as in metrics.jsonl.
      evaluation: examples per second after an epoch; None: as at the end.

    Raises:
      ValueError: there are fewer than two training windows, or not one evaluation on
        test.
    """
    windows = [record for record in records if "train/examples_per_second" in record]
    tests = [record for record in records if "test/examples_per_second" in record]
    if len(windows) < 2 or len(tests) != 1 or any("epoch" in x for x in windows):
        raise ValueError(
            f"{len(windows)} training records and {len(tests)} test records are not "
            "those of a run within one epoch"
        )
    # All windows have the same number of examples.
    rates = [window["train/examples_per_second"] for window in windows[1:]]
    at_the_end = tests[0]["test/examples_per_second"]
    return Measured(
        statistics.harmonic_mean(rates),
        evaluation or at_the_end,
        at_the_end,
        seconds,
        windows[-1]["train/loss"],
        tests[0]["test/recall@20"],
        tests[0]["test/mrr@20"],
    )


def write_data(
    folder: pathlib.Path,
    sessions: list[list[int]],
    prefixes: list[list[int]],
    targets: list[int],
) -> None:
    """Writes the two files in the published format."""
    folder.mkdir()
    for name, content in (
        ("all_train_seq.txt", sessions),
        ("test.txt", (prefixes, targets)),
    ):
        with (folder / name).open("wb") as file:
            pickle.dump(content, file)


def made_data(
    num_items: int, num_examples: int, num_test: int
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Draws training sessions, test prefixes and test targets.

    If the number of prefixes per session is geometric, so are the prefix lengths, with
    the same mean.

    Args:
      num_items: item rows, including the padding row.
      num_examples: approximate number of training examples.
      num_test: test examples.
    """

    def clicks(count: int, seed: int) -> list[list[int]]:
        drawn = common.made_examples(num_items, count, seed=seed)
        return [
            drawn.items[start : start + length + 1].tolist()
            for start, length in zip(drawn.starts, drawn.lengths, strict=True)
        ]

    test = clicks(num_test, seed=1)
    return (
        clicks(round(num_examples / common.MEAN_LENGTH), seed=0),
        [session[:-1] for session in test],
        [session[-1] for session in test],
    )


def train_here(
    data: pathlib.Path, work: pathlib.Path, name: str, arguments: argparse.Namespace
) -> Measured:
    """Runs our code; `work` holds prepared data and a workdir `name` for each run."""
    seconds, records = common.train_here(
        work / name,
        [
            f"--config={common.ROOT / 'configs' / 'diginetica.py'}",
            f"--config.data_dir={data}",
            f"--config.prepared_dir={work / 'prepared'}",
            # Hold out no session: the other code trains on all of them.
            "--config.select_on=test",
            f"--config.embedding_size={arguments.embedding_size}",
            f"--config.batch_size={arguments.batch_size}",
            f"--config.max_steps={arguments.steps}",
            f"--config.log_every_steps={arguments.window}",
        ],
    )
    module = [sys.executable, "-m", "benchmarks.evaluate", f"--workdir={work / name}"]
    _, printed = common.run_process(module, {"JAX_PLATFORMS": "cpu"})
    return measured(seconds, records, json.loads(printed)["examples_per_second"])


def train_original(data: pathlib.Path, arguments: argparse.Namespace) -> Measured:
    """Runs the rewrite of the authors' code."""
    names = ("steps", "window", "embedding_size", "batch_size")
    flags = [f"--{name}={getattr(arguments, name)}" for name in names]
    module = [sys.executable, "-m", "benchmarks.original", f"--data_dir={data}"]
    seconds, printed = common.run_process([*module, *flags])
    return measured(seconds, [json.loads(line) for line in printed.splitlines()])


def table(
    original: Sequence[Measured], ours: Sequence[Measured]
) -> tuple[dict[str, dict[str, float]], list[dict[str, object]]]:
    """Returns the ratios, above 1 if ours is faster, and the rows of the table."""
    rows: list[dict[str, object]] = []
    found = {}
    for field, what in (
        ("training", "training, examples/s"),
        ("evaluation", "evaluation, examples/s"),
        ("at_the_end", "evaluation at the end, examples/s"),
        ("seconds", "whole process, s"),
    ):
        theirs, here = ([getattr(x, field) for x in runs] for runs in (original, ours))
        less_is_faster = field == "seconds"
        found[field] = (
            common.ratios(theirs, here)
            if less_is_faster
            else common.ratios(here, theirs)
        )
        rows.append(
            {
                "": what,
                "PyTorch": round(statistics.median(theirs)),
                "ours": round(statistics.median(here)),
                "times faster": found[field]["median"],
                "least": found[field]["least"],
                "greatest": found[field]["greatest"],
            }
        )
    for field, what in (
        ("loss", "loss of the last steps"),
        ("recall", "recall@20 after them"),
        ("mrr", "mrr@20 after them"),
    ):
        rows.append(
            {
                "": what,
                "PyTorch": statistics.median(getattr(x, field) for x in original),
                "ours": statistics.median(getattr(x, field) for x in ours),
            }
        )
    return found, rows


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=pathlib.Path)
    parser.add_argument("--items", type=int, default=43_098, help="of synthetic data")
    parser.add_argument("--examples", type=int, default=719_470, help="if synthetic")
    parser.add_argument(
        "--eval_examples",
        type=int,
        default=60_858,
        help="test examples to evaluate, a random sample if there are more",
    )
    parser.add_argument("--embedding_size", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--window",
        type=int,
        default=100,
        help="steps per record; the first record is not counted",
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.steps % arguments.window or arguments.steps < 2 * arguments.window:
        parser.error("--steps must be a multiple of --window, and at least twice it")
    if importlib.util.find_spec("torch") is None:
        sys.exit("torch is missing: install it with `make .venv/torch`")
    # Both run on the CPU; this process only measures.
    jax.config.update("jax_platforms", "cpu")
    load = common.load_of_others()

    if arguments.data_dir is None:
        sessions, prefixes, targets = made_data(
            arguments.items, arguments.examples, arguments.eval_examples
        )
    else:
        from benchmarks.original import read_pickle

        sessions = read_pickle(arguments.data_dir / "all_train_seq.txt")
        prefixes, targets = read_pickle(arguments.data_dir / "test.txt")
    if arguments.eval_examples < len(targets):
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(targets), arguments.eval_examples, replace=False)
        prefixes = [prefixes[i] for i in chosen]
        targets = [targets[i] for i in chosen]

    original: list[Measured] = []
    ours: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        data = work / "data"
        write_data(data, sessions, prefixes, targets)
        train_here(data, work, "preparation", arguments)
        for i in range(arguments.rounds):
            original.append(train_original(data, arguments))
            ours.append(train_here(data, work, f"round {i}", arguments))
            print(
                f"round {i + 1}: {ours[-1].training / original[-1].training:.2f} times "
                "faster in training, "
                f"{ours[-1].evaluation / original[-1].evaluation:.2f} in evaluation",
                file=sys.stderr,
                flush=True,
            )
    found, rows = table(original, ours)
    arguments.data_dir = arguments.data_dir and arguments.data_dir.name
    common.show(
        "against_original",
        {
            "arguments": vars(arguments),
            "torch": importlib.metadata.version("torch"),
            "load_before": load,
            "times_faster": found,
            "original": [x._asdict() for x in original],
            "ours": [x._asdict() for x in ours],
        },
        rows,
    )


if __name__ == "__main__":
    main()
