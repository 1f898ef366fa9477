"""Data sets are built once, found again by key, and never served half-built."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from srgnn_jax.configs import pickles as config_of_pickles
from srgnn_jax.configs import recbole_811
from srgnn_jax.data import store
from srgnn_jax.data.counts import PUBLISHED_COUNTS, counts_table, data_name
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.data.sources import (
    NAMED,
    SOURCES,
    click_log,
    diginetica,
    pickles,
    yoochoose,
)
from srgnn_jax.data.store import load_dataset
from srgnn_jax.errors import UserError
from tests.raw_files import write_clicks, write_pickles, write_views
from tests.tiny import write_log

ROOT = pathlib.Path(__file__).parents[1]
RULES = {"test_days": 0.35}


def load(folder, dataset="click_log", source="data", **settings):
    return load_dataset(
        dataset,
        data_dir=folder / source,
        prepared_dir=folder / "cache" / "prepared",
        **RULES | settings,
    )


def built(folder):
    """Returns the names of what has been built, or half-built."""
    names = {path.name for path in (folder / "cache" / "prepared").iterdir()}
    return sorted(names - {"known_files"})


def of_store(caplog):
    """Returns the warnings of the store itself."""
    return [record for record in caplog.records if record.name.endswith(".store")]


def contents(dataset):
    """Returns everything in a data set, in a form that can be compared."""
    splits = dataset.splits.items()
    return (
        {split: [session.tolist() for session in part] for split, part in splits},
        {split: part.last_only for split, part in splits},
        dataset.vocabulary.ids,
        dataset.counts,
    )


def count_calls(monkeypatch, where=click_log, name="read"):
    """Records the results of a function, and returns the list of them."""
    returned, function = [], getattr(where, name)

    def counted(*arguments):
        returned.append(function(*arguments))
        return returned[-1]

    monkeypatch.setattr(where, name, counted)
    return returned


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "data" / "log.csv"
    write_log(path)
    return path


@pytest.fixture
def settled(monkeypatch):
    """Treats files that have just been written as settled."""
    monkeypatch.setattr(store, "SETTLED_NANOSECONDS", -1)


def test_what_was_read_is_stored_once_and_mapped_from_then_on(
    tmp_path, monkeypatch, log, capfd
):
    reads = count_calls(monkeypatch)
    first, again = load(tmp_path), load(tmp_path)
    (read,) = reads
    assert contents(first) == contents(again) == contents(read)
    assert again.fingerprint == first.fingerprint
    (name,) = built(tmp_path)
    assert name.startswith("click_log-")
    for dataset in (first, again):
        assert dataset.validation is None
        for array in (dataset.train.items, dataset.test.offsets):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
        assert dataset.train.items.dtype == np.int32
        assert dataset.train.offsets.dtype == np.int64
    assert capfd.readouterr() == ("", "")


def test_a_changed_source_is_prepared_anew(tmp_path, log):
    first = load(tmp_path)
    log.write_text(log.read_text().replace("item3,", "item33,"))
    changed = load(tmp_path)
    assert "item33" not in first.vocabulary.ids
    assert "item33" in changed.vocabulary.ids
    write_log(log, sessions=120)
    fewer = load(tmp_path)
    assert fewer.counts["raw_clicks"] < first.counts["raw_clicks"]
    assert len({d.fingerprint for d in (first, changed, fewer)}) == 3
    assert len(built(tmp_path)) == 3


def test_a_changed_setting_is_prepared_anew(tmp_path, monkeypatch, log):
    reads = count_calls(monkeypatch)
    changes = [
        {},
        {"test_days": 0.5},
        {"min_item_count": 6},
        {"train_fraction": 0.5},
        {"on_bad_row": "skip"},
        {"date_resolution_seconds": 1},
    ]
    for change in changes:
        load(tmp_path, **change)
    assert len(built(tmp_path)) == len(reads) == len(changes)


def test_changed_code_prepares_anew_and_the_same_data_stays_the_same(
    tmp_path, monkeypatch, log, settled
):
    reads = count_calls(monkeypatch)
    before = load(tmp_path)
    monkeypatch.setattr(store, "code_hash", lambda: "changed")
    after = load(tmp_path)
    assert len(reads) == 2
    assert len(built(tmp_path)) == 2
    # A run continues with data that is equal, whatever prepared it.
    assert after.fingerprint == before.fingerprint


def test_the_code_is_all_of_the_room(tmp_path, monkeypatch):
    room = tmp_path / "data"
    shutil.copytree(pathlib.Path(store.__file__).parent, room)
    monkeypatch.setattr(store, "__file__", str(room / "store.py"))
    hashes = {store.code_hash.__wrapped__()}
    for name in ("prepare.py", "read.py", "times.py", "sources/recbole.py"):
        (room / name).write_text((room / name).read_text() + "\n")
        hashes.add(store.code_hash.__wrapped__())
    assert len(hashes) == 5


def test_the_fingerprint_tells_sessions_and_ids_apart(tmp_path, log):
    prints = {load(tmp_path).fingerprint}
    for change in ({"test_days": 0.5}, {"train_fraction": 0.5}):
        prints.add(load(tmp_path, **change).fingerprint)
    log.write_text(log.read_text().replace("item3,", "item_,"))
    prints.add(load(tmp_path).fingerprint)
    assert len(prints) == 4


def test_where_the_source_lies_and_when_it_was_written_changes_nothing(tmp_path, log):
    load(tmp_path)
    write_log(tmp_path / "moved" / "log.csv")
    load(tmp_path, source="moved")
    assert len(built(tmp_path)) == 1


def test_the_folder_of_the_source_is_only_read(tmp_path, log):
    before = log.read_bytes(), log.stat().st_mtime_ns
    log.chmod(0o444)
    log.parent.chmod(0o555)
    try:
        load(tmp_path)
    finally:
        log.parent.chmod(0o755)
    assert list(log.parent.iterdir()) == [log]
    assert (log.read_bytes(), log.stat().st_mtime_ns) == before


def count_hashes(monkeypatch, log):
    """Returns a list that grows whenever the log is read to be hashed."""
    hashed, function = [], store._hash

    def hash_and_count(path):
        hashed.extend([path] * (path == log))
        return function(path)

    monkeypatch.setattr(store, "_hash", hash_and_count)
    return hashed


def test_a_source_left_alone_is_not_read_again(tmp_path, monkeypatch, log, settled):
    hashed = count_hashes(monkeypatch, log)
    first, again = load(tmp_path), load(tmp_path)
    assert contents(again) == contents(first)
    assert again.fingerprint == first.fingerprint
    # Other settings give other data, even if they were used before.
    other = load(tmp_path, test_days=0.5)
    assert load(tmp_path, test_days=0.5).fingerprint == other.fingerprint
    assert load(tmp_path).fingerprint == first.fingerprint != other.fingerprint
    assert len(hashed) == 1


def rewrite_in_place(log):
    """Changes a file's content, but neither its size nor its time."""
    times = log.stat().st_atime_ns, log.stat().st_mtime_ns
    log.write_text(log.read_text().replace("item3,", "item_,"))
    os.utime(log, ns=times)


