"""Data sets are built once, found again by fingerprint, and never served half-built."""

import contextlib
import errno
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from srgnn_jax.data import prepared as prepared_module
from srgnn_jax.data.datasets import ClickLog, Diginetica, SrgnnPickles, Yoochoose
from srgnn_jax.data.prepared import (
    PUBLISHED_COUNTS,
    counts_table,
    data_name,
    load_prepared,
)
from srgnn_jax.errors import UserError
from tests.tiny import write_log

RULES = {"test_days": 0.35}


def load(folder, dataset="click_log", source="data", **settings):
    return load_prepared(
        dataset,
        data_dir=folder / source,
        prepared_dir=folder / "cache" / "prepared",
        **RULES | settings,
    )


def built(folder):
    """The names of what has been built, or half built."""
    return sorted(path.name for path in (folder / "cache" / "prepared").iterdir())


def contents(prepared):
    """All that a data set holds, in a form that can be compared."""
    splits = [prepared.train, prepared.test]
    return (
        [[session.tolist() for session in split] for split in splits],
        [split.last_only for split in splits],
        prepared.vocabulary.ids,
        prepared.counts,
    )


def count_reads(monkeypatch, builder=ClickLog):
    """Lets a builder read as before, and returns a list that grows by one each time."""
    reads, read = [], builder.read

    def counted(files, config):
        reads.append(files)
        return read(files, config)

    monkeypatch.setattr(builder, "read", staticmethod(counted))
    return reads


def write_diginetica(folder):
    """Writes made views in the raw form of Diginetica, latest click of each first."""
    folder.mkdir(exist_ok=True)
    lines = ["session_id;user_id;item_id;timeframe;eventdate"]
    for session in range(40):
        day = f"2016-05-{session // 2 + 1:02}"
        for position in (2, 1, 0):
            lines.append(f"{session};NA;{10 + position};{position * 1000};{day}")
    (folder / "train-item-views.csv").write_text("\n".join(lines))


def write_yoochoose(folder):
    """Writes made clicks in the raw form of Yoochoose."""
    folder.mkdir(exist_ok=True)
    lines = [
        f"{session},2014-04-{session // 2 + 1:02}T10:0{position}:09.277Z,"
        f"{21455 + position},0\n"
        for session in range(40)
        for position in range(3)
    ]
    (folder / "yoochoose-clicks.dat").write_text("".join(lines))


def write_pickles(folder):
    """Writes made sessions in the form of the published code."""
    folder.mkdir(exist_ok=True)
    train = [[1, 2, 3], [2, 4]]
    test = ([[3, 1], [3], [4]], [2, 1, 1])
    (folder / "all_train_seq.txt").write_bytes(pickle.dumps(train))
    (folder / "test.txt").write_bytes(pickle.dumps(test))


def test_a_data_set_is_built_once_and_mapped_from_then_on(tmp_path, monkeypatch):
    reads = count_reads(monkeypatch)
    write_log(tmp_path / "data" / "log.csv")
    first = load(tmp_path)
    again = load(tmp_path)
    assert len(reads) == 1
    assert contents(again) == contents(first)
    assert again.fingerprint == first.fingerprint
    assert built(tmp_path) == [f"click_log-{first.fingerprint[:16]}"]
    for prepared in (first, again):
        assert prepared.validation is None
        for array in (prepared.train.items, prepared.test.offsets):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
        assert prepared.train.items.dtype == np.int32
        assert prepared.train.offsets.dtype == np.int64


def test_what_is_served_is_what_the_builder_prepared(tmp_path, monkeypatch):
    kept, read = [], ClickLog.read

    def keep(files, config):
        kept.append(read(files, config))
        return kept[0]

    monkeypatch.setattr(ClickLog, "read", staticmethod(keep))
    write_log(tmp_path / "data" / "log.csv")
    served = contents(load(tmp_path))
    splits = [kept[0].splits["train"], kept[0].splits["test"]]
    assert served == (
        [[session.tolist() for session in split] for split in splits],
        [False, False],
        kept[0].vocabulary.ids,
        kept[0].counts,
    )


