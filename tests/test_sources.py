"""The sources: which files they find, what they read, and their builders in TFDS."""

import collections
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

import srgnn_jax.data.tfds
from srgnn_jax.data.counts import PUBLISHED_COUNTS
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sources import (
    SOURCES,
    Settings,
    click_log,
    diginetica,
    find_files,
    pickles,
    retailrocket,
    synthetic,
    yoochoose,
)
from srgnn_jax.data.sources.synthetic import draw_clicks
from srgnn_jax.data.store import load_dataset
from srgnn_jax.errors import UserError
from tests.raw_files import write_clicks, write_pickles, write_views
from tests.tiny import write_log

SHARED = pathlib.Path(__file__).parents[1].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


def read(source, folder, **settings):
    """Reads and prepares a folder without storing anything."""
    chosen = Settings(**settings)
    return source.read(find_files(source, folder, chosen), chosen)


def lists(sessions):
    return [session.tolist() for session in sessions]


RAW_FILES = {
    "click_log": lambda folder: write_log(folder / "log.csv"),
    "diginetica": lambda folder: write_views(folder / "train-item-views.csv"),
    "yoochoose/1_4": lambda folder: write_clicks(folder / "yoochoose-clicks.dat"),
    "srgnn_pickles": write_pickles,
}


def build(folder, name, manual, **options):
    """Builds the records of a source, as a user of TFDS would."""
    built = tfds.builder(
        name, data_dir=folder / "tfds", prepared_dir=str(folder / "store"), **options
    )
    config = tfds.download.DownloadConfig(manual_dir=manual)
    built.download_and_prepare(download_config=config)
    return built


@pytest.mark.parametrize("name", RAW_FILES)
def test_a_builder_serves_tfds_users_alone(tmp_path, name):
    manual = tmp_path / "manual"
    manual.mkdir()
    RAW_FILES[name](manual)
    source, _, preset = name.partition("/")
    build(tmp_path, name, manual)
    settings = SOURCES[source].PRESETS[preset or "default"]
    expected = SOURCES[source].read(
        find_files(SOURCES[source], manual, settings), settings
    )
    # Found again, as later programs would, without a store.
    again = tfds.builder(name, data_dir=tmp_path / "tfds")
    assert list(again.info.metadata["item_ids"]) == expected.vocabulary.ids
    assert again.info.metadata["counts"] == expected.counts
    assert list(again.info.splits) == list(expected.splits)
    for split, sessions in expected.splits.items():
        records = again.as_data_source(split)
        assert [records[i]["items"].tolist() for i in range(len(records))] == lists(
            sessions
        )
        assert records[0]["items"].dtype == np.int32
        assert (split in again.info.metadata["last_only"]) == sessions.last_only
    by_name = tfds.data_source(name, data_dir=tmp_path / "tfds", split="train")
    assert by_name[0]["items"].tolist() == expected.train[0].tolist()


def test_settings_go_into_a_builder_as_its_config(tmp_path):
    write_log(tmp_path / "log.csv")
    (tmp_path / "another.csv").touch()
    config = srgnn_jax.data.tfds.PreparationConfig(
        name="mine", log_file="log.csv", test_days=0.35
    )
    built = build(tmp_path, "click_log", tmp_path, config=config)
    expected = read(click_log, tmp_path, log_file="log.csv", test_days=0.35)
    assert len(built.as_data_source("test")) == len(expected.test)


def test_events_of_visitors_are_cut_into_visits(tmp_path):
    minute, day = 60_000, 86_400_000
    rows = [
        # Two visits of one visitor, an hour apart. On four other days, four other
        # visitors look at the same items.
        *((1, 0, 7), (1, 10 * minute, 8), (1, 70 * minute, 8), (1, 80 * minute, 7)),
        *((v, v * day, item) for v in (2, 3, 14, 15) for item in (7, 8)),
    ]
    events = [f"{1430000000000 + t},{v},view,{item}," for v, t, item in rows]
    events.append("1430000000001,1,addtocart,9,")
    header = "timestamp,visitorid,event,itemid,transactionid"
    (tmp_path / "events.csv").write_text("\n".join([header, *events]))
    preset = retailrocket.PRESETS["default"]
    found = retailrocket.read(find_files(retailrocket, tmp_path, preset), preset)
    assert lists(found.train) == [[1, 2], [2, 1], [1, 2], [1, 2]]
    assert lists(found.test) == [[1, 2], [1, 2]]
    assert found.vocabulary.ids == ["7", "8"]


