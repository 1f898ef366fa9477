"""Every kind of fault in the files of every reader is counted or reported in a line."""

import gzip
import pickle
import random
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srgnn_jax.data.read import Form, read_clicks
from srgnn_jax.data.sources import Settings, find_files
from srgnn_jax.errors import UserError
from tests import fuzz_readers
from tests.fuzz_readers import HEADERS, READERS, RULES, clicks, good_file

TEXT = ["yoochoose", "diginetica", "csv", "csv.gz", "tsv", "recbole_inter"]
WITH_HEADER = [reader for reader in TEXT if reader in HEADERS]
EVERY = list(READERS)
ROWS = len(clicks())


def lines_of(reader):
    data = good_file(reader, clicks())
    return (gzip.decompress(data) if reader == "csv.gz" else data).split(b"\n")[:-1]


def write(folder, reader, data):
    if isinstance(data, list):
        data = b"\n".join(data)
    if reader == "csv.gz" and not data.startswith(b"\x1f\x8b"):
        data = gzip.compress(data)
    path = folder / READERS[reader].name
    path.write_bytes(data)
    if reader == "srgnn_pickles":
        (folder / "test.txt").write_bytes(pickle.dumps(([[1]], [2])))
    return path


def prepare(folder, reader, on_bad_row="error"):
    source = READERS[reader].source
    rules = RULES if "test_days" in source.SETTINGS else {}
    config = Settings(on_bad_row=on_bad_row, **rules)
    return source.read(find_files(source, folder, config), config)


def error_of(folder, reader, on_bad_row="error"):
    """Returns the error, which must be one line that names the file."""
    with pytest.raises(UserError) as error:
        prepare(folder, reader, on_bad_row)
    text = str(error.value)
    assert "\n" not in text
    assert str(folder / READERS[reader].name) in text
    assert len(text) < len(str(folder)) + 900
    return text


def same(one, other):
    """Whether two data sets are the same, except for the number of skipped rows."""
    skipped = {"skipped_rows": 0}
    return (
        one.vocabulary.ids == other.vocabulary.ids
        and one.counts | skipped == other.counts | skipped
        and all(
            np.array_equal(sessions.items, other.splits[split].items)
            and np.array_equal(sessions.offsets, other.splits[split].offsets)
            for split, sessions in one.splits.items()
        )
    )


@pytest.fixture
def good(tmp_path):
    """A function that returns what a reader makes of a good file."""

    def read(reader):
        folder = tmp_path / "good"
        folder.mkdir()
        write(folder, reader, good_file(reader, clicks()))
        return prepare(folder, reader)

    return read


@pytest.mark.parametrize("reader", EVERY)
def test_a_good_file_is_read_in_full(tmp_path, reader):
    write(tmp_path, reader, good_file(reader, clicks()))
    counts = prepare(tmp_path, reader).counts
    if reader == "srgnn_pickles":  # These are not raw clicks; test.txt has two more.
        assert counts["clicks"] == ROWS + 2
    else:
        assert (counts["raw_clicks"], counts["skipped_rows"]) == (ROWS, 0)


