"""Clicks from a notebook's frame, and one log in many forms, give the same run."""

import bz2
import datetime
import gzip
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from srgnn_jax import Clicks, Recommender, train_and_evaluate
from srgnn_jax.data import store
from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sources import Settings
from srgnn_jax.errors import UserError
from srgnn_jax.serve.stream import evaluate_sessions
from tests.tiny import tiny_config, write_log

REAL = pathlib.Path(__file__).parents[2] / "shared" / "data" / "raw"
REAL /= "yoochoose-clicks-100k_train_full.txt"


def polars_frame(path):
    return pl.read_csv(path)


def pandas_frame(path):
    pandas = pytest.importorskip("pandas")
    return pandas.read_csv(path)


FRAMES = {"polars": polars_frame, "pandas": pandas_frame}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the config of a run that read a csv, and its folder."""
    folder = tmp_path_factory.mktemp("csv")
    config = tiny_config(folder)
    config.epochs = 1
    train_and_evaluate(config, str(folder / "run"))
    return config, folder


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_trains_resumes_evaluates_and_recommends(trained, tmp_path, kind):
    config, folder = trained
    frame = FRAMES[kind](folder / "data" / "log.csv")
    config = config.copy_and_resolve_references()
    config.data_dir = ""
    config.prepared_dir = str(tmp_path / "prepared")
    clicks = Clicks.from_frame(frame, session="session_id")
    workdir = str(tmp_path / "run")
    config.max_steps = 3
    train_and_evaluate(config, workdir, clicks=clicks)
    config.max_steps = 0
    resumed = train_and_evaluate(config, workdir, clicks=clicks)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == int(resumed.step) > 3
    # The run on the csv has the same data, parameters and recommendations.
    (ours, theirs) = (
        json.loads(pathlib.Path(run, "results.json").read_text())
        for run in (workdir, folder / "run")
    )
    assert ours["data"]["fingerprint"] == theirs["data"]["fingerprint"]
    sessions = clicks.sessions()
    some = list(sessions.values())[:50]
    found = [
        Recommender.load(run).recommend(some, k=5)
        for run in (workdir, str(folder / "run"))
    ]
    for one, other in zip(*found, strict=True):
        assert one.items == other.items
        np.testing.assert_array_equal(one.scores, other.scores)
    ranked, expected = (
        evaluate_sessions(workdir, log)
        for log in (clicks, str(folder / "data" / "log.csv"))
    )
    del ranked["examples_per_second"], expected["examples_per_second"]
    assert ranked == expected


def test_sessions_of_a_frame_are_in_order_of_time():
    frame = pl.DataFrame(
        {"visit": ["b", "a", "b", "a"], "what": [3, 1, 2, 1], "ts": [30, 20, 10, 40]}
    )
    clicks = Clicks.from_frame(frame, session="visit", item="what")
    assert clicks.sessions() == {"b": ["2", "3"], "a": ["1", "1"]}
    # A pause cuts the session into visits; the last one is returned.
    assert clicks.sessions(session_gap_minutes=0.2) == {"b": ["3"], "a": ["1"]}


def test_a_frame_that_is_none():
    with pytest.raises(UserError, match="no pandas or polars frame"):
        Clicks.from_frame(object())
    with pytest.raises(UserError, match=r"the frame: no time column among 'session'"):
        Clicks.from_frame(pl.DataFrame({"session": [1], "item": [2]}))


def test_a_frame_needs_the_source_of_click_logs(trained):
    config = trained[0].copy_and_resolve_references()
    config.dataset = "diginetica"
    frame = pl.read_csv(trained[1] / "data" / "log.csv")
    with pytest.raises(UserError, match="need 'click_log'"):
        train_and_evaluate(config, "unused", clicks=Clicks.from_frame(frame))


def as_text(frame, folder, rows=slice(None), **options):
    data = frame[rows].write_csv(**options).encode()
    (folder / "log.csv").write_bytes(data)
    return data


def as_parts(frame, folder):
    for n in range(4):
        path = folder / f"day={n}" / "part-0.parquet"
        path.parent.mkdir()
        frame[n::4].write_parquet(path)
    (folder / "_SUCCESS").touch()


def as_lists(frame, folder):
    lists = frame.group_by("SessionId", maintain_order=True).agg("ItemId", "Time")
    lists.write_parquet(folder / "log.parquet")


COPIES = {
    "shuffled": lambda f, to: as_text(f.sample(fraction=1, shuffle=True, seed=0), to),
    "reversed": lambda f, to: as_text(f.reverse(), to),
    "sorted by item": lambda f, to: as_text(f.sort("ItemId"), to),
    "tabs": lambda f, to: as_text(f, to, separator="\t"),
    "quotes": lambda f, to: as_text(
        f, to, quote_style="always", line_terminator="\r\n"
    ),
    "gz": lambda f, to: (to / "log.gz").write_bytes(gzip.compress(as_text(f, to))),
    "bz2": lambda f, to: (to / "log.bz2").write_bytes(bz2.compress(as_text(f, to))),
    "parquet": lambda f, to: f.write_parquet(to / "log.parquet"),
    "parts": as_parts,
    "JSON lines": lambda f, to: f.write_ndjson(to / "log.jsonl"),
    "a session a row": as_lists,
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Returns real or synthetic clicks, and the fingerprint of the prepared data."""
    folder = tmp_path_factory.mktemp("log")
    if REAL.is_file():
        frame = pl.read_csv(REAL, separator="\t").head(20_000)
    else:
        write_log(folder / "log.csv")
        frame = pl.read_csv(
            folder / "log.csv", new_columns=["SessionId", "ItemId", "Time"]
        )
    (folder / "data").mkdir()
    as_text(frame, folder / "data")
    return frame, fingerprint(folder)


