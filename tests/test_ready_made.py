"""Sources of ready-made splits: pickles, LESSR's text, RecBole's splits."""

import pickle

import numpy as np
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.configs import recbole_ml100k
from srgnn_jax.data.numpy_pickle import NumpyUnpickler
from srgnn_jax.data.sources import Settings, find_files, pickles, recbole
from srgnn_jax.data.store import load_dataset
from srgnn_jax.errors import UserError
from tests.raw_files import write_pickles
from tests.tiny import spelled_out


def read(source, folder, **settings):
    """Reads a folder without storing anything."""
    chosen = Settings(**settings)
    return source.read(find_files(source, folder, chosen), chosen)


def lists(sessions):
    return [session.tolist() for session in sessions]


# --- Pickles that hold NumPy's integers

TRAIN, TEST = [[1, 2, 3], [2, 4]], ([[3, 1], [3], [4]], [2, 1, 1])


def scalars(session, dtype=np.int64):
    return [dtype(item) for item in session]


NUMPY_FORMS = {
    "scalars": ([*map(scalars, TRAIN)], ([*map(scalars, TEST[0])], scalars(TEST[1]))),
    "arrays": ([*map(np.array, TRAIN)], ([*map(np.array, TEST[0])], np.array(TEST[1]))),
    "small, and the other way round": (
        [np.array(session, "u1") for session in TRAIN],
        ([np.array(session, ">i4") for session in TEST[0]], scalars(TEST[1], np.int16)),
    ),
    "arrays of lists": (
        np.array(TRAIN, object),
        (np.array(TEST[0], object), np.array(TEST[1])),
    ),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", NUMPY_FORMS)
def test_numpys_integers_are_integers(tmp_path, form, protocol):
    pickled = [pickle.dumps(what, protocol) for what in NUMPY_FORMS[form]]
    write_pickles(tmp_path)
    expected = read(pickles, tmp_path)
    for module in (b"numpy._core", b"numpy.core"):
        # Names of protocol 4 carry their length.
        if protocol < 4 or module == b"numpy._core":
            write_pickles(
                tmp_path, *(data.replace(b"numpy._core", module) for data in pickled)
            )
            found = read(pickles, tmp_path)
            assert lists(found.train) == lists(expected.train) == TRAIN
            assert lists(found.test) == lists(expected.test)
            assert found.counts == expected.counts


def test_a_long_array_is_read_whole():
    whole = np.arange(100_000)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps([whole], protocol)
        assert NumpyUnpickler(data).load() == [whole.tolist()]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([np.array([1.5])], "values of type 'f8', not integers"),
        ([[np.float32(1)]], "values of type 'f4', not integers"),
        ([[np.bool_(True)]], "values of type 'b1', not integers"),
        (np.ones((2, 2), int), r"an array of shape \(2, 2\) is not a list"),
        ([np.array(1)], r"an array of shape \(\) is not a list"),
        ([np.array([1, 0])], r"session 0: \[1, 0\] is not a list of item"),
        ([np.array([2**63], np.uint64)], "session 0: .* is not a list of item"),
        (np.datetime64("2020-01-01"), "values of type 'M8'"),
        (np.random.default_rng(0), "asks for 'numpy.random"),
    ],
)
def test_numpy_values_of_something_else(tmp_path, train, message):
    write_pickles(tmp_path, pickle.dumps(train))
    with pytest.raises(UserError, match=message):
        read(pickles, tmp_path)