# What replaces a row, given its fields, and the error for it.
BAD_ROWS = {
    "too few fields": (lambda f, sep: sep.join(f[:-1]), r"\d fields instead of"),
    "too many fields": (lambda f, sep: sep.join([*f, b"x"]), r"\d fields instead of"),
    "NUL byte": (lambda f, sep: b"\0" + sep.join(f), "NUL byte"),
    "only NUL bytes": (lambda f, sep: b"\0" * 50, "NUL byte|fields instead of"),
    "invalid UTF-8": (lambda f, sep: b"\xff" + sep.join(f), "not UTF-8"),
    "half a character": (lambda f, sep: sep.join(f) + "é".encode()[:1], "not UTF-8"),
    "open quote": (lambda f, sep: b'"' + sep.join(f), "quotes|fields"),
    "empty fields": (lambda f, sep: sep.join(b"" for _ in f), "is empty"),
    "blank fields": (lambda f, sep: sep.join(b"  " for _ in f), "is empty"),
    "carriage returns": (lambda f, sep: sep.join(f) + b"\r" + sep.join(f), "fields"),
    "no time": (lambda f, sep: with_time(f, sep, b""), "is empty"),
    "another form": (lambda f, sep: with_time(f, sep, b"29/09/2014"), "not a time"),
    "no such day": (lambda f, sep: with_time(f, sep, b"2014-02-30"), "not a time"),
    "negative": (lambda f, sep: with_time(f, sep, b"-1400000000"), "not a time"),
    "too late": (lambda f, sep: with_time(f, sep, b"9" * 30), "not a time"),
    "year 9999": (lambda f, sep: with_time(f, sep, b"9999-01-01"), "not a time"),
    "not finite": (lambda f, sep: with_time(f, sep, b"1e999"), "not a time"),
    "not a number": (lambda f, sep: with_time(f, sep, b"nan"), "not a time"),
    "huge time": (lambda f, sep: with_time(f, sep, b"1" * 10**6), "not a time"),
    "words of 2 MB": (lambda f, sep: b"x" * (2 * 10**6), "1 fields instead of"),
}


def with_time(fields, separator, time):
    """Replaces the time, or the day, of a row."""
    longest = max(fields, key=len)  # Ids and positions are shorter.
    return separator.join(time if field == longest else field for field in fields)


@pytest.mark.parametrize(
    ("fault", "reader"),
    # Every fault is tried with half of the readers, which all split lines alike.
    [(fault, r) for n, fault in enumerate(BAD_ROWS) for r in TEXT[n % 2 :: 2]],
)
def test_a_bad_row_is_told_with_its_line_or_counted(tmp_path, good, reader, fault):
    make, message = BAD_ROWS[fault]
    separator = READERS[reader].separator.encode()
    lines = lines_of(reader)
    bad = make(lines[-1].split(separator), separator)
    broken = [*lines[:10], bad, *lines[10:], bad]
    path = write(tmp_path, reader, broken)
    text = error_of(tmp_path, reader)
    assert f"{path}, line 11: " in text
    assert re.search(message, text), text
    skipping = prepare(tmp_path, reader, "skip")
    assert skipping.counts["skipped_rows"] == 2
    assert same(skipping, good(reader))


# Changes that do not affect the content of a file.
HARMLESS = {
    "byte order mark": lambda lines, sep: b"\xef\xbb\xbf" + b"\n".join(lines),
    "CRLF": lambda lines, sep: b"\r\n".join([*lines, b""]),
    "no last line end": lambda lines, sep: b"\n".join(lines),
    "blank lines": lambda lines, sep: b"\n\n".join([*lines, b"  ", b""]),
    "gzipped, by another name": lambda lines, sep: gzip.compress(b"\n".join(lines)),
    "quotes": lambda lines, sep: b"\n".join(
        sep.join(b'"%s"' % field for field in line.split(sep)) for line in lines
    ),
}


@pytest.mark.parametrize("reader", TEXT)
@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_nothing_of_a_file(tmp_path, good, reader, change):
    separator = READERS[reader].separator.encode()
    write(tmp_path, reader, HARMLESS[change](lines_of(reader), separator))
    read = prepare(tmp_path, reader)
    assert read.counts["skipped_rows"] == 0
    assert same(read, good(reader))


# Files from which nothing can be read.
USELESS = {
    "empty": (lambda lines: b"", "is empty|holds no clicks"),
    "blank": (lambda lines: b"\n \n", "is empty|holds no clicks"),
    "truncated gzip": (
        lambda lines: gzip.compress(b"\n".join(lines))[:-12],
        "cannot read",
    ),
    "flipped gzip": (
        lambda lines: gzip.compress(b"\n".join(lines))[:-8] + b"\1" * 8,
        "cannot read",
    ),
}