def replace(log):
    """Replaces a file with another of the same size and time."""
    times = log.stat().st_atime_ns, log.stat().st_mtime_ns
    other = log.with_name("unfinished")
    other.write_text(log.read_text().replace("item3,", "item_,"))
    os.utime(other, ns=times)
    other.rename(log)


@pytest.mark.parametrize("change", [rewrite_in_place, replace])
@pytest.mark.parametrize("named", [{}, {"log_file": "../inner/log.csv"}])
def test_a_change_that_size_and_time_hide_is_seen(tmp_path, settled, change, named):
    for folder in ("data", "inner"):
        write_log(tmp_path / folder / "log.csv")
    load(tmp_path, **named)
    change(tmp_path / ("inner" if named else "data") / "log.csv")
    assert "item_" in load(tmp_path, **named).vocabulary.ids


def test_a_file_that_has_come_up_is_seen(tmp_path, log, settled):
    first = load(tmp_path)
    write_log(tmp_path / "data" / "log2.csv")
    assert load(tmp_path).counts["raw_clicks"] == 2 * first.counts["raw_clicks"]


def test_a_source_just_written_is_read_again(tmp_path, monkeypatch, log):
    hashed = count_hashes(monkeypatch, log)
    # Its time would not show a change within the same clock tick.
    os.utime(log, ns=(0, 0))
    load(tmp_path)
    load(tmp_path)
    assert len(hashed) == 2