def test_a_changed_source_is_prepared_anew(tmp_path):
    log = tmp_path / "data" / "log.csv"
    write_log(log)
    first = load(tmp_path)
    log.write_text(log.read_text().replace("item3,", "item33,"))
    changed = load(tmp_path)
    assert "item33" not in first.vocabulary.ids
    assert "item33" in changed.vocabulary.ids
    write_log(log, sessions=120)
    fewer = load(tmp_path)
    assert fewer.counts["raw_clicks"] < first.counts["raw_clicks"]
    assert len({p.fingerprint for p in (first, changed, fewer)}) == 3
    assert len(built(tmp_path)) == 3


@pytest.mark.parametrize(
    "setting",
    [
        {"test_days": 0.5},
        {"min_item_count": 6},
        {"train_fraction": 0.5},
        {"on_bad_row": "skip"},
        {"date_resolution_seconds": 1},
    ],
)
def test_a_changed_setting_is_prepared_anew(tmp_path, monkeypatch, setting):
    reads = count_reads(monkeypatch)
    write_log(tmp_path / "data" / "log.csv")
    prints = {load(tmp_path).fingerprint, load(tmp_path, **setting).fingerprint}
    assert len(prints) == len(reads) == 2


def test_a_changed_way_of_preparing_is_prepared_anew(tmp_path, monkeypatch):
    write_log(tmp_path / "data" / "log.csv")
    before = load(tmp_path)
    monkeypatch.setattr(prepared_module, "PREPARATION_VERSION", -1)
    assert load(tmp_path).fingerprint != before.fingerprint


def test_where_the_source_lies_and_when_it_was_written_changes_nothing(tmp_path):
    write_log(tmp_path / "data" / "log.csv")
    first = load(tmp_path)
    write_log(tmp_path / "moved" / "log.csv")
    assert load(tmp_path, source="moved").fingerprint == first.fingerprint


def test_the_folder_of_the_source_is_only_read(tmp_path):
    log = tmp_path / "data" / "log.csv"
    write_log(log)
    before = log.read_bytes(), log.stat().st_mtime_ns
    log.chmod(0o444)
    log.parent.chmod(0o555)
    try:
        load(tmp_path)
    finally:
        log.parent.chmod(0o755)
    assert list(log.parent.iterdir()) == [log]
    assert (log.read_bytes(), log.stat().st_mtime_ns) == before


@pytest.fixture
def settled(monkeypatch):
    """Takes files that have just been written as settled."""
    monkeypatch.setattr(prepared_module, "SETTLED_NANOSECONDS", -1)


def count_hashed(monkeypatch):
    """Returns a list that grows by one each time the source is read for its hash."""
    hashed, fingerprint = [], prepared_module._fingerprint

    def counted(files, *args):
        hashed.append(files)
        return fingerprint(files, *args)

    monkeypatch.setattr(prepared_module, "_fingerprint", counted)
    return hashed


def test_a_source_left_alone_is_not_read_again(tmp_path, monkeypatch, settled):
    hashed = count_hashed(monkeypatch)
    write_log(tmp_path / "data" / "log.csv")
    first, again = load(tmp_path), load(tmp_path)
    assert len(hashed) == 1
    assert contents(again) == contents(first)
    assert again.fingerprint == first.fingerprint
    # Other settings are other data, also where they were prepared before.
    other = load(tmp_path, test_days=0.5)
    assert len(hashed) == 2
    assert load(tmp_path, test_days=0.5).fingerprint == other.fingerprint
    assert load(tmp_path).fingerprint == first.fingerprint != other.fingerprint
    assert len(hashed) == 2


def rewrite_in_place(log):
    """Changes a file's content, and neither its size nor its time."""
    times = log.stat().st_atime_ns, log.stat().st_mtime_ns
    log.write_text(log.read_text().replace("item3,", "item_,"))
    os.utime(log, ns=times)


def replace(log):
    """Puts another file of the same size and time in a file's place."""
    times = log.stat().st_atime_ns, log.stat().st_mtime_ns
    other = log.with_name("unfinished")
    other.write_text(log.read_text().replace("item3,", "item_,"))
    os.utime(other, ns=times)
    other.rename(log)