def fingerprint(folder):
    days = {"test_days": 1.0 if REAL.is_file() else 0.35}
    data = store.load_dataset(
        "click_log", data_dir=folder / "data", prepared_dir=folder / "prepared", **days
    )
    return data.fingerprint


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_in_another_form_is_the_same_data(log, tmp_path, copy):
    frame, expected = log
    (tmp_path / "data").mkdir()
    COPIES[copy](frame, tmp_path / "data")
    if copy in ("gz", "bz2"):
        (tmp_path / "data" / "log.csv").unlink()
    assert fingerprint(tmp_path) == expected


def test_another_click_is_other_data(log, tmp_path):
    (tmp_path / "data").mkdir()
    as_text(log[0], tmp_path / "data", slice(0, -1))
    assert fingerprint(tmp_path) != log[1]


def events_of(frame):
    """Puts the clicks of each session into a list of structures, as JSON logs do."""
    event = pl.struct(aid="item_id", ts="timestamp")
    return frame.group_by("session_id", maintain_order=True).agg(events=event)


def test_a_frame_of_nested_events_and_one_of_text_lists(trained, tmp_path):
    frame = pl.read_csv(trained[1] / "data" / "log.csv")
    expected = Clicks.from_frame(frame).sessions()
    nested = events_of(frame)
    assert Clicks.from_frame(nested).sessions() == expected
    items = pl.col("item_id").cast(pl.String).str.join(" ").alias("items")
    rows = frame.sort("timestamp").group_by("session_id", maintain_order=True)
    listed = rows.agg(items, pl.col("timestamp").max())
    assert Clicks.from_frame(listed).sessions() == expected
    # A column of objects that nobody reads may stay.
    nested = nested.with_columns(
        pl.Series("model", [object()] * len(nested), pl.Object)
    )
    settings = Settings(min_item_count=1)
    prepared = Clicks.from_frame(nested).prepare(settings, tmp_path)
    assert len(prepared.train.items) + len(prepared.test.items) > 0.9 * len(frame)


TWO = pl.DataFrame({"session": [1, 1], "item": [1, 2], "day": ["2024-03-01"] * 2})
TIMES = {
    "numbers": [1.0, 2.0],
    "times": [datetime.datetime(2024, 3, 1)] * 2,
    "times of day": [datetime.time(10), datetime.time(11)],
}


@pytest.mark.parametrize("one", TIMES)
@pytest.mark.parametrize("other", TIMES)
def test_all_times_are_of_one_form(one, other):
    parts = {"a": TWO.with_columns(time=pl.Series(TIMES[one]))}
    parts["b"] = TWO.with_columns(time=pl.Series([None, TIMES[other][0]]))
    form = Form(Columns(date="day"), on_bad_row="skip")
    if one == other:
        assert len(read_clicks(parts, form)[0]) == 3
        return
    said = f"b, row 2: .* is one of {other}, but the times before are {one}"
    with pytest.raises(UserError, match=said):
        read_clicks(parts, form)


def test_times_of_day_that_are_all_missing():
    frame = TWO.with_columns(time=pl.Series([None, None], dtype=pl.Time)).drop("day")
    with pytest.raises(UserError, match="row 1: the time is empty"):
        Clicks.from_frame(frame).read(Settings())


def test_bytes_that_are_not_text():
    frame = TWO.with_columns(time=pl.Series([b"2024-03-01", b"\xff"]))
    with pytest.raises(UserError, match="column 'time' holds bytes"):
        Clicks.from_frame(frame)


def test_sessions_are_read_with_the_fields_of_a_config():
    frame = pl.DataFrame(
        {
            "session": ["a", "a", "-", "a"],
            "item": [1, 2, 3, 4],
            "time": [
                "01/03/2024 10:00",
                "01/03/2024 10:05",
                "soon",
                "01/03/2024 12:00",
            ],
        }
    )
    how = {"time_format": "%d/%m/%Y %H:%M", "on_bad_row": "skip"}
    clicks = Clicks.from_frame(frame)
    assert clicks.sessions(**how) == {"a": ["1", "2", "4"]}
    assert clicks.sessions(**how, session_gap_minutes=30) == {"a": ["4"]}