def refuse(*args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_another_user_may_have_prepared_it(tmp_path, monkeypatch, log, settled):
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "touch", refuse)
        first = load(tmp_path)
    assert contents(load(tmp_path)) == contents(first)
    (name,) = built(tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    mode = (tmp_path / "cache" / "prepared" / name).stat().st_mode & 0o777
    assert mode == 0o777 & ~umask


WITHOUT_TFDS = """
import pathlib, sys
from srgnn_jax.data.store import load_dataset
folder = pathlib.Path(sys.argv[1])
data = load_dataset("click_log", data_dir=folder / "data", prepared_dir=folder / "p")
assert len(data.train) and "tensorflow_datasets" not in sys.modules
"""


def test_no_start_waits_for_tfds(tmp_path, log):
    command = [sys.executable, "-c", WITHOUT_TFDS, tmp_path]
    subprocess.run(command, cwd=ROOT, check=True)


# --- Failures while building


@pytest.mark.parametrize("place", ["cache", "cache/prepared"])
def test_a_folder_that_cannot_be_written(tmp_path, log, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*--config\.prepared_dir"):
        load(tmp_path)
    assert path.read_text() == "a file"


STEPS = {
    "read": (click_log, "read"),
    "arrays": (np, "save"),
    "vocabulary": (Vocabulary, "save"),
    "rename": (pathlib.Path, "rename"),
}


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("step", STEPS)
def test_a_build_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, log, step):
    for error in (KeyboardInterrupt, MemoryError):
        with monkeypatch.context() as patch:
            patch.setattr(*STEPS[step], failing(error("interrupted")))
            with pytest.raises(error):
                load(tmp_path)
        assert built(tmp_path) == []
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], failing(full))
        with pytest.raises(UserError, match=r"cannot write to .*\(No space left"):
            load(tmp_path)
    assert built(tmp_path) == []
    assert len(load(tmp_path).train) > 0


def test_an_error_without_a_number_is_told(tmp_path, monkeypatch, log):
    for where, name in ((np, "save"), (store, "_hash")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, failing(OSError("the disk is gone")))
            with pytest.raises(UserError, match=r"cannot .*\(the disk is gone\)"):
                load(tmp_path)


def test_what_a_killed_build_leaves_is_not_served(tmp_path, monkeypatch, log):
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        # A killed process does not clean up.
        patch.setattr(shutil, "rmtree", failing(KeyboardInterrupt))
        patch.setattr(Vocabulary, "save", failing(KeyboardInterrupt))
        load(tmp_path)
    assert len(built(tmp_path)) == 1
    whole = load(tmp_path)
    assert len(built(tmp_path)) == 2
    assert whole.counts["items"] == len(whole.vocabulary.ids)


def test_two_processes_may_build_the_same(tmp_path, monkeypatch, log):
    read, inner = click_log.read, []

    def read_while_another_builds(files, settings):
        monkeypatch.undo()
        inner.append(load(tmp_path))
        return read(files, settings)

    monkeypatch.setattr(click_log, "read", read_while_another_builds)
    outer = load(tmp_path)
    assert contents(outer) == contents(inner[0])
    assert len(built(tmp_path)) == 1


# --- Failures while mapping


