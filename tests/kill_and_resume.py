"""Kills training at random moments, and compares the outcome bit by bit.

    python -m tests.kill_and_resume --kills=25

One run is left alone. Others are killed with SIGKILL and restarted until they are
complete, until there are enough kills. Each must end with exactly the parameters,
optimizer state, progress, best checkpoint and records of the first.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import sys
import tempfile
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.train import epochs
from srgnn_jax.train import loop as train
from tests.command import PROCESSES
from tests.tiny import tiny_config

# Where a run can be killed: methods whose calls are counted.
PLACES = {
    "a step": (epochs.Run, "is_time_to_save"),
    "an evaluation": (Evaluator, "__call__"),
    "a save": (Checkpoints, "save"),
}


def make_config(folder, loss_type="CE"):
    """Returns the config of a run of a second or two, mostly saves and evaluations."""
    config = tiny_config(folder)
    config.epochs, config.log_every_steps, config.eval_batch_size = 6, 3, 4
    config.checkpoint_every_steps, config.loss_type = 4, loss_type
    config.progress = False
    config.steps_per_call = 1 if loss_type == "CE" else 3
    return config


def train_in(config, workdir, begun):
    """Trains in this process, and counts in `begun` the calls that have started."""
    log = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())

    def counted(function, number):
        def wrapped(*arguments):
            begun[number] += 1
            return function(*arguments)

        return wrapped

    for number, (owner, name) in enumerate(PLACES.values()):
        setattr(owner, name, counted(getattr(owner, name), number))
    train.train_and_evaluate(config, workdir)


def start(config, workdir):
    begun = PROCESSES.RawArray("i", len(PLACES))
    process = PROCESSES.Process(target=train_in, args=(config, str(workdir), begun))
    process.start()
    return process, begun


def kill_in(place, process, begun, moments, seconds):
    """Kills a process at a random moment; returns False if it had ended before.

    For a place of `PLACES`, that is a moment after the run entered it, for the first or
    a later time. For "anywhere", it is a moment within the time that a run takes.
    """
    if place == "anywhere":
        process.join(moments.uniform(0, seconds))
    else:
        entered, number = moments.randint(1, 4), list(PLACES).index(place)
        while begun[number] < entered and process.exitcode is None:
            process.join(0.001)
        process.join(moments.uniform(0, 0.05))
    alive = process.exitcode is None
    process.kill()
    process.join()
    return alive


def finish(config, workdir):
    """Trains to the end; returns the seconds it took."""
    begin = time.monotonic()
    process, _ = start(config, workdir)
    process.join()
    if process.exitcode:
        raise SystemExit(pathlib.Path(f"{workdir}.log").read_text())
    return time.monotonic() - begin


def outcome(workdir):
    """Returns the outcome of a run: records, and the last and the best checkpoint."""
    records = [
        {k: v for k, v in json.loads(line).items() if "second" not in k}
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    found = {"records": records}
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        newest = checkpoints.progress()
        steps = {"last": newest.step, "best": newest.best_step}
        for name, step in steps.items():
            with warnings.catch_warnings():
                # Orbax warns of restoring without a layout, which is intended here.
                warnings.simplefilter("ignore")
                state = ocp.PyTreeCheckpointer().restore(
                    workdir / "checkpoints" / str(step) / "state"
                )
            found[name] = vars(checkpoints.progress(step)), state
    return found


def assert_same(found, expected):
    assert found["records"] == expected["records"]
    for which in ("last", "best"):
        progress, state = found[which]
        assert progress == expected[which][0]
        jax.tree.map(np.testing.assert_array_equal, state, expected[which][1])


def kill_and_resume(folder, kills, seed=0, loss_type="CE"):
    """Does what the module describes; returns the runs and the kills by place."""
    config = make_config(folder, loss_type)
    moments = random.Random(seed)
    finish(config, folder / "warm_up")
    seconds = finish(config, folder / "whole")
    expected = outcome(folder / "whole")
    # Every step to log is logged once.
    logged = [r["step"] for r in expected["records"] if "train/learning_rate" in r]
    assert logged == list(range(3, expected["records"][-2]["step"] + 1, 3))
    hits = collections.Counter()
    places = itertools.cycle(["anywhere", *PLACES])
    runs = 0
    while hits.total() < kills:
        runs += 1
        workdir = folder / f"killed_{runs}"
        while hits.total() < kills:
            place = next(places)
            process, begun = start(config, workdir)
            if not kill_in(place, process, begun, moments, seconds):
                break
            hits[place] += 1
        finish(config, workdir)
        assert_same(outcome(workdir), expected)
    return runs, hits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loss_type", default="CE", choices=("CE", "BPR"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        runs, hits = kill_and_resume(
            folder, arguments.kills, arguments.seed, arguments.loss_type
        )
    where = ", ".join(
        f"{n} {what}" if what == "anywhere" else f"{n} in {what}"
        for what, n in sorted(hits.items())
    )
    print(f"{hits.total()} kills ({where}) of {runs} runs: all end bit-identical")


if __name__ == "__main__":
    main()
