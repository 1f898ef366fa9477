"""RecBole's .inter files and its leave-one-out protocol."""

import numpy as np
import polars as pl
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.configs import recbole_ml100k
from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sources.recbole import USUAL_NAMES, leave_one_out, time_key
from srgnn_jax.data.store import load_dataset
from srgnn_jax.errors import UserError
from tests.tiny import spelled_out

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def lists(sessions):
    return [sessions[s].tolist() for s in range(len(sessions))]


def log(rows):
    return pl.DataFrame(
        rows,
        schema={"session": pl.String, "item": pl.String, "time": pl.Int64},
        orient="row",
    )


def reference(rows):
    """The protocol click by click, after RecBole's documentation."""
    numbers, users = {}, {}
    for user, item, time in rows:
        row = numbers.setdefault(item, len(numbers) + 1)
        users.setdefault(user, []).append((time, row))
    splits = {"train": [], "validation": [], "test": []}
    for clicks in users.values():
        items = [row for _, row in sorted(clicks, key=lambda click: click[0])]
        # One example for each click from the second on. The last two are held out, as
        # long as one is left to train on.
        examples = [(items[:n], items[n]) for n in range(1, len(items))]
        if len(examples) >= 2:
            splits["test"].append(examples.pop())
        if len(examples) >= 2:
            splits["validation"].append(examples.pop())
        splits["train"] += examples
    return splits, list(numbers)


@pytest.mark.parametrize("seed", range(5))
def test_leave_one_out_against_a_reference(seed):
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{rng.geometric(0.2)}", f"i{rng.integers(9)}", int(rng.integers(20)))
        for _ in range(150)
    ]
    prepared = leave_one_out(log(rows), "exact")
    expected, items = reference(rows)
    assert prepared.vocabulary.ids == items
    assert all(expected.values())
    for split, sessions in prepared.splits.items():
        assert spelled_out(sessions.examples()) == expected[split]
    counts = prepared.counts
    assert counts["clicks"] == 150
    assert counts["validation_examples"] == len(expected["validation"])
    assert counts["test_examples"] == len(expected["test"])


def test_users_of_few_clicks():
    rows = [
        (user, f"{user}{n}", n)
        for user, clicks in zip("abcd", (1, 2, 3, 4), strict=True)
        for n in range(clicks)
    ]
    splits = leave_one_out(log(rows), "exact").splits
    assert lists(splits["train"]) == [[2, 3], [4, 5], [7, 8]]
    assert lists(splits["validation"]) == [[7, 8, 9]]
    assert lists(splits["test"]) == [[4, 5, 6], [7, 8, 9, 10]]
    assert not splits["train"].last_only
    assert splits["validation"].last_only
    assert splits["test"].last_only


def test_no_user_of_three_clicks():
    with pytest.raises(UserError, match="no user has three clicks, of 2 users with 3"):
        leave_one_out(log([("a", "x", 1), ("a", "y", 2), ("b", "x", 1)]), "exact")


def test_times_as_exact_as_recbole_has_them():
    seconds = np.array(
        [880_000_000, 880_000_001, 880_000_031, 880_000_200, 893_286_638]
    )
    micro = seconds * 1_000_000
    assert len(np.unique(time_key(micro, "exact"))) == 5
    # Single precision has steps of 64 there.
    assert len(np.unique(time_key(micro, "float32"))) == 3
    assert len(np.unique(time_key(micro, "normalized"))) == 5
    close = np.array([0, 13_000_000, 13_000_000.05, 13_286_638]) * 1_000_000
    assert len(np.unique(time_key(close.astype(np.int64), "normalized"))) == 3
    assert time_key(micro[:1], "normalized") == [0]