# Calls of known names with wrong arguments, in protocol 2.
TYPE = b"cnumpy\ndtype\nX\x02\0\0\0i8\x85R"
SCALAR = b"cnumpy._core.multiarray\nscalar\n"
ARRAY = (
    b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    # Its state: 10,000 integers, the bytes from the memo.
    b"(K\x01M\x10\x27\x85h\x01\x89h\x00tb"
)
LONG = b"B" + (80_000).to_bytes(4, "little") + bytes(80_000) + b"q\x00"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04K\x01K\x02\x85R.", "damaged"),
        (b"\x80\x04]" + TYPE[:-1] + b"\x85b.", "damaged"),
        (b"\x80\x04" + SCALAR + TYPE + b"C\x04abcd\x86R.", "damaged"),
        (b"\x80\x04" + SCALAR + TYPE + b"]\x86R.", "damaged"),
        (b"\x80\x04cnumpy\nndarray\nK\x05\x85R.", "damaged"),
        (b"\x80\x04" + TYPE + b"K\x05b.", "damaged"),
        (
            # One array's bytes fill a thousand more.
            b"\x80\x04](" + LONG + TYPE + b"q\x01" + ARRAY * 1000 + b"e.",
            "unpacks to more bytes than it holds",
        ),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "damaged"),
    ],
)
def test_numpy_names_in_hostile_pickles(data, message):
    with pytest.raises(UserError, match=message):
        NumpyUnpickler(data).load()


# --- The published code's train.txt


def test_training_pairs_are_read_where_the_sessions_are_missing(tmp_path):
    write_pickles(tmp_path, test=TEST)
    pairs = ([[1, 2], [1], [2]], [3, 2, 4])
    (tmp_path / "train.txt").write_bytes(pickle.dumps(pairs))
    assert lists(read(pickles, tmp_path).train) == TRAIN
    sessions = read(pickles, tmp_path)
    (tmp_path / "all_train_seq.txt").unlink()
    data = read(pickles, tmp_path)
    assert data.train.last_only
    assert lists(data.train) == [[1, 2, 3], [1, 2], [2, 4]]
    assert data.vocabulary.ids == sessions.vocabulary.ids
    # The same clicks and the same examples: nothing is counted twice.
    assert data.counts == sessions.counts
    (tmp_path / "train.txt").write_bytes(pickle.dumps(TRAIN))
    with pytest.raises(UserError, match=r"train\.txt does not hold \(prefixes, targ"):
        read(pickles, tmp_path)


# --- LESSR's text


def write_lessr(folder, train="0,1,2\n1,3\n", test="2,0\n", num_items="4"):
    files = {"train.txt": train, "test.txt": test, "num_items.txt": num_items}
    for name, text in files.items():
        (folder / name).write_text(text)


def test_lessrs_text(tmp_path):
    write_lessr(tmp_path, "0,1,2\n\n1,3\n", "3,2,0")
    data = read(pickles, tmp_path)
    assert lists(data.train) == [[1, 2, 3], [2, 4]]
    assert lists(data.test) == [[4, 3, 1]]
    assert not data.train.last_only
    assert not data.test.last_only
    assert data.vocabulary.ids == ["0", "1", "2", "3"]
    assert data.counts["clicks"] == 8
    assert data.counts["test_examples"] == 2
    assert data.counts["skipped_rows"] == 0
    (tmp_path / "num_items.txt").unlink()
    again = read(pickles, tmp_path)
    assert lists(again.train) == lists(data.train)
    assert again.vocabulary.ids == data.vocabulary.ids


@pytest.mark.parametrize(
    "line", ["1,x", "1,,2", "1 2", "-1,2", "1,4", "1;2", "\0", "1.5", "9" * 5000]
)
def test_lines_that_are_no_session(tmp_path, line):
    write_lessr(tmp_path, f"0,1,2\n\n{line}\n1,3\n")
    with pytest.raises(UserError, match=r"train\.txt, line 3: .* 0 to 3 separated"):
        read(pickles, tmp_path)
    data = read(pickles, tmp_path, on_bad_row="skip")
    assert lists(data.train) == [[1, 2, 3], [2, 4]]
    assert data.counts["skipped_rows"] == 1