@pytest.mark.parametrize("reader", TEXT)
@pytest.mark.parametrize("fault", USELESS)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_files_of_which_nothing_can_be_read(tmp_path, reader, fault, on_bad_row):
    make, message = USELESS[fault]
    write(tmp_path, reader, make(lines_of(reader)))
    assert re.search(message, error_of(tmp_path, reader, on_bad_row))


HEADER_FAULTS = {
    "only a header": (lambda header, lines, sep: [header], "holds no clicks"),
    "no header": (lambda header, lines, sep: lines, "column"),
    "no first column": (
        lambda header, lines, sep: [line.split(sep, 1)[1] for line in (header, *lines)],
        "no (session|time) column",
    ),
    "a column twice": (
        lambda header, lines, sep: [
            sep.join([*line.split(sep), line.split(sep)[0]])
            for line in (header, *lines)
        ],
        "more than one (session|time) column",
    ),
    "carriage returns alone": (
        lambda header, lines, sep: [b"\r".join([header, *lines])],
        "carriage returns|column",
    ),
    "NUL bytes": (
        lambda header, lines, sep: [b"\0" + header, *lines],
        "no (session|time) column",
    ),
}


@pytest.mark.parametrize("reader", WITH_HEADER)
@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_faults_of_the_header(tmp_path, reader, fault):
    make, message = HEADER_FAULTS[fault]
    header, *lines = lines_of(reader)
    write(tmp_path, reader, make(header, lines, READERS[reader].separator.encode()))
    text = error_of(tmp_path, reader)
    assert re.search(message, text), text


@pytest.mark.parametrize("reader", TEXT)
def test_ids_may_be_any_text(tmp_path, good, reader):
    """Beyond 64 bits, not ASCII, 1 MB long: all stay distinct, and stay text."""
    names = {
        b"100": b"99999999999999999999999999",
        b"101": b"99999999999999999999999998",
        b"102": "é 日".encode(),
        b"103": b"x" * 10**6,
        b"104": b"1e2",
    }
    separator = READERS[reader].separator.encode()
    write(
        tmp_path,
        reader,
        [
            separator.join(names.get(field, field) for field in line.split(separator))
            if n < 30
            else line
            for n, line in enumerate(lines_of(reader))
        ],
    )
    read = prepare(tmp_path, reader)
    expected = {name.decode() for name in names.values()}
    assert expected <= set(read.vocabulary.ids)
    assert read.counts["raw_clicks"] == ROWS


@pytest.mark.parametrize("reader", [*TEXT, "parquet"])
def test_rows_in_any_order(tmp_path, good, reader):
    """The sessions stay the same, whatever the order in which items appear."""
    rows = clicks()
    random.Random(0).shuffle(rows)
    write(tmp_path, reader, good_file(reader, rows))
    read, expected = prepare(tmp_path, reader), good(reader)

    def sessions(prepared):
        ids = np.array(["", *prepared.vocabulary.ids], object)
        return {
            split: sorted(ids[session].tolist() for session in part)
            for split, part in prepared.splits.items()
        }

    if reader != "diginetica":  # A session's day is that of its last row.
        assert sessions(read) == sessions(expected)
    assert read.counts["raw_clicks"] == ROWS


@pytest.mark.parametrize("reader", EVERY)
def test_a_session_of_20_000_clicks(tmp_path, reader):
    start = fuzz_readers.START
    long = [(0, 100 + n % 5, start + n % 86_400) for n in range(20_000)]
    write(tmp_path, reader, good_file(reader, long + clicks()[4:]))
    if reader == "srgnn_pickles":
        sessions = [[1 + n % 5 for n in range(20_000)], [1, 2]]
        write(tmp_path, reader, pickle.dumps(sessions))
    train = prepare(tmp_path, reader).splits["train"]
    assert train.lengths.max() > 19_990


