"""Shared by the benchmarks: synthetic data, timing, the machine, the output."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from srgnn_jax.data.sessions import Examples

ROOT = pathlib.Path(__file__).parents[1]
# Prefix lengths of Diginetica: geometric, with this mean and this maximum.
MEAN_LENGTH = 4.13
MAX_LENGTH = 69


def machine() -> dict[str, str | int]:
    """Describes the machine that the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if "model name" in x]
        name = models[0].split(":")[1].strip() if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return {
        "cpu": name,
        "cores": cores or os.cpu_count() or 0,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def in_turn(
    functions: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Times functions in turn, round by round, so that noise affects all alike.

    Args:
      functions: what to time, by name; waits for what they return.
      rounds: measurements of each function, after one unmeasured round.
      calls: calls per measurement.

    Returns:
      Seconds per call, `rounds` values for each name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = function()
            jax.block_until_ready(result)
            if i:
                seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict:
    """Returns the median, least and greatest ratio of two series measured in turn."""
    all_of_them = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {
        "median": statistics.median(all_of_them),
        "least": min(all_of_them),
        "greatest": max(all_of_them),
    }


def made_examples(
    num_items: int,
    num_examples: int,
    mean_length: float = MEAN_LENGTH,
    max_length: int = MAX_LENGTH,
    seed: int = 0,
) -> Examples:
    """Draws examples: geometric lengths, item rows 1 to num_items - 1, few popular."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(1 / mean_length, num_examples), max_length)
    ends = np.cumsum(lengths + 1)
    clicks = rng.random(int(ends[-1])) ** 2 * (num_items - 1)
    return Examples(
        items=(1 + clicks.astype(np.int32)).clip(1, num_items - 1),
        starts=ends - lengths - 1,
        lengths=lengths.astype(np.int32),
    )


def show(title: str, result: dict, rows: Sequence[Mapping[str, object]]) -> None:
    """Prints a Markdown table to stderr and everything as one JSON object to stdout."""
    columns = list(rows[0])

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    def cell(value):
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    table = [line(columns), line("---" for _ in columns)]
    table += [line(cell(row.get(column, "")) for column in columns) for row in rows]
    print(f"\n{title}\n\n" + "\n".join(table) + "\n", file=sys.stderr, flush=True)
    result = {"benchmark": title, "machine": machine(), **result, "rows": list(rows)}
    print(json.dumps(result), flush=True)


def run_process(
    command: Sequence[str | os.PathLike],
    environment: Mapping[str, str] | None = None,
    folder: str | os.PathLike = ROOT,
) -> tuple[float, str]:
    """Runs a command; exits with its error output if it fails.

    Args:
      command: the program and its arguments.
      environment: variables to set in addition to those of this process.
      folder: its working directory.

    Returns:
      Seconds from start to end, and its stdout.
    """
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return seconds, done.stdout


def train_here(
    workdir: pathlib.Path,
    flags: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> tuple[float, list[dict]]:
    """Trains through the command line, on the CPU, as a user would.

    Args:
      workdir: a new folder.
      flags: of `srgnn_jax.main`, including `--config`.
      environment: variables to set in addition to those of this process.

    Returns:
      Seconds from start to end of the process, and the records of metrics.jsonl.
    """
    module = [sys.executable, "-m", "srgnn_jax.main", f"--workdir={workdir}"]
    seconds, _ = run_process(
        [*module, *flags, "--config.progress=False"],
        {"JAX_PLATFORMS": "cpu", **(environment or {})},
    )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return seconds, [json.loads(line) for line in lines]


def load_of_others() -> float:
    """Returns the machine's load before anything is measured; warns if it is not idle.

    Other processes slow everything down, but not equally: torch's threads wait for each
    other at every operation, and lose the most.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        print(
            f"other processes are running (load {load:.1f}): the ratios will be off",
            file=sys.stderr,
            flush=True,
        )
    return load
