"""Sources that are split already: pickles, LESSR's text, RecBole's splits, TFDS."""

import pickle

import numpy as np
import pytest

from srgnn_jax.data.numpy_pickle import NumpyUnpickler
from srgnn_jax.data.sources import Settings, find_files, pickles
from srgnn_jax.errors import UserError
from tests.raw_files import write_pickles


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
        ([np.array([1.5])], "values of type 'f8', where integers are read"),
        ([[np.float32(1)]], "values of type 'f4', where integers are read"),
        ([[np.bool_(True)]], "values of type 'b1', where integers are read"),
        (np.ones((2, 2), int), r"an array of shape \(2, 2\) is no list"),
        ([np.array(1)], r"an array of shape \(\) is no list"),
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


# Calls of known names with what they are not made for, by protocol 2.
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
            "makes more of its bytes than there are",
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
