"""Compares a night's training from yesterday's model with training from scratch.

    python -m benchmarks.warm_start
    python -m benchmarks.warm_start --data_dir=DIR --epochs=4 --workdir=runs/warm

DIR holds the published pickles, all_train_seq.txt and test.txt, with sessions in order
of time; `--last` is the share of the training sessions, from the end, to use. Without
DIR, clicks are synthetic, with items that come and go. Yesterday's run trains on all
but the newest sessions. Today, one run starts from scratch, on all sessions; others
start from yesterday's run, on a window of the newest sessions. All are evaluated on the
same test split. Flags that this script does not know, such as --config.batch_size=512,
are passed to the training runs. Runs that the workdir already holds are not repeated.
"""

import argparse
import contextlib
import itertools
import pathlib
import pickle
import sys
import tempfile

import numpy as np

from benchmarks import common
from srgnn_jax.data.numpy_pickle import NumpyUnpickler
from srgnn_jax.data.sources import pickles
from srgnn_jax.evaluate import results_json
from srgnn_jax.serve.promote import compare

RULES = tuple(itertools.product(("uniform", "neighbours"), ("anew", "go_on")))

Sequences = list[list[int]]


def made(sessions: int, items: int, seed: int = 0) -> tuple[Sequences, Sequences]:
    """Draws training and test sessions, in order of time.

    Mostly, an item is followed by one of the next two. A fifth of the items is on offer
    at a time; items are numbered in order of appearance.
    """
    rng = np.random.default_rng(seed)
    offered = items // 5
    made, numbers = [], {}
    for first in np.linspace(0, items - offered, sessions).astype(int):
        item = int(rng.integers(offered))
        clicks = []
        for _ in range(int(rng.integers(2, 7))):
            clicks.append(numbers.setdefault(first + item, len(numbers) + 1))
            item = (item + int(rng.choice([1, 1, 1, 2, 2, 7]))) % offered
        made.append(clicks)
    cut = sessions * 9 // 10
    train, test = made[:cut], made[cut:]
    known = {item for clicks in train for item in clicks}
    test = [[item for item in clicks if item in known] for clicks in test]
    return train, [clicks for clicks in test if len(clicks) > 1]


def read(
    folder: pathlib.Path, last: float
) -> tuple[Sequences, tuple[Sequences, list[int]]]:
    """Reads the published pickles, and renumbers the items of the last sessions."""
    train, (prefixes, targets) = (
        NumpyUnpickler((folder / name).read_bytes()).load() for name in pickles.FILES
    )
    train = train[round(len(train) * (1 - last)) :]
    numbers: dict[int, int] = {}
    train = [[numbers.setdefault(i, len(numbers) + 1) for i in s] for s in train]
    known = [
        ([numbers[i] for i in prefix if i in numbers], numbers[target])
        for prefix, target in zip(prefixes, targets, strict=True)
        if target in numbers
    ]
    known = [(prefix, target) for prefix, target in known if prefix]
    return train, ([prefix for prefix, _ in known], [target for _, target in known])


def pairs(sessions: Sequences) -> tuple[Sequences, list[int]]:
    """Returns the prefixes and targets of sessions."""
    spelled = [(s[:n], s[n]) for s in sessions for n in range(1, len(s))]
    return [prefix for prefix, _ in spelled], [target for _, target in spelled]


def write(folder: pathlib.Path, train: Sequences, test) -> str:
    """Writes pickles as the published code does and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, what in zip(pickles.FILES, (train, test), strict=True):
        (folder / name).write_bytes(pickle.dumps(what))
    return str(folder)


def write_days(
    folder: pathlib.Path, train: Sequences, test, new: float, window: float
) -> dict[str, str]:
    """Writes the data of yesterday, today and today's window into a folder each."""
    cut = round(len(train) * (1 - new))
    known = {item for session in train[:cut] for item in session}
    # Nothing is chosen on yesterday's test, but there must be one.
    next_ones = [[item for item in s if item in known] for s in train[cut:][:500]]
    yesterday_test = pairs([s for s in next_ones if len(s) > 1])
    start = round(len(train) * (1 - window))
    return {
        "yesterday": write(folder / "yesterday", train[:cut], yesterday_test),
        "today": write(folder / "today", train, test),
        "window": write(folder / "window", train[start:], test),
    }


def train(workdir: pathlib.Path, data: str, epochs: int, flags) -> float:
    """Trains, unless already done; returns the seconds that the steps took."""
    if not (workdir / results_json.FILE).exists():
        common.train_here(
            workdir,
            [
                *("--config=diginetica", f"--config.epochs={epochs}"),
                "--config.select_on=last",
                f"--config.data_dir={data}",
                f"--config.prepared_dir={workdir.parent / 'prepared'}",
                *flags,
            ],
        )
    (run,) = results_json.read(workdir / results_json.FILE)["runs"]
    return run["train_seconds"]


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--last", type=float, default=1.0)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--warm_epochs", type=int, default=1)
    parser.add_argument("--new", type=float, default=0.05)
    parser.add_argument("--window", type=float, default=0.25)
    parser.add_argument("--workdir", default="")
    arguments, flags = parser.parse_known_args()
    load = common.load_of_others()
    with contextlib.ExitStack() as stack:
        folder = arguments.workdir or stack.enter_context(tempfile.TemporaryDirectory())
        folder = pathlib.Path(folder).absolute()
        if arguments.data_dir:
            sessions, test = read(pathlib.Path(arguments.data_dir), arguments.last)
        else:
            sessions, test = made(arguments.sessions, arguments.items)
            test = pairs(test)
        data = write_days(
            folder / "data", sessions, test, arguments.new, arguments.window
        )
        runs = {"yesterday": folder / "yesterday", "nothing": folder / "nothing"}
        seconds = {
            "yesterday": train(
                runs["yesterday"], data["yesterday"], arguments.epochs, flags
            ),
            "nothing": train(runs["nothing"], data["today"], arguments.epochs, flags),
        }
        for (rule, schedule), epochs in itertools.product(
            RULES, (0, arguments.warm_epochs)
        ):
            if not epochs and schedule == "go_on":
                continue
            name = f"{rule}, {schedule}" if epochs else f"{rule}, no epoch"
            runs[name] = folder / name.replace(", ", "_").replace(" ", "_")
            begins = [
                f"--config.warm_start={runs['yesterday']}",
                f"--config.new_items={rule}",
                f"--config.warm_start_schedule={schedule}",
            ]
            seconds[name] = train(runs[name], data["window"], epochs, [*flags, *begins])
        rows = []
        # All are compared with the same run, whose test split also defines the groups.
        first = runs["uniform, anew"]
        with contextlib.redirect_stdout(sys.stderr):
            for name, workdir in runs.items():
                _, (_, means) = compare(str(first), str(workdir))
                rows.append(
                    {
                        "begun with": name,
                        **{
                            f"recall@20, {group}": 100 * of["recall@20"]
                            for group, of in means.items()
                        },
                        "mrr@20, all": 100 * means["all"]["mrr@20"],
                        "seconds": seconds[name],
                        "of nothing": seconds[name] / seconds["nothing"],
                    }
                )
    common.show(
        "warm start",
        {"arguments": {**vars(arguments), "flags": flags}, "load_of_others": load},
        rows,
    )


if __name__ == "__main__":
    main()
