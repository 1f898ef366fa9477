"""Reads files that are broken at random, and clicks written in random forms.

    python -m tests.fuzz_readers --cases=5000 --seed=0

A broken file must give one clear line that names it, or a data set that accounts for
every row. Clicks must give the same data set, and the same sessions to recommend to, in
every form (tests/forms.py). A case depends only on the seed and its number: --only
reads it again.
"""

import argparse
import collections
import contextlib
import gzip
import io
import logging
import pathlib
import pickle
import re
import shutil
import tempfile
import traceback
import types
import warnings
from typing import NamedTuple
from unittest import mock

import numpy as np
import polars as pl

from srgnn_jax.data import records, text
from srgnn_jax.data.frames import Clicks
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.sessions import Dataset, check_rows
from srgnn_jax.data.sources import (
    Settings,
    click_log,
    diginetica,
    find_files,
    pickles,
    recbole,
    yoochoose,
)
from srgnn_jax.errors import UserError
from srgnn_jax.serve.inputs import read_sessions
from tests import forms

DAY = 86_400
START = 1_400_000_000


class Reader(NamedTuple):
    """A source, the name and the form of its file, and the separator in it."""

    source: types.ModuleType
    name: str
    layout: str
    separator: str = ","


READERS = {
    "yoochoose": Reader(yoochoose, "yoochoose-clicks.dat", "{s},{iso}Z,{i},0"),
    "diginetica": Reader(
        diginetica, "train-item-views.csv", "{s};NA;{i};{n};{day}", ";"
    ),
    "csv": Reader(click_log, "log.csv", "{s},{i},{t}"),
    "csv.gz": Reader(click_log, "log.csv.gz", "{s},{i},{t}"),
    "tsv": Reader(click_log, "log.tsv", "{iso}\t{s}\t{i}", "\t"),
    "parquet": Reader(click_log, "log.parquet", ""),
    "recbole_inter": Reader(recbole, "log.inter", "{s}\t{i}\t4\t{t}", "\t"),
    "srgnn_pickles": Reader(pickles, "all_train_seq.txt", ""),
}
HEADERS = {
    "diginetica": "session_id;user_id;item_id;timeframe;eventdate",
    "csv": "session_id,item_id,timestamp",
    "csv.gz": "session_id,item_id,timestamp",
    "tsv": "Time\tSessionId\tItemId",
    "recbole_inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
}
RULES = {"min_item_count": 1, "test_days": 2.0}


def clicks(sessions: int = 12) -> list[tuple[int, int, int]]:
    """Returns clicks (session, item, second), a session a day."""
    return [
        (s, 100 + (s + place) % 5, START + s * DAY + place)
        for s in range(sessions)
        for place in range(4)
    ]


def good_file(reader: str, rows: list[tuple[int, int, int]]) -> bytes:
    """Returns a file of these clicks that the reader reads in full."""
    if reader == "srgnn_pickles":
        items = np.array([item for _, item, _ in rows]).reshape(-1, 4) - 99
        return pickle.dumps(items.tolist())
    if reader == "parquet":
        file = io.BytesIO()
        schema = ["session_id", "item_id", "timestamp"]
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(file)
        return file.getvalue()
    lines = [HEADERS[reader]] if reader in HEADERS else []
    for s, i, t in rows:
        iso = str(np.datetime64(t, "s"))
        lines.append(
            READERS[reader].layout.format(
                s=s, i=i, t=t, n=t - START, iso=iso, day=iso[:10]
            )
        )
    data = "\n".join([*lines, ""]).encode()
    return gzip.compress(data, mtime=0) if reader == "csv.gz" else data


TOKENS = [
    *(b"\0", b"\xff", b"\xed\xa0\x80", b'"', b'""', b"\xef\xbb\xbf", b"\r", b"\r\n"),
    *(b"\n", b"\n\n", b"\t", b",", b";", b"|", b" ", b"\\", b"'", b"\x1a", b"#"),
    *(b"-5", b"1e400", b"nan", b"inf", b"0x1F", b"1_000", b"99999999999999999999999"),
    *(b"29/09/2014", b"12:00", b"2014-13-45", b"9999-12-31", b"0000-00-00", b"2014"),
    *(
        b"1400000000000",
        b"1400000000000000000",
        b"-1400000000",
        b"text",
        b"NA",
        b"null",
    ),
    *("é日\ufffd".encode(), "٣".encode(), "\u2028".encode(), b"x" * 70_000),
]