def flip(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def count_more(path):
    path.write_text(path.read_text().replace('"items": ', '"items": 1'))


DAMAGES = {
    "no contents.json": ("contents.json", pathlib.Path.unlink),
    "half of contents.json": ("contents.json", truncate),
    "contents.json without checksums": (
        "contents.json",
        lambda path: path.write_text(json.dumps({"counts": {}, "splits": ["train"]})),
    ),
    "a list for contents.json": ("contents.json", lambda path: path.write_text("[1]")),
    "deep contents.json": (
        "contents.json",
        lambda path: path.write_text("[" * 100_000),
    ),
    "another count": ("contents.json", count_more),
    "an empty contents.sum": ("contents.sum", lambda path: path.write_bytes(b"")),
    "truncated items": ("train.items.npy", truncate),
    "flipped items": ("train.items.npy", flip),
    "flipped offsets": ("test.offsets.npy", flip),
    "no offsets": ("train.offsets.npy", pathlib.Path.unlink),
    "a truncated vocabulary": ("vocabulary.parquet", truncate),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_moved_aside_and_prepared_anew(
    tmp_path, log, caplog, settled, damage
):
    name, break_it = DAMAGES[damage]
    first = load(tmp_path)
    before = contents(first)
    (built_name,) = built(tmp_path)
    folder = tmp_path / "cache" / "prepared" / built_name
    break_it(folder / name)
    left = sorted(path.name for path in folder.iterdir())
    again = load(tmp_path)
    (warning,) = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert str(folder) in warning
    assert "\n" not in warning
    (aside,) = folder.parent.glob("damaged-*")
    assert str(aside) in warning
    assert sorted(path.name for path in (aside / built_name).iterdir()) == left
    assert contents(again) == before
    assert again.fingerprint == first.fingerprint
    caplog.clear()
    load(tmp_path)
    assert not of_store(caplog)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("settle", [True, False])
def test_what_cannot_be_read_now_is_left_as_it_is(
    tmp_path, monkeypatch, log, caplog, code, settle
):
    if settle:
        monkeypatch.setattr(store, "SETTLED_NANOSECONDS", -1)
    load(tmp_path)
    (name,) = built(tmp_path)
    folder = tmp_path / "cache" / "prepared" / name
    before = sorted((path.name, path.stat().st_ino) for path in folder.iterdir())
    message = rf"cannot read the prepared data .*{name} \({os.strerror(code)}\)"
    for where, function in ((np, "load"), (pathlib.Path, "read_bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(where, function, failing(OSError(code, os.strerror(code))))
            with pytest.raises(UserError, match=message):
                load(tmp_path)
    assert built(tmp_path) == [name]
    now = sorted((path.name, path.stat().st_ino) for path in folder.iterdir())
    assert now == before
    assert not of_store(caplog)
    load(tmp_path)


def test_damaged_data_that_cannot_be_moved_aside(tmp_path, monkeypatch, log):
    load(tmp_path)
    (name,) = built(tmp_path)
    (tmp_path / "cache" / "prepared" / name / "contents.json").unlink()
    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(UserError, match=r"damaged, .*moved aside \(Permission denied"):
        load(tmp_path)
    assert name in built(tmp_path)


def test_another_process_may_have_moved_it_aside(tmp_path, monkeypatch, log):
    load(tmp_path)
    (name,) = built(tmp_path)
    folder = tmp_path / "cache" / "prepared" / name
    (folder / "contents.json").unlink()
    mkdtemp = store.tempfile.mkdtemp

    def moved_meanwhile(*args, **options):
        shutil.rmtree(folder, ignore_errors=True)
        return mkdtemp(*args, **options)

    monkeypatch.setattr(store.tempfile, "mkdtemp", moved_meanwhile)
    assert len(load(tmp_path).train) > 0


def rewrite(folder, name, change):
    """Changes an array, and the checksums to match, as an attacker would."""
    array = np.load(folder / name)
    np.save(folder / name, change(array))
    stored = json.loads((folder / "contents.json").read_text())
    stored["files"][name] = store._hash(folder / name)
    (folder / "contents.json").write_text(json.dumps(stored))
    (folder / "contents.sum").write_text(store._hash(folder / "contents.json"))


def with_first(array, value):
    array = array.copy()
    array[0] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train.items.npy", lambda a: with_first(a, 999), "999 is not an item row"),
        ("train.items.npy", lambda a: with_first(a, 0), "0 is not an item row"),
        ("test.items.npy", lambda a: with_first(a, -1), "-1 is not an item row"),
        ("train.items.npy", lambda a: a.astype(float), "damaged"),
        ("train.items.npy", lambda a: a[:, None], "damaged"),
        ("train.items.npy", lambda a: np.array([{"a": 1}], object), "damaged"),
        ("train.offsets.npy", lambda a: a[::-1], "offsets"),
        ("train.offsets.npy", lambda a: a[:-1], "offsets"),
    ],
)
def test_arrays_that_point_elsewhere_are_refused(
    tmp_path, log, caplog, name, change, message
):
    """Objects among them are not unpickled."""
    before = contents(load(tmp_path))
    (folder,) = (tmp_path / "cache" / "prepared").glob("click_log-*")
    rewrite(folder, name, change)
    assert contents(load(tmp_path)) == before
    assert message in caplog.text
    assert len([*folder.parent.glob(f"damaged-*/{folder.name}")]) == 1


# --- Sources and settings


def test_malformed_rows_are_told_or_counted(tmp_path, log):
    good = load(tmp_path)
    header, *lines = log.read_text().splitlines()
    log.write_text("\n".join([header, "1,item1", *lines, "1,item1,soon"]))
    with pytest.raises(UserError, match=r"log\.csv, line 2: 2 fields instead of 3"):
        load(tmp_path)
    skipping = load(tmp_path, on_bad_row="skip")
    assert skipping.counts == good.counts | {"skipped_rows": 2}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("digenetica", "diginetica"), ("click-log", "click_log"), ("yoochose", "yooch")],
)
def test_an_unknown_name_is_told_with_the_nearest(tmp_path, name, meant):
    message = rf"'{name}', not one of .*srgnn_pick.*; did you mean {meant}.*\?$"
    with pytest.raises(UserError, match=message):
        load(tmp_path, name)