def test_lessrs_files_of_something_else(tmp_path):
    write_lessr(tmp_path, num_items="many")
    with pytest.raises(UserError, match=r"num_items\.txt, line 1: 'many' is not a num"):
        read(pickles, tmp_path)
    write_lessr(tmp_path, train="x\n", test="y\n")
    with pytest.raises(UserError, match=r"refused to read .*train\.txt"):
        read(pickles, tmp_path)
    write_lessr(tmp_path)
    (tmp_path / "test.txt").write_bytes(pickle.dumps(TEST))
    with pytest.raises(UserError, match=r"test\.txt, line 1: .* is not a session"):
        read(pickles, tmp_path)
    (tmp_path / "train.txt").write_text("0," + "9" * 12)
    (tmp_path / "num_items.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt, line 1: .* to 19,999,999"):
        read(pickles, tmp_path)


# --- RecBole's splits

HEADER = "session_id:token\titem_id_list:token_seq\titem_id:token\n"
ROWS = {
    "train": [("30 10", "20"), ("30", "10")],
    "valid": [("10 50 10", "30")],
    "test": [("40", "60"), ("20 30", "70")],
}


def write_splits(folder, rows=ROWS, name="shop", header=HEADER):
    for split, examples in rows.items():
        lines = [
            f"{n}\t{prefix}\t{item}\n" for n, (prefix, item) in enumerate(examples)
        ]
        (folder / f"{name}.{split}.inter").write_text(header + "".join(lines))


def recboles_numbers(rows):
    """RecBole's: pandas.factorize of all targets, then of all prefixes."""
    targets = [item for examples in rows.values() for _, item in examples]
    prefixes = [p for examples in rows.values() for p, _ in examples]
    tokens = [*targets, *" ".join(prefixes).split()]
    return {token: row for row, token in enumerate(dict.fromkeys(tokens), 1)}


@pytest.mark.parametrize("seed", range(3))
def test_recboles_splits_are_read_as_recbole_reads_them(tmp_path, seed):
    rng = np.random.default_rng(seed)

    def example():
        prefix = rng.integers(0, 30, rng.integers(1, 6)).astype(str)
        return " ".join(prefix), str(rng.integers(0, 30))

    rows = {split: [example() for _ in range(9)] for split in ROWS}
    write_splits(tmp_path, rows)
    data = read(recbole, tmp_path)
    number = recboles_numbers(rows)
    assert data.vocabulary.ids == list(number)
    names = {"train": "train", "validation": "valid", "test": "test"}
    for split, examples in ((split, rows[name]) for split, name in names.items()):
        sessions = data.splits[split]
        assert sessions.last_only
        assert spelled_out(sessions.examples()) == [
            ([number[item] for item in prefix.split()], number[target])
            for prefix, target in examples
        ]
        assert data.counts[f"{split}_examples"] == 9
    assert data.counts["skipped_rows"] == 0


@pytest.mark.parametrize("log_file", ["", "shop.train.inter", "shop.test.inter"])
@pytest.mark.parametrize("ending", ["valid", "validation"])
def test_the_config_of_recbole_trains_on_splits(tmp_path, log_file, ending):
    rows = {ending if s == "valid" else s: found for s, found in ROWS.items()}
    write_splits(tmp_path, rows)
    config = recbole_ml100k.get_config()
    config.data_dir, config.prepared_dir = str(tmp_path), str(tmp_path / "prepared")
    config.log_file = log_file
    splits = config_lib.make_splits(config, config_lib.load_data(config))
    # By RecBole: 20, 10, 30, 60, 70, 50, 40.
    assert spelled_out(splits.train) == [([3, 2], 1), ([3], 2)]
    assert spelled_out(splits.evaluated["valid"]) == [([2, 6, 2], 3)]
    assert spelled_out(splits.evaluated["test"]) == [([7], 4), ([1, 3], 5)]