def mutate(rng: np.random.Generator, data: bytes, separator: bytes) -> bytes:
    """Breaks a file in one of many ways."""
    at = int(rng.integers(len(data) + 1))
    end = min(len(data), at + int(rng.integers(1, 60)))
    lines = data.split(b"\n")
    line = int(rng.integers(len(lines)))
    fields = [row.split(separator) for row in lines]
    column = int(rng.integers(max(map(len, fields))))
    token = TOKENS[rng.integers(len(TOKENS))]
    shuffled = [lines[n] for n in rng.permutation(len(lines))]
    ways = [
        lambda: data[:at] + bytes([rng.integers(256)]) + data[at + 1 :],
        lambda: data[:at] + data[end:],
        lambda: data[:at],
        lambda: data[:at] + data[at:end] * 2 + data[end:],
        lambda: data[:at] + token + data[at:],
        lambda: data[:at] + token + data[end:],
        lambda: b"\n".join(lines[:line] + lines[line + 1 :]),
        lambda: b"\n".join([*lines[:line], lines[line], *lines[line:]]),
        lambda: b"\n".join([*lines[:line], token, *lines[line:]]),
        lambda: b"\n".join(shuffled),
        lambda: b"\n".join([lines[0], *lines[:0:-1]]),
        lambda: b"\n".join(
            separator.join(f[:column] + f[column + 1 :]) for f in fields
        ),
        lambda: b"\n".join(separator.join([*f, *f[column:][:1]]) for f in fields),
        lambda: b"\n".join(
            separator.join([*f[:column], token, *f[column + 1 :]])
            if n == line or (n and rng.random() < 0.1)
            else separator.join(f)
            for n, f in enumerate(fields)
        ),
        lambda: b"\n".join(separator.join(b'"%s"' % x for x in f) for f in fields),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data.replace(separator, token),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: gzip.compress(data, mtime=0),
        lambda: gzip.compress(data, mtime=0)[:-at],
        lambda: b"",
        lambda: lines[0],
        lambda: lines[0] + b"\n",
        lambda: data + data,
    ]
    return ways[rng.integers(len(ways))]()


def draw(seed: int, case: int) -> tuple[str, bytes, Settings]:
    """Returns the reader, the file and the settings of a case."""
    rng = np.random.default_rng([seed, case])
    reader = list(READERS)[case % len(READERS)]
    data = good_file(reader, clicks())
    inside = reader == "csv.gz" and rng.random() < 0.7
    data = gzip.decompress(data) if inside else data
    for _ in range(rng.integers(1, 4)):
        data = mutate(rng, data, READERS[reader].separator.encode())
    data = gzip.compress(data, mtime=0) if inside else data
    rules = {} if reader in ("srgnn_pickles", "recbole_inter") else RULES
    on_bad_row = ("error", "skip")[rng.integers(2)]
    return reader, data, Settings(on_bad_row=on_bad_row, **rules)


def rows_of(reader: str, data: bytes) -> int:
    """Counts the rows of a file by other means than the readers."""
    if reader == "srgnn_pickles":
        # It has been read before, so it has no payload. C's unpickler refuses a frame
        # that claims to be longer than the file; Python's reads what is there.
        return len(pickle._load(io.BytesIO(data)))
    if reader == "parquet":
        return pl.read_parquet(io.BytesIO(data)).height
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    for start, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(data) > 3 and not any(data[:64][start::2]):
            encoding = name
    lines = data.decode(encoding, "replace").split("\n")
    separator = READERS[reader].separator
    rows = [line for line in lines if line.strip() or separator in line]
    return len(rows) - (reader != "yoochoose")


def check(reader: str, data: bytes, prepared: Dataset) -> None:
    """Asserts that all rows are accounted for, and that the sessions are sound."""
    counts, train = prepared.counts, prepared.splits["train"]
    for sessions in prepared.splits.values():
        check_rows(sessions.items, prepared.vocabulary.num_items)
    kept = counts.get("raw_clicks", len(train)) + counts.get("skipped_rows", 0)
    assert kept == rows_of(reader, data), f"{kept} of {rows_of(reader, data)} rows"


def read(folder: pathlib.Path, reader: str, data: bytes, config: Settings) -> str:
    """Reads a broken file; returns "refused" or "read"."""
    source, name = READERS[reader].source, READERS[reader].name
    folder = folder / reader
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    if reader == "srgnn_pickles":
        (folder / "test.txt").write_bytes(pickle.dumps(([[1]], [2])))
    try:
        prepared = source.read(find_files(source, folder, config), config)
    except UserError as error:
        text = str(error)
        assert "\n" not in text, f"several lines: {text!r}"
        assert name in text, f"does not name the file: {text!r}"
        assert len(text) < len(str(path)) + 900, f"too long: {text!r}"
        return "refused"
    check(reader, data, prepared)
    return "read"


def read_broken(folder: pathlib.Path, seed: int, case: int) -> tuple[str, str]:
    """Reads a file that is broken; returns its reader, and "refused" or "read"."""
    reader, data, config = draw(seed, case)
    return reader, read(folder, reader, data, config)