def test_records_are_written_from_the_store(tmp_path, monkeypatch):
    write_log(tmp_path / "log.csv")
    load_dataset("click_log", data_dir=tmp_path, prepared_dir=tmp_path / "store")
    monkeypatch.setattr(click_log, "read", lambda *_: pytest.fail("read again"))
    assert len(build(tmp_path, "click_log", tmp_path).as_data_source("train"))


def test_every_source_is_a_builder_with_its_presets(tmp_path):
    for name, source in SOURCES.items():
        built = tfds.builder(name, data_dir=tmp_path)
        assert (source.INSTRUCTIONS or None) == built.MANUAL_DOWNLOAD_INSTRUCTIONS
        for preset, settings in source.PRESETS.items():
            builder = tfds.builder(f"{name}/{preset}", data_dir=tmp_path)
            assert builder.builder_config.rules == settings.rules


def test_a_split_without_sessions_is_left_out(tmp_path):
    # Users with three clicks have none left to validate on.
    lines = [f"{n // 3}\ti{n % 3}\t{n}\n" for n in range(9)]
    text = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(lines)
    (tmp_path / "log.inter").write_text(text)
    data = load_dataset(
        "recbole_inter", data_dir=tmp_path, prepared_dir=tmp_path / "prepared"
    )
    assert data.validation is None
    assert lists(data.test) == [[1, 2, 3]] * 3
    assert "validation" not in build(tmp_path, "recbole_inter", tmp_path).info.splits


@pytest.mark.parametrize(
    ("source", "preset", "published"),
    [
        (diginetica, "default", {"test_days": 7.0}),
        (yoochoose, "1_64", {"train_fraction": 1 / 64, "date_resolution_seconds": 1}),
        (yoochoose, "1_4", {"train_fraction": 1 / 4, "date_resolution_seconds": 1}),
        (click_log, "default", {}),
    ],
)
def test_presets_follow_the_published_rules(source, preset, published):
    assert (
        source.PRESETS[preset].rules
        == {
            "min_session_length": 2,
            "min_item_count": 5,
            "test_days": 1.0,
            "test_start": None,
            "test_end": None,
            "train_days": 0.0,
            "train_fraction": 1.0,
            "date_resolution_seconds": 0,
        }
        | published
    )
    assert next(iter(yoochoose.PRESETS)) == "1_64"


def test_only_the_sessions_that_the_fraction_needs_are_kept(tmp_path):
    write_clicks(tmp_path / "yoochoose-clicks.dat")
    kept = {
        name: len(read(yoochoose, tmp_path, **vars(preset)).train)
        for name, preset in yoochoose.PRESETS.items()
    }
    # 37 training sessions have two examples each; 18 and 1 of these examples are kept.
    assert kept == {"1_4": 9, "1_64": 1}


def test_instructions_are_shown_where_the_file_is_missing(tmp_path):
    with pytest.raises(
        AssertionError, match=r"Get train-item-views\.csv from the CIKM"
    ):
        build(tmp_path, "diginetica", tmp_path / "none")