@pytest.mark.parametrize("change", [rewrite_in_place, replace])
def test_a_change_that_size_and_time_hide_is_seen(tmp_path, settled, change):
    log = tmp_path / "data" / "log.csv"
    write_log(log)
    load(tmp_path)
    change(log)
    assert "item_" in load(tmp_path).vocabulary.ids


def test_a_log_that_is_named_is_looked_at_wherever_it_lies(tmp_path, settled):
    write_log(tmp_path / "data" / "log.csv")
    log = tmp_path / "inner" / "log.csv"
    write_log(log)
    load(tmp_path, log_file="../inner/log.csv")
    rewrite_in_place(log)
    changed = load(tmp_path, log_file="../inner/log.csv")
    assert "item_" in changed.vocabulary.ids


def test_a_file_that_has_come_up_is_seen(tmp_path, settled):
    write_log(tmp_path / "data" / "log.csv")
    load(tmp_path)
    write_log(tmp_path / "data" / "log2.csv")
    with pytest.raises(UserError, match="several logs"):
        load(tmp_path)


def test_a_source_just_written_is_read_again(tmp_path, monkeypatch):
    hashed = count_hashed(monkeypatch)
    log = tmp_path / "data" / "log.csv"
    write_log(log)
    # Its time would not tell a change within the same tick of the clock.
    os.utime(log, ns=(0, 0))
    load(tmp_path)
    load(tmp_path)
    assert len(hashed) == 2


def test_another_user_may_have_prepared_it(tmp_path, monkeypatch, settled):
    def refuse(*args, **kwargs):
        raise PermissionError

    write_log(tmp_path / "data" / "log.csv")
    with monkeypatch.context() as patch:
        patch.setattr(prepared_module.pathlib.Path, "touch", refuse)
        first = load(tmp_path)
    assert contents(load(tmp_path)) == contents(first)


SECOND_START = """
import pathlib, sys
from srgnn_jax.data import prepared
prepared.SETTLED_NANOSECONDS = -1
folder = pathlib.Path(sys.argv[1])
data = prepared.load_prepared(
    "click_log", data_dir=folder / "data", prepared_dir=folder / "p", test_days=0.35
)
print(len(data.train), "tensorflow_datasets" in sys.modules)
"""