def prepare_form(folder: pathlib.Path, log: forms.Log, config: Settings) -> Dataset:
    """Returns the data set that is read of a log in some form."""
    if log.frame is None:
        return click_log.read(find_files(click_log, folder, config), config)
    columns = dict(log.columns) if config.events else log.columns | {"event": ""}
    clicks, counts = Clicks.from_frame(log.frame, **columns).read(config)
    data = prepare(clicks, as_published=False, **config.rules | config.visits)
    data.counts.update(counts)
    return data


def check_data(log: forms.Log, data: Dataset, right: dict) -> None:
    """Asserts that a data set is right, including the order of its sessions."""
    ids = ["", *data.vocabulary.ids]
    found = {
        split: [[ids[row] for row in session] for session in sessions]
        for split, sessions in data.splits.items()
    }
    found["vocabulary"] = ids[1:]
    for name, expected in right.items():
        assert found[name] == expected, f"{name}: {found[name]} for {expected}"
    assert data.counts["skipped_rows"] == log.nothing, "another number of skipped rows"


def check_sessions(folder: pathlib.Path, log: forms.Log, config: Settings) -> None:
    """Asserts that recommending reads the last visit of every id."""
    visits = forms.visits_of(log.clicks, log.settings)
    right = {str(v[-1].session): [str(click.item) for click in v] for v in visits}
    (name, data), *others = log.files.items()
    source = folder if others else io.BytesIO(data)
    entries = [e for some in read_sessions(source, name, config) for e in some]
    found = {more.get("session"): ids for ids, more in entries if ids is not None}
    assert found == right, f"sessions: {found} for {right}"
    assert len(entries) == len(right) + log.nothing, "another number of errors"


def read_form(folder: pathlib.Path, seed: int, case: int) -> tuple[str, str]:
    """Reads clicks in a form; returns the form, and "refused" or "read"."""
    log = forms.draw(np.random.default_rng([seed, case]))
    folder = folder / str(case)
    for name, data in log.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    config = Settings(**log.settings)
    right = forms.data_set(log.clicks, log.settings)
    refusal = "the split by time leaves|are left"
    if log.nothing and config.on_bad_row == "error":
        right, refusal = None, "on_bad_row=skip"
    kind, data, refused = log.said.split(",")[0], None, ""
    with contextlib.ExitStack() as stack:
        for module in (text, records):
            stack.enter_context(mock.patch.object(module, "CHUNK", log.chunk))
        try:
            if log.files and log.clicks:
                check_sessions(folder, log, config)
            data = prepare_form(folder, log, config)
        except UserError as error:
            refused = str(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if right is None:
        assert re.search(refusal, refused), f"{log.said}: {refused!r}"
        return kind, "refused"
    assert data, f"{log.said}: {refused}"
    check_data(log, data, right)
    return kind, "read"


KINDS = {"broken": read_broken, "forms": read_form}


def fuzz(cases: range, seed: int, kind: str) -> tuple[collections.Counter, list[str]]:
    """Reads the cases of a kind.

    Returns:
      How often each reader or form did what, and what went wrong.
    """
    done: collections.Counter = collections.Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in cases:
            try:
                done[KINDS[kind](pathlib.Path(name), seed, case)] += 1
            # A panic of polars is not an Exception.
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                trace = traceback.extract_tb(error.__traceback__)[-1]
                wrong.append(
                    f"case {case} ({kind}): {type(error).__name__}: "
                    f"{str(error)[:600]} ({pathlib.Path(trace.filename).name}:"
                    f"{trace.lineno})"
                )
    return done, wrong


def show(kind: str, seed: int, case: int) -> None:
    """Prints the files of a case."""
    if kind == "broken":
        print(draw(seed, case)[1][:5000])
        return
    log = forms.draw(np.random.default_rng([seed, case]))
    print(log.said, log.settings, log.frame, sep="\n")
    for name, data in log.files.items():
        print(name, data[:2000], sep="\n")


def main() -> None:
    """Reads the cases that the flags ask for, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="instead of all kinds")
    parser.add_argument("--only", type=int, help="read this case, and print its files")
    flags = parser.parse_args()
    logging.disable(logging.WARNING)
    cases, failed = range(flags.cases), 0
    for kind in [flags.kind] if flags.kind else KINDS:
        if flags.only is not None:
            cases = range(flags.only, flags.only + 1)
            show(kind, flags.seed, flags.only)
        done, wrong = fuzz(cases, flags.seed, kind)
        for reader in sorted({reader for reader, _ in done}):
            read_in_full, refused = done[reader, "read"], done[reader, "refused"]
            print(f"{reader:<14}{read_in_full:>6} read{refused:>6} refused")
        print(*wrong, f"{kind}: {len(wrong)} of {len(cases)} went wrong", sep="\n")
        failed += len(wrong)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