# TensorFlow and torch seem to be installed, but cannot be imported.
WITHOUT_TENSORFLOW = """
import importlib.machinery, pathlib, sys

class Refuse:
    tried = []
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch"):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        self.tried.append(spec.name)
        raise ModuleNotFoundError(spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Refuse())
import tensorflow_datasets as tfds
import srgnn_jax.data.tfds
from srgnn_jax.data.batches import train_batches
from srgnn_jax.data.store import load_dataset

folder = pathlib.Path(sys.argv[1])
for _ in range(2):
    data = load_dataset("click_log", data_dir=folder, prepared_dir=folder / "p")
next(train_batches(data.train.examples(), 8, seed=0, epoch=0))
built = tfds.builder(
    "click_log", data_dir=folder / "tfds", prepared_dir=str(folder / "p")
)
built.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=folder)
)
assert len(built.as_data_source("train")[0]["items"]) > 1
again = load_dataset(
    "tfds", data_dir=folder / "tfds", prepared_dir=folder / "p", tfds_name="click_log"
)
assert len(again.train) == len(data.train)
assert not Refuse.tried, Refuse.tried
"""


def test_tensorflow_is_neither_needed_nor_imported(tmp_path):
    write_log(tmp_path / "log.csv")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, tmp_path],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_columns_and_separator_of_a_log_may_be_named(tmp_path):
    write_log(tmp_path / "log.csv")
    expected = read(click_log, tmp_path, test_days=0.35)
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "session_id,item_id,timestamp"
    rows = [line.replace(",", "~") for line in lines]
    (tmp_path / "log.csv").write_text("\n".join(["visit~a,b~when", *rows]))
    named = {"session_column": "visit", "item_column": "a,b", "time_column": "when"}
    prepared = read(click_log, tmp_path, test_days=0.35, separator="~", **named)
    assert prepared.vocabulary.ids == expected.vocabulary.ids
    assert prepared.counts == expected.counts
    with pytest.raises(UserError, match=r"log\.csv: no date column 'day'"):
        read(click_log, tmp_path, separator="~", date_column="day", **named)