def test_a_second_start_does_not_wait_for_tfds(tmp_path):
    write_log(tmp_path / "data" / "log.csv")
    printed = [
        subprocess.run(
            [sys.executable, "-c", SECOND_START, tmp_path],
            cwd=pathlib.Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [loaded for _, loaded in printed] == ["True", "False"]
    assert printed[0][0] == printed[1][0]


@pytest.mark.parametrize("place", ["cache", "cache/prepared"])
def test_a_folder_that_cannot_be_written(tmp_path, place):
    write_log(tmp_path / "data" / "log.csv")
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*--config\.prepared_dir"):
        load(tmp_path)
    assert path.read_text() == "a file"


BUILD_STEPS = {
    "read": (ClickLog, "read"),
    "records": (ClickLog, "read_sessions"),
    "save": (prepared_module.Vocabulary, "save"),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", BUILD_STEPS)
def test_a_build_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error, step):
    def break_off(*args, **kwargs):
        raise error("broken off")

    write_log(tmp_path / "data" / "log.csv")
    monkeypatch.setattr(*BUILD_STEPS[step], break_off)
    with pytest.raises(error):
        load(tmp_path)
    assert built(tmp_path) == []
    monkeypatch.undo()
    assert len(load(tmp_path).train) > 0


@pytest.mark.parametrize("step", ["save", "rename"])
def test_a_full_disk(tmp_path, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_log(tmp_path / "data" / "log.csv")
    with monkeypatch.context() as patch:
        if step == "save":
            patch.setattr(prepared_module.np, "save", full)
        else:
            patch.setattr(prepared_module.pathlib.Path, "rename", full)
        with pytest.raises(UserError, match=r"cannot write to .*\(No space left"):
            load(tmp_path)
    assert built(tmp_path) == []


def test_what_a_killed_build_leaves_is_not_served(tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    write_log(tmp_path / "data" / "log.csv")
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        # A killed process does not clean up.
        patch.setattr(prepared_module.shutil, "rmtree", killed)
        patch.setattr(prepared_module.Vocabulary, "save", killed)
        load(tmp_path)
    assert len(built(tmp_path)) == 1
    whole = load(tmp_path)
    assert len(built(tmp_path)) == 2
    assert whole.counts["items"] == len(whole.vocabulary.ids)


def test_two_processes_may_build_the_same(tmp_path, monkeypatch):
    read, inner = ClickLog.read, []

    def read_while_another_builds(files, config):
        monkeypatch.undo()
        inner.append(load(tmp_path))
        return read(files, config)

    monkeypatch.setattr(ClickLog, "read", staticmethod(read_while_another_builds))
    write_log(tmp_path / "data" / "log.csv")
    outer = load(tmp_path)
    assert contents(outer) == contents(inner[0])
    assert len(built(tmp_path)) == 1


def test_nothing_is_printed(tmp_path, capfd):
    write_log(tmp_path / "data" / "log.csv")
    load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_malformed_rows_are_told_or_counted(tmp_path):
    log = tmp_path / "data" / "log.csv"
    write_log(log)
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
    with pytest.raises(UserError, match=f"'{name}'; did you mean {meant}.*srgnn_pick"):
        load(tmp_path, name)


def test_a_name_that_is_near_to_none_is_told_with_all(tmp_path):
    with pytest.raises(UserError, match="There are: click_log, diginetica") as error:
        load(tmp_path, "x")
    assert "did you mean" not in str(error.value)


def test_an_unknown_setting_is_told_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="'test_day'; did you mean test_days"):
        load(tmp_path, test_day=2.0)


@pytest.mark.parametrize(
    ("dataset", "write_raw", "raw", "rules"),
    [
        ("diginetica", write_diginetica, Diginetica, {"test_days": 7.0}),
        ("yoochoose", write_yoochoose, Yoochoose, {"test_days": 1.0}),
    ],
)
def test_the_raw_file_is_taken_before_the_pickles(
    tmp_path, monkeypatch, dataset, write_raw, raw, rules
):
    raw_reads = count_reads(monkeypatch, raw)
    pickle_reads = count_reads(monkeypatch, SrgnnPickles)
    with pytest.raises(UserError, match=r"(clicks|views)\..*all_train_seq\.txt"):
        load(tmp_path, dataset, **rules)
    write_pickles(tmp_path / "data")
    from_pickles = load(tmp_path, dataset, **rules)
    assert (len(raw_reads), len(pickle_reads)) == (0, 1)
    assert from_pickles.test.last_only
    write_raw(tmp_path / "data")
    from_raw = load(tmp_path, dataset, **rules)
    assert (len(raw_reads), len(pickle_reads)) == (1, 1)
    assert not from_raw.test.last_only
    names = [name.rsplit("-", 1)[0] for name in built(tmp_path)]
    assert sorted(names) == sorted([dataset, "srgnn_pickles"])


def test_views_are_ordered_by_timeframe(tmp_path):
    write_diginetica(tmp_path / "data")
    prepared = load(tmp_path, "diginetica", test_days=7.0)
    assert prepared.vocabulary.ids == ["10", "11", "12"]
    assert {tuple(session.tolist()) for session in prepared.test} == {(1, 2, 3)}


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
    write_pickles(tmp_path / "data")
    settings = {"train_fraction": fraction} if dataset == "yoochoose" else {}
    prepared = load(tmp_path, dataset, test_days=1.0, **settings)
    assert prepared.published == PUBLISHED_COUNTS.get(published, {})
    assert set(prepared.published) <= set(prepared.counts)


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


def test_the_table_of_counts_fits_a_terminal(tmp_path):
    write_log(tmp_path / "data" / "log.csv")
    counts = dict.fromkeys(load(tmp_path).counts, 10**10 - 1)
    lines = counts_table(counts, counts).splitlines()
    assert len(lines) == len(counts) + 1
    assert max(map(len, lines)) <= 80
    # Names and numbers do not run into each other.
    assert all(len(line.rsplit("  ", 2)) == 3 for line in lines)


def test_data_is_named_with_its_fraction():
    assert data_name("yoochoose", 1 / 64) == "yoochoose_1_64"
    assert data_name("diginetica", 1.0) == "diginetica"
