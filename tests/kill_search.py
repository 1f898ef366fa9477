"""Kills a search at random moments, and compares the outcome.

    python -m tests.kill_search --trials=20 --kills=7

One search is left alone. The other is killed with SIGKILL and restarted. It must end
with the same trials, values after every epoch, early ends and best trial.
"""

import argparse
import os
import pathlib
import random
import sys
import tempfile
import time

from srgnn_jax.runs.workdir import FOLDER
from srgnn_jax.train import search, study
from srgnn_jax.train.space import choice, log, uniform
from tests.command import PROCESSES
from tests.kill_and_resume import outcome
from tests.tiny import tiny_config

RANGES = {
    "learning_rate": log(1e-3, 1e-1),
    "item_dropout": uniform(0.0, 0.5),
    "readout": choice("hybrid", "average"),
    "reverse_positions": choice(0, 4),
}


def make_config(folder):
    """Returns a config whose run takes a second or two."""
    config = tiny_config(folder)
    config.epochs, config.progress = 4, False
    return config


def search_in(config, workdir, trials):
    """Searches in this process, with its output in a file."""
    said = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, sys.stdout.fileno())
    os.dup2(said, sys.stderr.fileno())
    study.UNJUDGED_TRIALS = 2
    search.search(config, str(workdir), RANGES, trials)


def start(config, workdir, trials):
    """Starts a search in another process."""
    process = PROCESSES.Process(target=search_in, args=(config, workdir, trials))
    process.start()
    return process


def finish(config, workdir, trials):
    """Searches to the end."""
    process = start(config, workdir, trials)
    process.join()
    if process.exitcode:
        raise SystemExit(pathlib.Path(f"{workdir}.log").read_text())


def length(workdir):
    """Returns how much a search has recorded, in lines of its journal."""
    journal = workdir / study.JOURNAL
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def found(workdir):
    """Returns the outcome of a search, without times and its number of starts."""
    opened = study.open_study(workdir, 0, RANGES, lambda params: True)
    trials = [
        (t.number, t.state.name, t.params, t.values, t.intermediate_values)
        for t in study.trials(opened)
    ]
    runs = {
        folder.name: outcome(folder)["records"]
        for folder in sorted(workdir.glob("trial_*"))
        if (folder / FOLDER).is_dir()
    }
    return trials, runs, (workdir / "best.py").read_text()


def kill_search(folder, trials, kills, seed=0):
    """Does what the module describes; returns how many kills hit a running search."""
    config, moments = make_config(folder), random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    finish(config, whole, trials)
    hits, lines = 0, length(whole)
    for at in sorted(moments.sample(range(1, lines - 1), kills)):
        process = start(config, killed, trials)
        while length(killed) < at and process.exitcode is None:
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.5))
        hits += process.exitcode is None
        process.kill()
        process.join()
    finish(config, killed, trials)
    expected = found(whole)
    states = [state for _, state, *_ in expected[0]]
    assert len(states) == trials
    assert "PRUNED" in states
    assert found(killed) == expected
    return hits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        hits = kill_search(folder, arguments.trials, arguments.kills, arguments.seed)
    print(f"{hits} kills of a search: its {arguments.trials} trials are the same")


if __name__ == "__main__":
    main()