def test_splits_that_are_missing(tmp_path, caplog):
    def load(**settings):
        return load_dataset(
            "recbole_inter", data_dir=tmp_path, prepared_dir=tmp_path / "p", **settings
        )

    write_splits(tmp_path)
    (tmp_path / "shop.valid.inter").unlink()
    assert load().validation is None
    assert "held out instead" in caplog.text
    (tmp_path / "shop.test.inter").unlink()
    for named in ("", "shop.train.inter"):
        with pytest.raises(UserError, match=r"no file shop\.test\.inter in config\."):
            load(log_file=named)
    write_splits(tmp_path, {"test": ROWS["test"]}, name="other")
    with pytest.raises(UserError, match=r"more than one data set .*\(other, shop\)"):
        load()
    with pytest.raises(UserError, match=r"no file other\.train\.inter in config\."):
        load(log_file="other.test.inter")
    with pytest.raises(UserError, match=r"no file a\.b\.inter in config\.data_dir"):
        load(log_file="a.b.inter")


def test_a_log_beside_splits_is_read_if_it_is_named(tmp_path):
    write_splits(tmp_path)
    clicks = [f"u\ti{n}\t{n}\n" for n in range(4)]
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (tmp_path / "shop.inter").write_text(header + "".join(clicks))
    with pytest.raises(UserError, match=r"more than one data set .*shop\.inter"):
        read(recbole, tmp_path)
    (tmp_path / "shop.validation.inter").touch()
    data = read(recbole, tmp_path, log_file="shop.train.inter")
    assert (len(data.train), len(data.validation)) == (2, 1)
    assert not read(recbole, tmp_path, log_file="shop.inter").train.last_only


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9\t10", "2 fields instead of 3"),
        ("9\t10\t20\t30", "4 fields instead of 3"),
        ("9\t\t20", "there is no item before the target"),
        ("9\t \t20", "there is no item before the target"),
        ("9\t10\t", "the target is empty"),
        ("9\t10\t2\0", "a NUL byte"),
        ("9\t10\t\udcff", "text that is not UTF-8; name the encoding"),
    ],
)
def test_rows_that_are_no_example(tmp_path, row, message):
    write_splits(tmp_path)
    path = tmp_path / "shop.valid.inter"
    text = path.read_text() + f"\n{row}\n"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=rf"shop\.valid\.inter, line 4: {message}"):
        read(recbole, tmp_path)
    data = read(recbole, tmp_path, on_bad_row="skip")
    assert len(data.validation) == data.counts["skipped_rows"] == 1
    path.write_text(f"{HEADER}{row}\n", errors="surrogateescape")
    with pytest.raises(UserError, match="no examples, only 1 malformed rows"):
        read(recbole, tmp_path, on_bad_row="skip")


def test_spaces_and_line_ends_are_as_nothing(tmp_path):
    rows = {split: list(examples) for split, examples in ROWS.items()}
    write_splits(tmp_path, rows)
    expected = read(recbole, tmp_path)
    rows["train"][0] = (" 30   10 ", "20")
    write_splits(tmp_path, rows)
    header = "\ufeffitem_id:token\titem_id_list:token_seq\n"
    (tmp_path / "shop.valid.inter").write_text(f"{header}30\t10 50 10\n")
    for path in tmp_path.glob("*.inter"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    data = read(recbole, tmp_path)
    assert data.vocabulary.ids == expected.vocabulary.ids
    assert lists(data.train) == lists(expected.train)
    assert lists(data.validation) == lists(expected.validation)


def test_columns_of_splits(tmp_path):
    write_splits(tmp_path, header="s:token\tsong_list:token_seq\tsong:token\n")
    with pytest.raises(UserError, match=r"line 1: no column 'item_id' among 's:token'"):
        read(recbole, tmp_path)
    for name in ("song", "song:token"):
        assert len(read(recbole, tmp_path, item_column=name).train) == 2
    write_splits(tmp_path)
    for name in ("session_column", "time_column"):
        with pytest.raises(UserError, match=rf"config\.{name} is 's', which would cha"):
            read(recbole, tmp_path, **{name: "s"})
    (tmp_path / "shop.test.inter").write_text("")
    with pytest.raises(UserError, match=r"shop\.test\.inter, line 1: no column"):
        read(recbole, tmp_path)
