"""Measures time and memory of a training step by items, batch and session length.

    python -m benchmarks.scaling --plot=scaling.png

Each point has its own process, to measure its peak memory: the most that the process
ever held, minus what it held before the parameters were made (Python, JAX and the
compiled step's code are in there). The item table counts four times, as parameters,
gradient and two moments; everything else is overhead.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys

import jax
import numpy as np

from benchmarks import common
from benchmarks.train_step import Trainer

ITEMS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
BATCHES = (64, 128, 256, 512, 1024)
LENGTHS = (2, 4, 8, 16, 32)
ITEMS_OF_OTHERS = 100_000


def peak_bytes() -> int:
    """Returns the most memory that this process has ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def point(items: int, embedding_size: int, batch_size: int, mean_length: int) -> dict:
    """Measures one point in this process."""
    examples = common.made_examples(items, 20 * batch_size, mean_length)
    jax.block_until_ready(jax.numpy.zeros(1))
    before = peak_bytes()
    trainer = Trainer(examples, items, embedding_size, batch_size)
    trainer.step()
    # At least a second, and three steps.
    seconds = common.in_turn({"step": trainer.step}, rounds=3)["step"]
    rounds = max(3, int(1 / min(seconds)))
    seconds = common.in_turn({"step": trainer.step}, rounds=rounds)["step"]
    return {
        "items": items,
        "batch": batch_size,
        "mean length": mean_length,
        "ms a step": 1e3 * float(np.median(seconds)),
        "peak MB": peak_bytes() / 1e6,
        "before MB": before / 1e6,
        "table x 4 MB": 16 * items * embedding_size / 1e6,
        "overhead MB": (peak_bytes() - before - 16 * items * embedding_size) / 1e6,
    }


def exponent(rows, name: str) -> float:
    """Returns the slope of log(time) over log(size): 1 is linear."""
    sizes, times = ([row[key] for row in rows] for key in (name, "ms a step"))
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def plot(curves: dict[str, list[dict]], path: pathlib.Path) -> None:
    """Draws time and memory over each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, len(curves))
    for column, (name, rows) in zip(axes.T, curves.items(), strict=True):
        sizes = [row[name] for row in rows]
        for axis, key in zip(column, ("ms a step", "peak MB"), strict=True):
            axis.loglog(sizes, [row[key] for row in rows], "o-")
            axis.set(xlabel=name, ylabel=key)
            axis.grid(alpha=0.3, which="both")
        column[0].set_title(f"time ~ {name}^{exponent(rows, name):.2f}")
    figure.savefig(path, dpi=120)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embedding_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--items", type=int, nargs="*", default=ITEMS)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(point(**json.loads(arguments.point))))
        return

    def measure(items, batch_size, mean_length=common.MEAN_LENGTH):
        wanted = {
            "items": items,
            "embedding_size": arguments.embedding_size,
            "batch_size": batch_size,
            "mean_length": mean_length,
        }
        command = [sys.executable, "-m", "benchmarks.scaling"]
        command += ["--point", json.dumps(wanted)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        row = json.loads(done.stdout)
        print(row, file=sys.stderr, flush=True)
        return row

    b = arguments.batch_size
    curves = {
        "items": [measure(items, b) for items in arguments.items],
        "batch": [measure(ITEMS_OF_OTHERS, batch) for batch in BATCHES],
        "mean length": [measure(ITEMS_OF_OTHERS, b, length) for length in LENGTHS],
    }
    exponents = {name: exponent(rows, name) for name, rows in curves.items()}
    if arguments.plot:
        plot(curves, arguments.plot)
    common.show(
        "scaling",
        {"exponents": exponents, "embedding_size": arguments.embedding_size},
        [row for rows in curves.values() for row in rows],
    )
    print(json.dumps(exponents), file=sys.stderr)


if __name__ == "__main__":
    main()