def test_a_name_that_is_near_to_none_is_told_with_all(tmp_path):
    with pytest.raises(UserError, match="not one of click_log, diginetica") as error:
        load(tmp_path, "x")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "raw", "write_raw", "rules"),
    [
        ("diginetica", diginetica, write_views, {"test_days": 7.0}),
        ("yoochoose", yoochoose, write_clicks, {"test_days": 1.0}),
    ],
)
def test_the_raw_file_is_taken_before_the_pickles(
    tmp_path, monkeypatch, dataset, raw, write_raw, rules
):
    raw_reads = count_calls(monkeypatch, raw)
    pickle_reads = count_calls(monkeypatch, pickles)
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(UserError, match=r"(clicks|views)\..*all_train_seq\.txt"):
        load(tmp_path, dataset, **rules)
    write_pickles(data)
    from_pickles = load(tmp_path, dataset, **rules)
    assert (len(raw_reads), len(pickle_reads)) == (0, 1)
    assert from_pickles.test.last_only
    names = {"diginetica": "train-item-views.csv", "yoochoose": "yoochoose-clicks.dat"}
    write_raw(data / names[dataset])
    from_raw = load(tmp_path, dataset, **rules)
    assert (len(raw_reads), len(pickle_reads)) == (1, 1)
    assert not from_raw.test.last_only
    stored = [name.rsplit("-", 1)[0] for name in built(tmp_path)]
    assert sorted(stored) == sorted([dataset, "srgnn_pickles"])


@pytest.mark.parametrize(
    ("dataset", "fraction", "published"),
    [
        ("diginetica", 1.0, "diginetica"),
        ("yoochoose", 1 / 64, "yoochoose_1_64"),
        ("yoochoose", 1 / 4, "yoochoose_1_4"),
        ("yoochoose", 1.0, None),
        ("srgnn_pickles", 1.0, None),
    ],
)
def test_published_counts_go_with_their_data_set(
    tmp_path, dataset, fraction, published
):
    (tmp_path / "data").mkdir()
    write_pickles(tmp_path / "data")
    settings = {"train_fraction": fraction} if dataset == "yoochoose" else {}
    found = load(tmp_path, dataset, test_days=1.0, **settings)
    assert found.published == PUBLISHED_COUNTS.get(published, {})
    assert set(found.published) <= set(found.counts)


def test_named_data_sets_are_read_by_the_source_of_their_form(tmp_path):
    (tmp_path / "data").mkdir()
    write_pickles(tmp_path / "data")
    named = load(tmp_path, "tmall", test_days=1.0)
    assert named.published["test_examples"] == 25_898
    form = load(tmp_path, "srgnn_pickles", test_days=1.0)
    assert named.fingerprint == form.fingerprint
    assert {*NAMED.values()} <= SOURCES.keys()
    datasets = {
        module.get_config(name).dataset
        for module in (config_of_pickles, recbole_811)
        for name in module.NAMES
    }
    assert datasets == NAMED.keys()
    for module in (config_of_pickles, recbole_811):
        with pytest.raises(ValueError, match=r":shop: choose one of .*tmall"):
            module.get_config("shop")
    with pytest.raises(UserError, match=r"'tmal', not one of .*; did you mean tmall\?"):
        load(tmp_path, "tmal")


# --- Counts


def test_table_of_counts():
    counts = {"clicks": 982_961, "train_examples": 719_470, "average_length": 5.1234}
    assert counts_table(counts, {}) == (
        "counts                        here\n"
        "clicks                     982,961\n"
        "train examples             719,470\n"
        "average length               5.123"
    )
    assert counts_table(counts, {"clicks": 982_961, "average_length": 5.12}) == (
        "counts                        here     published\n"
        "clicks                     982,961       982,961\n"
        "train examples             719,470\n"
        "average length               5.123          5.12"
    )


def test_edge_sessions_are_explained_where_there_are_some():
    assert "neither" not in counts_table({"edge_sessions": 0}, {})
    *_, why = counts_table({"edge_sessions": 3}, {}).split("\n", 2)
    assert "in neither split" in why
    assert "config.test_days" in why
    assert "config.test_end" in why


def test_the_table_of_counts_fits_a_terminal(tmp_path, log):
    counts = dict.fromkeys(load(tmp_path).counts, 10**10 - 1)
    lines = counts_table(counts, counts).splitlines()
    assert max(map(len, lines)) <= 80
    *lines, _, _ = lines  # What edge sessions are.
    assert len(lines) == len(counts) + 1
    # Names and numbers do not run into each other.
    assert all(len(line.rsplit("  ", 2)) == 3 for line in lines)


def test_data_is_named_with_its_fraction():
    assert data_name("yoochoose", 1 / 64) == "yoochoose_1_64"
    assert data_name("diginetica", 1.0) == "diginetica"
