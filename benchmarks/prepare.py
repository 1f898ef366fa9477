"""Measures time and memory of preparing a raw Yoochoose file, then of reusing it.

    python -m benchmarks.prepare --clicks=33_000_000 --fractions=1_64,1_4
    python -m benchmarks.prepare --clicks=200_000_000 --fractions=1 --parquet

With --parquet, the clicks are a user's log: a folder of parquet files, read as by
configs/click_log.py. The clicks are synthetic, in the challenge's format and with its
proportions: 3.6 clicks per session, 52,739 items, six months. Each fraction is prepared
by its own process, to know its peak memory (as reported by Linux, in units of 1e9
bytes), and then loaded by another one, which finds it prepared. Seconds are those of
`load_dataset`, from the raw file to mapped arrays; those of a process also include all
imports.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import polars as pl

from benchmarks import common

ITEMS, DAYS, CLICKS_A_SESSION = 52_739, 182, 3.57
FIRST_DAY = np.datetime64("2014-04-01", "ms").astype(np.int64)
DAY = 86_400_000
SESSIONS_A_PART = 500_000

FRACTIONS = {"1_64": 1 / 64, "1_4": 1 / 4, "1": 1.0}

START = """
import json, pathlib, sys, time
from srgnn_jax.data.store import load_dataset
dataset, folder, prepared_dir, fraction = sys.argv[1:]
start = time.perf_counter()
data = load_dataset(
    dataset,
    data_dir=pathlib.Path(folder),
    prepared_dir=pathlib.Path(prepared_dir),
    train_fraction=float(fraction),
    date_resolution_seconds=1,
)
seconds = time.perf_counter() - start
status = pathlib.Path("/proc/self/status").read_text()
peak = status.partition("VmHWM:")[2].split()[0]
print(json.dumps({"seconds": seconds, "gb": int(peak) * 1024 / 1e9, **data.counts}))
"""


def make_log(
    path: pathlib.Path, num_clicks: int, num_items: int = ITEMS, seed: int = 0
) -> int:
    """Writes lines `session,2014-04-07T10:51:09.277Z,item,category`.

    If the path is a folder, writes parquet files into it instead. A session's clicks
    are contiguous; sessions spread over the months, ordered by time to within some
    days. Few items get most clicks.

    Returns:
      The number of sessions.
    """
    rng = np.random.default_rng(seed)
    enough = round(1.1 * num_clicks / CLICKS_A_SESSION) + 100
    lengths = np.minimum(rng.geometric(1 / CLICKS_A_SESSION, enough), 200)
    ends = np.minimum(np.cumsum(lengths), num_clicks)
    lengths = np.diff(ends, prepend=0)
    lengths = lengths[lengths > 0]
    sessions = len(lengths)
    numbers = np.cumsum(rng.integers(1, 3, sessions))
    days = np.linspace(3, DAYS - 3, sessions) + rng.uniform(-3, 3, sessions)
    starts = FIRST_DAY + (days * DAY).astype(np.int64)
    item_ids = 214_500_000 + rng.permutation(num_items) * 7
    is_folder = path.is_dir()
    with contextlib.nullcontext() if is_folder else path.open("wb") as file:
        for part in range(0, sessions, SESSIONS_A_PART):
            chosen = slice(part, part + SESSIONS_A_PART)
            many = lengths[chosen]
            clicks = int(many.sum())
            waits = rng.integers(1_000, 180_000, clicks).cumsum()
            first = np.repeat(np.cumsum(many) - many, many)
            waits -= waits[first]
            popular = (num_items * rng.random(clicks) ** 3).astype(np.int64)
            category = np.where(
                rng.random(clicks) < 0.5, 0, rng.integers(1, 13, clicks)
            )
            clicks_of_part = pl.DataFrame(
                {
                    "session": np.repeat(numbers[chosen], many),
                    "time": np.repeat(starts[chosen], many) + waits,
                    "item": item_ids[popular],
                    "category": category,
                }
            ).with_columns(pl.col("time").cast(pl.Datetime("ms")))
            if is_folder:
                name = f"part-{part // SESSIONS_A_PART:05}.parquet"
                clicks_of_part.write_parquet(path / name)
                continue
            clicks_of_part.write_csv(
                file, include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.3fZ"
            )
    return sessions


def load(
    dataset: str, folder: pathlib.Path, prepared_dir: pathlib.Path, fraction: float
) -> dict:
    """Prepares the file, or finds it prepared, in its own process."""
    begin = time.perf_counter()
    arguments = (dataset, str(folder), str(prepared_dir), str(fraction))
    run = subprocess.run(
        [sys.executable, "-c", START, *arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    process_seconds = time.perf_counter() - begin
    return {"process_seconds": process_seconds, **json.loads(run.stdout)}


def main():
    """Writes the file, prepares it, and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, default=3_300_000)
    parser.add_argument("--fractions", default="1_64,1_4", help=", ".join(FRACTIONS))
    parser.add_argument(
        "--folder", type=pathlib.Path, help="for the files; default: temporary"
    )
    parser.add_argument("--parquet", action="store_true", help="a folder of parts")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory())
        )
        folder.mkdir(parents=True, exist_ok=True)
        path, dataset = folder / "yoochoose-clicks.dat", "yoochoose"
        if arguments.parquet:
            path, dataset, folder = folder / "log", "click_log", folder / "log"
            path.mkdir()
        sessions = make_log(path, arguments.clicks)
        prepared_dir = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        time.sleep(4)  # A file counts as settled some seconds after it was written.
        rows = []
        for name in arguments.fractions.split(","):
            first = load(dataset, folder, prepared_dir, FRACTIONS[name])
            again = load(dataset, folder, prepared_dir, FRACTIONS[name])
            rows.append(
                {
                    "fraction": name,
                    "seconds": first["seconds"],
                    "clicks/s": first["raw_clicks"] / first["seconds"],
                    "peak GB": first["gb"],
                    "second start, s": again["seconds"],
                    "its process, s": again["process_seconds"],
                    **{
                        count.replace("_", " "): f"{first[count]:,}"
                        for count in (
                            "train_sessions",
                            "train_examples",
                            "test_examples",
                            "items",
                        )
                    },
                }
            )
        files = path.glob("*") if arguments.parquet else [path]
        size = sum(file.stat().st_size for file in files)
    common.show(
        "prepare",
        {
            "clicks": arguments.clicks,
            "sessions": sessions,
            "file_bytes": size,
        },
        rows,
    )


if __name__ == "__main__":
    main()
