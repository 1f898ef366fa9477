"""Data sets prepared by TFDS, of clicks and of sessions, as a source."""

import json
import struct
import sys

import numpy as np
import polars as pl
import pytest
import tensorflow_datasets as tfds

import srgnn_jax.data.tfds  # noqa: F401  Registers the builders.
from srgnn_jax.data import store, tfds_records
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.sources import SOURCES, Settings, find_files
from srgnn_jax.data.sources import tfds as source
from srgnn_jax.errors import UserError
from tests.raw_files import write_clicks, write_pickles
from tests.tiny import write_log

F = tfds.features
CLICK = {"user_id": F.Text(), "movie_id": np.int64, "timestamp": np.int64}
EVENTS = {"events": F.Sequence({"item": F.Text(), "time": F.Text()})}
# 40 users of three clicks, a day between users.
DAY = 86_400
CLICKS = [(u, 10 + u % 4 + n, u * DAY + n) for u in range(40) for n in range(3)]


def write(folder, features, splits, version="1.0.0", name="shop"):
    """Has TFDS prepare a data set of these records."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=F.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, _):
            return {split: self._generate_examples(r) for split, r in splits.items()}

        def _generate_examples(self, records):
            yield from enumerate(records)

    Builder.name = name
    Builder(file_format="array_record", data_dir=folder).download_and_prepare()
    return folder / name / version


def read(folder, tfds_name="shop", **settings):
    chosen = Settings(tfds_name=tfds_name, **settings)
    return source.read(find_files(source, folder, chosen), chosen)


def lists(sessions):
    return [session.tolist() for session in sessions]


def expected(clicks=CLICKS):
    frame = pl.DataFrame(clicks, ["session", "item", "time"], orient="row").select(
        pl.col("session", "item").cast(pl.String), pl.col("time") * 1_000_000
    )
    return prepare(frame, as_published=False)


def click_records(clicks=CLICKS):
    return [
        {"user_id": str(u), "movie_id": item, "timestamp": t} for u, item, t in clicks
    ]


def assert_same(data, other, but=()):
    for split, sessions in other.splits.items():
        assert lists(data.splits[split]) == lists(sessions)
        assert data.splits[split].last_only == sessions.last_only
    assert data.vocabulary.ids == other.vocabulary.ids
    assert {k: v for k, v in data.counts.items() if k != "skipped_rows"} == other.counts


def as_tfrecord(folder):
    """Turns a data set into what TFDS writes with TensorFlow."""
    builder = tfds.builder_from_directory(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for split in builder.info.splits:
        (path,) = builder.info.splits[split].filepaths
        records = [*builder.as_data_source(split, deserialize_method=raw)]
        # Between the length and the record, and after it, is a checksum.
        framed = [struct.pack("<Q4x", len(r)) + r + bytes(4) for r in records]
        old = folder / path.name
        old.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(
            b"".join(framed)
        )
        old.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def test_clicks_of_all_splits_are_one_log(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_records, "CHUNK_RECORDS", 7)
    records = click_records()
    # TFDS shuffles.
    order = np.random.default_rng(0).permutation(len(records))
    splits = {"train": order[:90], "test": order[90:]}
    folder = write(
        tmp_path,
        {**CLICK, "title": F.Text(), "image": F.Tensor(shape=(2, 2), dtype=np.uint8)},
        {
            split: [
                {**records[n], "title": "?", "image": np.zeros((2, 2), np.uint8)}
                for n in part
            ]
            for split, part in splits.items()
        },
    )
    named = {"item_column": "movie_id"}
    assert_same(read(tmp_path, **named), expected())
    assert read(tmp_path, **named).train.items.dtype == np.int32
    assert len(read(tmp_path, test_days=3.0, **named).test) == 3
    as_tfrecord(folder)
    assert_same(read(tmp_path, **named), expected())


def test_sessions_with_times_are_one_log(tmp_path):
    def iso(seconds):
        return str(np.datetime64(seconds, "s"))

    records = []
    for u in range(40):
        clicks = CLICKS[3 * u : 3 * u + 3]
        if u % 2:
            # Within a record, too, only times give the order.
            clicks = clicks[::-1]
        items, times = (
            [str(item) for _, item, _ in clicks],
            [iso(t) for *_, t in clicks],
        )
        records.append({"events": {"item": items, "time": times}})
    records.insert(7, {"events": {"item": [], "time": []}})
    write(tmp_path, EVENTS, {"train": records})
    assert_same(read(tmp_path), expected())
    named = {"item_column": "events/item", "time_column": "events/time"}
    assert_same(read(tmp_path, **named), expected())
    with pytest.raises(UserError, match="no session column 'events' among"):
        read(tmp_path, session_column="events")


def test_one_time_may_stand_for_a_session(tmp_path):
    records = [
        {"items": np.arange(10, 13) + u % 4, "timestamp": float(u * DAY)}
        for u in range(40)
    ]
    features = {"items": F.Sequence(np.int64), "timestamp": np.float32}
    write(tmp_path, features, {"whole": records})
    clicks = [(u, item, u * DAY) for u, item, _ in CLICKS]
    assert_same(read(tmp_path), expected(clicks))


def test_sessions_that_are_split_are_taken_as_they_are(tmp_path):
    def records(*sessions):
        return [{"item_ids": session.split()} for session in sessions]

    features = {"item_ids": F.Sequence(F.Text())}
    splits = {
        "test": records("b x"),
        "train": records("a b a", "b c"),
        "other": records("q q"),
    }
    write(tmp_path, features, splits)
    data = read(tmp_path)
    assert lists(data.train) == [[1, 2, 1], [2, 3]]
    assert lists(data.test) == [[2, 4]]
    assert data.validation is None
    assert data.vocabulary.ids == ["a", "b", "c", "x"]
    assert data.counts["train_examples"] == 3
    assert not data.train.last_only
    write(tmp_path, features, {**splits, "validation": records("d a")}, "1.0.1")
    data = read(tmp_path)
    assert lists(data.validation) == [[4, 1]]
    assert data.vocabulary.ids == ["a", "b", "c", "d", "x"]
    for setting in ({"min_item_count": 2}, {"test_days": 2.0}):
        with pytest.raises(
            UserError, match=rf"{next(iter(setting))} is .*change nothi"
        ):
            read(tmp_path, **setting)


RAW_FILES = {
    "click_log": lambda folder: write_log(folder / "log.csv"),
    "yoochoose/1_4": lambda folder: write_clicks(folder / "yoochoose-clicks.dat"),
    "srgnn_pickles": write_pickles,
}


@pytest.mark.parametrize("name", RAW_FILES)
def test_what_our_builders_write_comes_back(tmp_path, name):
    manual = tmp_path / "manual"
    manual.mkdir()
    RAW_FILES[name](manual)
    dataset, _, preset = name.partition("/")
    data_dir, prepared = tmp_path / "tfds", tmp_path / "store"
    built = tfds.builder(name, data_dir=data_dir, prepared_dir=str(prepared))
    config = tfds.download.DownloadConfig(manual_dir=manual)
    built.download_and_prepare(download_config=config)
    settings = vars(SOURCES[dataset].PRESETS[preset or "default"])
    original = store.load_dataset(
        dataset, data_dir=manual, prepared_dir=prepared, **settings
    )
    again = store.load_dataset(
        "tfds", data_dir=data_dir, prepared_dir=prepared, tfds_name=name
    )
    counts = dict(original.counts)
    counts.pop("skipped_rows", None)
    assert_same(again, original.__class__(original.splits, original.vocabulary, counts))
    # The data is the same, so a run on one continues with the other.
    assert again.fingerprint == original.fingerprint
    files = find_files(source, data_dir, Settings(tfds_name=name))
    (path,) = (path for path in files if path.name == "metadata.json")
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "item_ids": metadata["item_ids"][:-1]}))
    with pytest.raises(
        UserError, match=r"cannot read .* is not an item row: they are 1 to"
    ):
        read(data_dir, name)


def test_a_changed_data_set_is_prepared_anew(tmp_path):
    def load():
        return store.load_dataset(
            "tfds",
            data_dir=tmp_path,
            prepared_dir=tmp_path / "store",
            tfds_name="shop",
            item_column="movie_id",
        )

    write(tmp_path, CLICK, {"train": click_records()})
    first = load()
    assert load().fingerprint == first.fingerprint
    for path in (tmp_path / "shop" / "1.0.0").iterdir():
        path.unlink()
    (tmp_path / "shop" / "1.0.0").rmdir()
    # The files have the same size: only the records differ.
    write(
        tmp_path,
        CLICK,
        {"train": click_records([(u, 20 + i, t) for u, i, t in CLICKS])},
    )
    assert load().vocabulary.ids == [str(int(i) + 20) for i in first.vocabulary.ids]


def test_versions_and_configs(tmp_path):
    for version, clicks in (("1.9.0", CLICKS[6:]), ("1.10.0", CLICKS[3:])):
        write(tmp_path, CLICK, {"train": click_records(clicks)}, version)

    def count(name):
        return read(tmp_path, name, item_column="movie_id").counts["raw_clicks"]

    assert count("shop") == 117
    assert count("shop:1.9.0") == 114
    (tmp_path / "shop" / "1.9.0").rename(tmp_path / "moved")
    (tmp_path / "shop" / "small").mkdir()
    (tmp_path / "moved").rename(tmp_path / "shop" / "small" / "1.9.0")
    assert count("shop/small") == 114
    with pytest.raises(UserError, match=r"several of that name; choose .* shop/small"):
        count("shop")
    for name in ("other", "shop:2.0.0", "shop/large"):
        with pytest.raises(
            UserError,
            match=rf"'{name}' is not prepared in .*builder\('{name}', data_dir",
        ):
            count(name)
    with pytest.raises(UserError, match=r"tfds_name is empty\. Have TFDS prepare"):
        count("")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"user_id": " "},
            "the session is empty",
        ),
        ({"movie_id": b"\xff"}, "the item is empty"),
        ({"timestamp": -1}, "'-1' is not a time"),
    ],
)
def test_records_that_cannot_be_read(tmp_path, wrong, message):
    records = [{**r, "movie_id": str(r["movie_id"])} for r in click_records()]
    records[50] |= wrong
    write(tmp_path, {**CLICK, "movie_id": F.Text()}, {"train": records})
    named = {"item_column": "movie_id"}
    with pytest.raises(UserError, match=rf"split 'train', row 51: {message}"):
        read(tmp_path, **named)
    data = read(tmp_path, on_bad_row="skip", **named)
    assert data.counts["skipped_rows"] == 1
    assert data.counts["raw_clicks"] == 119


def test_sessions_that_cannot_be_read(tmp_path):
    features = {"items": F.Sequence(np.int64), "times": F.Sequence(np.int64)}
    records = [{"items": [10, 11], "times": [u * DAY, u * DAY + 1]} for u in range(40)]
    records[3] = {"items": [10, 11], "times": [5]}
    records[4] = {"items": [10, 11], "times": [5, -1]}
    write(tmp_path, features, {"train": records})
    with pytest.raises(
        UserError, match=r"row 4: lists of different lengths \(item, time\)"
    ):
        read(tmp_path)
    data = read(tmp_path, on_bad_row="skip")
    assert data.counts["skipped_rows"] == 2
    # The other click of the record with a bad time is kept.
    assert data.counts["raw_clicks"] == 77


def test_features_that_are_missing(tmp_path):
    folder = write(tmp_path, CLICK, {"train": click_records()})
    with pytest.raises(UserError, match=r"no item column 'film' among 'movie_id', .*"):
        read(tmp_path, item_column="film")
    with pytest.raises(UserError, match=r"no session column 'visit' among .*session_c"):
        read(tmp_path, session_column="visit")
    features = folder / "features.json"
    features.write_text(
        features.read_text().replace("tensorflow_datasets", "antigravity")
    )
    with pytest.raises(
        UserError, match=r"names 'antigravity\.core.*, which is not part of TFDS"
    ):
        read(tmp_path, item_column="movie_id")
    assert "antigravity" not in sys.modules
    features.write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*1\.0\.0 as a TFDS data set"):
        read(tmp_path, item_column="movie_id")


def test_files_that_are_damaged_or_of_another_form(tmp_path):
    folder = write(tmp_path, CLICK, {"train": click_records()})
    as_tfrecord(folder)
    (path,) = folder.glob("*.tfrecord*")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"cannot read .*ends within a record"):
        read(tmp_path, item_column="movie_id")
    info = folder / "dataset_info.json"
    info.write_text(
        json.dumps({**json.loads(info.read_text()), "fileFormat": "parquet"})
    )
    with pytest.raises(
        UserError, match="file format is parquet, which is not supported; have TFDS"
    ):
        read(tmp_path, item_column="movie_id")
