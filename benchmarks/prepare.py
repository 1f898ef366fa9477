"""Time and memory of preparing a raw Yoochoose file, and of finding it prepared.

    python -m benchmarks.prepare --clicks=33_000_000 --fractions=1_64,1_4

The file is made here, in the challenge's own form and with its proportions: 3.6 clicks
a session, 52,739 items, six months. Each fraction is prepared by a process of its own,
so that its peak memory is known (as Linux tells it, in units of 1e9 bytes), and then
found prepared by another one. The seconds are those of `load_prepared`, from the raw
file to mapped arrays; those of a process hold all imports too.

Records a second are those of TFDS records, one a session, as a first start writes and
reads them, beside TFDS's own way of doing the same; both in turn, median of the rounds.
"""

import argparse
import contextlib
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import polars as pl
import tensorflow_datasets as tfds

from benchmarks import common
from srgnn_jax.data.datasets.builder import SessionsBuilder
from srgnn_jax.data.prepare import Prepared
from srgnn_jax.data.sessions import Sessions, Vocabulary

ITEMS, DAYS, CLICKS_A_SESSION = 52_739, 182, 3.57
FIRST_DAY = np.datetime64("2014-04-01", "ms").astype(np.int64)
DAY = 86_400_000
SESSIONS_A_PART = 500_000

FRACTIONS = {"1_64": 1 / 64, "1_4": 1 / 4, "1": 1.0}
RECORDS = 50_000  # of which TFDS's own way takes some seconds
ROUNDS = 3

START = """
import json, pathlib, sys, time
from srgnn_jax.data.prepared import load_prepared
folder, prepared_dir, fraction = sys.argv[1:]
start = time.perf_counter()
data = load_prepared(
    "yoochoose",
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

    A session's clicks stand together; sessions come up over the months, in an order
    that is that of time but for some days. Few items get most clicks.

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
    with path.open("wb") as file:
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
            pl.DataFrame(
                {
                    "session": np.repeat(numbers[chosen], many),
                    "time": np.repeat(starts[chosen], many) + waits,
                    "item": item_ids[popular],
                    "category": category,
                }
            ).with_columns(pl.col("time").cast(pl.Datetime("ms"))).write_csv(
                file, include_header=False, datetime_format="%Y-%m-%dT%H:%M:%S%.3fZ"
            )
    return sessions


def load(folder: pathlib.Path, prepared_dir: pathlib.Path, fraction: float) -> dict:
    """Prepares the file, or finds it prepared, in a process of its own."""
    begin = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", START, str(folder), str(prepared_dir), str(fraction)],
        stdout=subprocess.PIPE,
        check=True,
    )
    process_seconds = time.perf_counter() - begin
    return {"process_seconds": process_seconds, **json.loads(run.stdout)}


class Ours(SessionsBuilder, skip_registration=True):
    """The package's records of given sessions."""

    sessions: Sessions

    @classmethod
    def source_files(cls, folder, config):
        """Returns none."""
        return []

    @classmethod
    def read(cls, files, config):
        """Returns the sessions."""
        return Prepared({"train": cls.sessions}, Vocabulary([]), {})


class TfdsOwn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The same records, as TFDS makes them from examples."""

    VERSION = tfds.core.Version("1.0.0")
    sessions: Sessions

    def _info(self):
        features = {"items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for s in range(len(self.sessions)):
            yield s, {"items": self.sessions[s]}

    def read_sessions(self, split: str) -> Sessions:
        """Reads a split by TFDS's own decoding."""
        source = self.as_data_source(split)
        records = source.__getitems__(range(len(source)))
        return Sessions.from_lists(record["items"] for record in records)


def time_records(sessions: Sessions) -> dict[str, dict[str, list[float]]]:
    """Returns the seconds that writing and reading take, both ways, round by round."""
    seconds: dict[str, dict[str, list[float]]] = {
        way: {"write": [], "read": []} for way in ("ours", "TFDS's own")
    }
    tfds.disable_progress_bar()
    for _ in range(ROUNDS):
        for way, builder in (("ours", Ours), ("TFDS's own", TfdsOwn)):
            builder.sessions = sessions
            with tempfile.TemporaryDirectory() as folder:
                made = builder(data_dir=folder, file_format="array_record")
                begin = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    made.download_and_prepare()
                written = time.perf_counter()
                read = made.read_sessions("train")
                end = time.perf_counter()
            assert np.array_equal(read.items, sessions.items)
            seconds[way]["write"].append(written - begin)
            seconds[way]["read"].append(end - written)
    return seconds


def main():
    """Makes the file, prepares it, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=int, default=3_300_000)
    parser.add_argument("--fractions", default="1_64,1_4", help=", ".join(FRACTIONS))
    parser.add_argument(
        "--folder", type=pathlib.Path, help="for the files; none: one that is removed"
    )
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory())
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "yoochoose-clicks.dat"
        sessions = make_log(path, arguments.clicks)
        prepared_dir = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        )
        time.sleep(4)  # A file that has just been written is not taken as settled.
        rows = []
        for name in arguments.fractions.split(","):
            first = load(folder, prepared_dir, FRACTIONS[name])
            again = load(folder, prepared_dir, FRACTIONS[name])
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
        size = path.stat().st_size
    lengths = np.random.default_rng(0).geometric(1 / CLICKS_A_SESSION, RECORDS) + 1
    offsets = np.append(0, np.cumsum(lengths))
    items = np.random.default_rng(1).integers(1, ITEMS, offsets[-1]).astype(np.int32)
    seconds = time_records(Sessions(items, offsets))
    records = {
        what: {
            "sessions_per_second": RECORDS / statistics.median(seconds["ours"][what]),
            "times_tfds_own": common.ratios(
                seconds["TFDS's own"][what], seconds["ours"][what]
            ),
        }
        for what in ("write", "read")
    }
    common.show(
        "prepare",
        {
            "clicks": arguments.clicks,
            "sessions": sessions,
            "file_bytes": size,
            "records": records,
        },
        rows,
    )
    for what, figures in records.items():
        print(
            f"records {what}: {figures['sessions_per_second']:,.0f} sessions/s, "
            f"{figures['times_tfds_own']['median']:.1f} times TFDS's own way",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