PARQUET_FAULTS = {
    "empty": (lambda data: b"", "is empty"),
    "truncated": (lambda data: data[: len(data) // 2], "cannot read"),
    "four letters": (lambda data: data[:4], "cannot read"),
    "flipped page": (lambda data: data[:4] + b"\xff" * 40 + data[44:], "cannot read"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_damaged_parquet(tmp_path, fault):
    make, message = PARQUET_FAULTS[fault]
    write(tmp_path, "parquet", make(good_file("parquet", clicks())))
    assert message in error_of(tmp_path, "parquet", "skip")


def test_parquet_of_which_a_thread_of_polars_gives_up(tmp_path, monkeypatch):
    """The batches then just end, so rows would be lost without being counted."""
    write(tmp_path, "parquet", good_file("parquet", clicks()))
    collect = pl.LazyFrame.collect_batches

    def fewer(self, **options):
        return [next(iter(collect(self, **options))).head(10)]

    monkeypatch.setattr(pl.LazyFrame, "collect_batches", fewer)
    assert f"{ROWS - 10} rows are damaged" in error_of(tmp_path, "parquet")


PARQUET_COLUMNS = {
    "ids beyond 64 bits": ("item_id", ["9" * 30] * ROWS, 0),
    "no id": ("item_id", ["7"] * (ROWS - 1) + [None], 1),
    "negative time": ("timestamp", [-5] + [t for *_, t in clicks()[1:]], 1),
    "a date too late": (
        "timestamp",
        (pl.Series([*(t for *_, t in clicks()[:-1]), 253_370_764_800]) * 10**6).cast(
            pl.Datetime("us")
        ),
        1,
    ),
}


@pytest.mark.parametrize("kind", PARQUET_COLUMNS)
def test_values_in_parquet(tmp_path, kind):
    column, values, skipped = PARQUET_COLUMNS[kind]
    path = write(tmp_path, "parquet", good_file("parquet", clicks()))
    pl.read_parquet(path).with_columns(pl.Series(column, values)).write_parquet(path)
    counts = prepare(tmp_path, "parquet", "skip").counts
    assert (counts["skipped_rows"], counts["raw_clicks"]) == (skipped, ROWS - skipped)
    if skipped:
        assert "row " in error_of(tmp_path, "parquet")


def test_bytes_after_the_end_of_a_pickle(tmp_path):
    data = good_file("srgnn_pickles", clicks())
    write(tmp_path, "srgnn_pickles", data + data)
    assert "bytes follow its end" in error_of(tmp_path, "srgnn_pickles")


def test_a_line_of_tabs_is_a_row_of_empty_fields(tmp_path):
    """Also if another row is malformed, so that lines are split in another way."""
    lines = lines_of("tsv")
    write(tmp_path, "tsv", [*lines, b"\t\t", b"bad", b"", b"   "])
    assert prepare(tmp_path, "tsv", "skip").counts["skipped_rows"] == 2


NASTY = "a1-.:'\"\\#\t,;| \r\0\x0b\x1c\x85\xa0\u2028\ufeff\ufffdé日𝄞"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(NASTY, max_size=12), max_size=12),
    st.sampled_from("\t,;|"),
)
def test_any_text_between_good_rows(tmp_path_factory, texts, separator):
    folder = tmp_path_factory.mktemp("log")
    good_rows = [f"s{n}{separator}i{n}{separator}{n + 5}" for n in range(3)]
    header = separator.join(["session", "item", "time"])
    data = "\n".join([header, *good_rows, *texts, *good_rows])
    path = folder / "log.csv"
    path.write_bytes(data.encode())
    rows = [line for line in data.split("\n")[1:] if line.strip() or separator in line]
    read, counts = read_clicks(path, Form(on_bad_row="skip"))
    assert len(read) + counts["skipped_rows"] == len(rows)
    assert len(read) >= 6


@pytest.mark.parametrize("kind", fuzz_readers.KINDS)
@pytest.mark.parametrize("part", range(2))
def test_files_broken_at_random(part, kind):
    done, wrong = fuzz_readers.fuzz(range(part * 60, part * 60 + 60), 0, kind)
    assert not wrong
    assert sum(done.values()) == 60
    assert {what for _, what in done} == {"read", "refused"}