def test_one_log_is_found_whatever_lies_beside_it(tmp_path):
    write_log(tmp_path / "log.csv")
    (tmp_path / "readme.md").touch()
    (tmp_path / "folder.csv").mkdir()
    assert find_files(click_log, tmp_path, Settings()) == [tmp_path / "log.csv"]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], {}, r"no log in config\.data_dir = .*Put one log there"),
        ([".hidden.csv", "_SUCCESS"], {}, r"no log in config\.data_dir"),
        (["a.csv", "b.tsv.gz"], {}, r"all 2 files in config\.data_dir = .* are empty"),
        (["a.csv"], {"log_file": "b.csv"}, r"no file b\.csv in config\.data_dir"),
    ],
)
def test_logs_that_are_not_there(tmp_path, files, settings, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        find_files(click_log, tmp_path, Settings(**settings))
    with pytest.raises(UserError, match="nowhere' does not exist"):
        find_files(click_log, tmp_path / "nowhere", Settings(**settings))
    a_file = tmp_path / "file"
    a_file.touch()
    with pytest.raises(UserError, match=r"file' is a file: .*--config\.log_file=file"):
        find_files(click_log, a_file, Settings(**settings))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (diginetica, r"no file .*train-item-views\.csv in .*CIKM Cup 2016"),
        (yoochoose, r"no file yoochoose-clicks\.dat in .*RecSys Challenge 2015"),
        (pickles, r"no file all_train_seq\.txt in .*preprocess\.py"),
    ],
)
def test_a_missing_file_is_told_with_where_it_comes_from(tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        find_files(source, tmp_path, Settings())
    message = r"nowhere' does not exist\. .*" + message.split(".*")[-1]
    with pytest.raises(UserError, match=message):
        find_files(source, tmp_path / "nowhere", Settings())


def test_views_are_taken_before_the_sample_of_them(tmp_path):
    sample = tmp_path / "sample_train-item-views.csv"
    write_views(sample)
    assert find_files(diginetica, tmp_path, Settings()) == [sample]
    write_views(tmp_path / "other_train-item-views.csv")
    with pytest.raises(UserError, match="more than one file"):
        find_files(diginetica, tmp_path, Settings())
    whole = tmp_path / "train-item-views.csv"
    write_views(whole)
    assert find_files(diginetica, tmp_path, Settings()) == [whole]


def test_views_are_in_the_order_of_timeframe(tmp_path):
    write_views(tmp_path / "train-item-views.csv")
    prepared = read(diginetica, tmp_path, test_days=7.0)
    assert prepared.vocabulary.ids == ["10", "11", "12"]
    # Of 20 days, the last 7 are for test; the day just 7 days before is in neither.
    assert lists(prepared.splits["train"]) == [[1, 2, 3]] * 24
    assert lists(prepared.splits["test"]) == [[1, 2, 3]] * 14
    assert prepared.counts["edge_sessions"] == 2


def test_settings_of_rows_reach_every_raw_reader(tmp_path):
    for source, name, write in (
        (diginetica, "train-item-views.csv", write_views),
        (yoochoose, "yoochoose-clicks.dat", write_clicks),
    ):
        path = tmp_path / name
        write(path)
        path.write_text(path.read_text().rstrip("\n") + "\nbad")
        lines = len(path.read_text().splitlines())
        with pytest.raises(UserError, match=rf"{name}, line {lines}: 1 fields"):
            read(source, tmp_path)
        prepared = read(source, tmp_path, on_bad_row="skip")
        assert prepared.counts["skipped_rows"] == 1
        assert prepared.counts["raw_clicks"] == 120


@pytest.mark.parametrize("field", ["test_start", "test_end"])
def test_bounds_of_the_test_split_are_iso_times_in_utc(field):
    def rule(text):
        return Settings(**{field: text}).rules[field]

    assert rule("") is None
    assert rule("1970-01-02") == 86_400 * 1_000_000
    assert rule("1970-01-01T00:00:01.5") == 1_500_000
    assert rule("1970-01-01T02:00:01+02:00") == 1_000_000
    with pytest.raises(UserError, match=rf"config\.{field} is '29\.9\.'"):
        rule("29.9.")


def test_pickles_as_published(tmp_path):
    train = [[5, 2, 3], [2, 4]]
    test = ([[3, 1, 2], [3, 1], [3], [4, 4], [4]], [5, 2, 1, 1, 4])
    write_pickles(tmp_path, train, test)
    prepared = read(pickles, tmp_path)
    assert lists(prepared.splits["train"]) == train
    assert not prepared.splits["train"].last_only
    assert lists(prepared.splits["test"]) == [
        [*prefix, target] for prefix, target in zip(*test, strict=True)
    ]
    assert prepared.splits["test"].last_only
    assert prepared.vocabulary.ids == ["1", "2", "3", "4", "5"]
    counts = prepared.counts
    assert (counts["train_sessions"], counts["test_sessions"]) == (2, 2)
    assert (counts["train_examples"], counts["test_examples"]) == (3, 5)
    assert counts["clicks"] == 5 + 4 + 3


@pytest.mark.parametrize(
    ("test", "sessions"),
    [
        # Two sessions of which one is the start of the other.
        (([[1, 2], [1], [1]], [3, 2, 2]), 2),
        # The same session twice.
        (([[1, 2], [1], [1, 2], [1]], [3, 2, 3, 2]), 2),
        # The prefix is the start of the pair before, but the target is another.
        (([[1, 2], [1]], [3, 5]), 2),
        # Shortest first, as others list them, every pair counts.
        (([[1], [1, 2]], [2, 3]), 2),
    ],
)
def test_sessions_behind_given_pairs(tmp_path, test, sessions):
    write_pickles(tmp_path, test=test)
    assert read(pickles, tmp_path).counts["test_sessions"] == sessions


class Payload:
    """Runs a command as soon as it is unpickled in the usual way."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["all_train_seq.txt", "test.txt"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, name, nested, protocol):
    payload = Payload(f"touch '{tmp_path / 'touched'}'")
    write_pickles(tmp_path)
    what = [[1, 2], [3, [payload]]] if nested else payload
    (tmp_path / name).write_bytes(pickle.dumps(what, protocol))
    with pytest.raises(UserError, match=rf"refused to read .*{name}: .*system"):
        read(pickles, tmp_path)
    assert not (tmp_path / "touched").exists()


def huge_list():
    """A list that is small in a pickle, and endless when printed."""
    what = [1]
    for _ in range(60):
        what = [what, what]
    return what


BROKEN = {
    "empty": (b"", "refused to read"),
    "truncated": (pickle.dumps([[1, 2, 3]] * 50)[:-20], "refused to read"),
    "no pickle": (b"1 2 3\n4 5\n", "refused to read"),
    "objects outside": (b"\x80\x02]K\x01Qa.", "refers to objects outside the file"),
    "a class": (pickle.dumps(pathlib.PurePosixPath("a")), "asks for 'pathlib"),
    "no list": ({"a": [1]}, "it holds a dict or a set"),
    "text alone": ("abc", "does not hold a list of sessions"),
    "empty list": ([], "does not hold a list of sessions"),
    "numbers": ([1, 2], r"session 0: 1 is not a list"),
    "an empty session": ([[1], []], r"session 1: \[\] is not a list"),
    "text": ([[1], ["2"]], r"session 1: \['2'\] is not"),
    "a fraction": ([[1.0]], r"session 0: \[1\.0\] is not"),
    "a truth value": ([[True]], r"session 0: \[True\] is not"),
    "padding": ([[1, 0]], r"session 0: \[1, 0\] is not"),
    "too large": ([[2**31]], "session 0: .* is not"),
    "too many items": ([[20_000_001]], r"session 0: \[20000001\] is not"),
    "a far memo slot": (b"\x80\x02]r\xff\xff\xff\x00.", "does not hold a list"),
    "a far memo slot, as text": (b"(lp99999999\n.", "does not hold a list"),
    "bytes after its end": (pickle.dumps([[1, 2]]) + b"x", "bytes follow its end"),
    "far too large": ([[10**5000]], "session 0: .* is not"),
    "a tuple": ([(1, 2)], r"session 0: \(1, 2\) is not"),
    "deep": ([huge_list()], "session 0: .* is not"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_pickle_of_something_else(tmp_path, kind):
    what, message = BROKEN[kind]
    write_pickles(tmp_path, train=what)
    with pytest.raises(UserError, match=message) as error:
        read(pickles, tmp_path)
    assert str(tmp_path / "all_train_seq.txt") in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([[1, 2], [3]], r"does not hold \(prefixes, targets\)"),
        ([[1], [2], [3]], r"does not hold \(prefixes, targets\)"),
        (([[1]], (2,)), r"does not hold \(prefixes, targets\)"),
        (([1], [2]), "session 0: 1 is not a list"),
        (([[]], [2]), r"session 0: \[\] is not a list"),
        (([[1]], ["2"]), r"session 0: \[1, '2'\] is not a list"),
        (([], []), "does not hold a list of sessions"),
    ],
)
def test_a_test_file_of_something_else(tmp_path, test, message):
    write_pickles(tmp_path, test=test)
    with pytest.raises(UserError, match=rf"test\.txt.* {message}|test\.txt {message}"):
        read(pickles, tmp_path)


def test_synthetic_clicks_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(synthetic, "SESSIONS", 1000)
    first, second = draw_clicks(), draw_clicks()
    assert first.equals(second)
    assert first.columns == ["session", "item", "time"]


def test_synthetic_clicks_are_worth_learning():
    prepared = read(synthetic, pathlib.Path())
    train, test = prepared.splits["train"], prepared.splits["test"]
    assert len(train) > 15_000
    assert 1_000 < len(test) < 5_000
    popular = collections.Counter(train.items.tolist())
    followers = collections.defaultdict(collections.Counter)
    for session in train:
        for item, target in zip(
            session[:-1].tolist(), session[1:].tolist(), strict=True
        ):
            followers[item][target] += 1
    most_popular = {item for item, _ in popular.most_common(20)}
    hits = {"popularity": 0, "successors": 0, "revisits": 0}
    examples = test.examples()
    for session in test:
        clicks = session.tolist()
        for n in range(1, len(clicks)):
            likely = {item for item, _ in followers[clicks[n - 1]].most_common(20)}
            hits["popularity"] += clicks[n] in most_popular
            hits["successors"] += clicks[n] in likely
            hits["revisits"] += clicks[n] in clicks[:n]
    shares = {kind: count / len(examples) for kind, count in hits.items()}
    assert shares["successors"] > 0.5
    assert shares["successors"] > 2.5 * shares["popularity"]
    assert shares["revisits"] > 0.1


@needs_shared
@pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Tokyo"])
def test_the_diginetica_sample(monkeypatch, zone):
    try:
        monkeypatch.setitem(os.environ, "TZ", zone)
        time.tzset()
        counts = read(diginetica, SHARED / "raw", test_days=7.0).counts
    finally:
        monkeypatch.undo()
        time.tzset()
    assert (counts["train_sessions"], counts["test_sessions"]) == (469, 47)
    assert (counts["train_examples"], counts["test_examples"]) == (1_205, 99)
    assert counts["items"] == 309
    assert counts["skipped_rows"] == 0


@needs_shared
def test_the_same_clicks_as_yoochoose_and_as_tsv(tmp_path):
    parts = [
        SHARED / "raw" / f"yoochoose-clicks-100k_{part}.txt"
        for part in ("train_full", "test")
    ]
    rows = [row for part in parts for row in read_clicks(part)[0].rows()]
    write_clicks(tmp_path / "yoochoose-clicks.dat", rows)
    header, *lines = parts[0].read_text().splitlines()
    lines += parts[1].read_text().splitlines()[1:]
    (tmp_path / "clicks.tsv").write_text("\n".join([header, *lines]))
    rules = {"test_days": 1.0, "date_resolution_seconds": 1}
    dat = load_dataset(
        "yoochoose", data_dir=tmp_path, prepared_dir=tmp_path / "p", **rules
    )
    clicks, read_counts = read_clicks(tmp_path / "clicks.tsv")
    tsv = prepare(clicks, **rules)
    for split, sessions in (("train", dat.train), ("test", dat.test)):
        assert lists(sessions) == lists(tsv.splits[split])
    assert dat.vocabulary.ids == tsv.vocabulary.ids
    assert dat.counts == tsv.counts | read_counts
    assert dat.counts["raw_clicks"] == len(rows) == len(lines)
    assert dat.counts["train_examples"] > 10_000


PICKLED = {
    "diginetica": ("diginetica", 15_963, 43_097),
    "yoochoose_1_64": ("yoochoose1_64", 15_324, 37_483),
}


@functools.cache
def pickled(name):
    return read(pickles, SHARED / PICKLED[name][0])


def assert_published(counts, name):
    _, test_sessions, items = PICKLED[name]
    for count, published in PUBLISHED_COUNTS[name].items():
        # The paper gives two digits of the average length, 5.125 for Diginetica.
        assert counts[count] == pytest.approx(published, rel=0, abs=0.0055)
    assert counts["test_sessions"] == test_sessions
    assert counts["items"] == items


@needs_shared
@pytest.mark.slow  # Whole data sets take seconds each.
@pytest.mark.parametrize("name", PICKLED)
def test_published_counts(name):
    assert_published(pickled(name).counts, name)


@needs_shared
@pytest.mark.slow  # Whole data sets take seconds each.
@pytest.mark.parametrize("name", PICKLED)
def test_published_data_through_the_store(tmp_path, name):
    data = load_dataset(
        name.partition("_")[0],
        data_dir=SHARED / PICKLED[name][0],
        prepared_dir=tmp_path,
        train_fraction=1.0 if name == "diginetica" else 1 / 64,
    )
    assert data.published == PUBLISHED_COUNTS[name]
    assert_published(data.counts, name)
    expected = pickled(name).splits
    for split, sessions in data.splits.items():
        np.testing.assert_array_equal(sessions.items, expected[split].items)
        np.testing.assert_array_equal(sessions.offsets, expected[split].offsets)