def test_ties_keep_the_order_of_the_file():
    rows = [
        ("a", item, 880_000_000_000_000 + t)
        for item, t in (("x", 2), ("y", 1), ("z", 0))
    ]
    exact = leave_one_out(log(rows), "exact")
    assert lists(exact.splits["test"]) == [[3, 2, 1]]
    rounded = leave_one_out(log(rows), "float32")
    assert lists(rounded.splits["test"]) == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("header", "named", "expected"),
    [
        (HEADER, Columns(), (0, 1, 3)),
        ("timestamp:float\titem_id\tsession_id\ttime", Columns(), (2, 1, 0)),
        ("session_id\tuser_id:token\titem_id\ttimestamp", Columns(), (1, 2, 3)),
        ("v:token\ta:token\ttimestamp\tuser_id", Columns("v", "a:token"), (0, 1, 2)),
    ],
)
def test_columns_that_recbole_names(tmp_path, header, named, expected):
    names = header.split("\t")
    found = Form(named, USUAL_NAMES).names(names, tmp_path)
    assert tuple(map(names.index, found.values())) == expected


def test_columns_are_found_by_name_without_type(tmp_path):
    text = "visit:token\tsession_id:token\tartist:token\ttimestamp:float\n"
    path = tmp_path / "a.inter"
    path.write_text(text + "v\ts\ta\t5\n")
    for named in (Columns("visit", "artist:token"), Columns("visit:token", "artist")):
        clicks, _ = read_clicks(path, Form(named))
        assert clicks.rows() == [("v", "a", 5_000_000)]


def config_for(tmp_path):
    config = recbole_ml100k.get_config()
    config.data_dir = str(tmp_path / "data")
    config.prepared_dir = str(tmp_path / "prepared")
    return config


def write_inter(tmp_path, rows, header=HEADER):
    (tmp_path / "data").mkdir(exist_ok=True)
    path = tmp_path / "data" / "tiny.inter"
    path.write_text(header + "".join("\t".join(row) + "\n" for row in rows))
    return path


def test_config_reads_a_data_set_of_recbole(tmp_path):
    rows = [
        ("7", "242", "3", "881250949"),
        ("7", "302", "3", "881250940"),
        ("186", "302", "1", "891717742"),
        ("7", "377", "5", "881250950"),
        ("7", "51", "2", "881250960"),
    ]
    write_inter(tmp_path, rows)
    config = config_for(tmp_path)
    config_lib.validate(config)
    data = config_lib.load_data(config)
    assert data.vocabulary.ids == ["242", "302", "377", "51"]
    assert lists(data.train) == [[2, 1]]
    splits = config_lib.make_splits(config, data)
    assert spelled_out(data.validation.examples()) == [([2, 1], 3)]
    assert splits.evaluated["valid"].targets.tolist() == [3]
    assert splits.evaluated["test"].targets.tolist() == [4]
    assert config.max_session_length == 50
    assert config.score_padding


def test_last_50_clicks_are_kept(tmp_path):
    rows = [("u", str(n), "1", str(n)) for n in range(60)]
    write_inter(tmp_path, rows)
    config = config_for(tmp_path)
    splits = config_lib.make_splits(config, config_lib.load_data(config))
    test = splits.evaluated["test"]
    assert test.lengths.tolist() == [50]
    assert test.items[test.starts[0]] == 10
    assert splits.train.lengths.tolist() == [*range(1, 51), *[50] * 7]


def test_bad_input_is_named(tmp_path):
    settings = {"data_dir": tmp_path / "data", "prepared_dir": tmp_path / "prepared"}
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"no file \*.inter .* Put one file there"):
        load_dataset("recbole_inter", **settings)
    rows = [("1", "2", "3", "4"), ("1", "2", "3", "soon")]
    path = write_inter(tmp_path, rows)
    with pytest.raises(UserError, match=rf"{path.name}, line 3: 'soon' is not a time"):
        load_dataset("recbole_inter", **settings)
    write_inter(tmp_path, rows, HEADER.replace("item_id", "product"))
    with pytest.raises(UserError, match=r"no item column among.*config.item_column"):
        load_dataset("recbole_inter", **settings)
    config = config_for(tmp_path)
    config.recbole_time = "float64"
    with pytest.raises(UserError, match=r"config.recbole_time is 'float64'.*float32"):
        config_lib.validate(config)
