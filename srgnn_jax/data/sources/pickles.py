"""The prepared sessions of the published code, as Python pickles.

LESSR's files, text under the same names, are detected from their content.
"""

import pathlib
import reprlib
from typing import Any

from srgnn_jax.data.counts import count
from srgnn_jax.data.numpy_pickle import NumpyUnpickler
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources import lessr
from srgnn_jax.data.sources.lessr import MOST_ITEMS
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError, reason

FILES = ("all_train_seq.txt", "test.txt")
INSTRUCTIONS = (
    "Put the two files there that preprocess.py of the published code writes: "
    "all_train_seq.txt (a list of training sessions) and test.txt (prefixes and "
    "targets). Without the first, train.txt (prefixes and targets) is read instead. Or "
    "put LESSR's train.txt and test.txt there, with one session per line."
)
SETTINGS = frozenset({"on_bad_row"})
PRESETS = {"default": Settings()}


def find_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Finds the files if all_train_seq.txt is missing; see `source.find_files`."""
    names = ("train.txt", "test.txt", lessr.NUM_ITEMS)
    train, test, num_items = (folder / name for name in names)
    if (folder / FILES[0]).is_file() or not (train.is_file() and test.is_file()):
        return []
    # Next to pickles, num_items.txt would say nothing about them.
    is_known = num_items.is_file() and lessr.is_text(train)
    return [train, test, num_items] if is_known else [train, test]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the files; an item's number in a pickle is its row and, as text, its id."""
    train_path, test_path = files[:2]
    has_pairs = train_path.name == "train.txt"
    if has_pairs and (lessr.is_text(train_path) or lessr.is_text(test_path)):
        return lessr.read(files, settings)
    if has_pairs:
        train, train_heads = _pairs(train_path)
    else:
        train = _sessions(train_path, _load(train_path))
        train_heads = [*range(len(train))]
    test, test_heads = _pairs(test_path)
    splits = {"train": train, "test": test}
    largest = max(int(split.items.max()) for split in splits.values())
    vocabulary = Vocabulary([str(row) for row in range(1, largest + 1)])
    counts = count(splits, vocabulary)
    counts |= {"train_sessions": len(train_heads), "test_sessions": len(test_heads)}
    counts["clicks"] = int(
        train.lengths[train_heads].sum() + test.lengths[test_heads].sum()
    )
    return Dataset(splits, vocabulary, counts)


def _pairs(path: pathlib.Path) -> tuple[Sessions, list[int]]:
    """Returns the pairs (prefix, target), and which of them are whole sessions."""
    match _load(path):
        case (list(prefixes), list(targets)) if len(prefixes) == len(targets):
            _sessions(path, prefixes)
        case _:
            raise UserError(
                f"{path} does not hold (prefixes, targets), two equally long lists"
            )
    pairs = [[*p, t] for p, t in zip(prefixes, targets, strict=True)]
    # The others only shorten the pair before.
    heads = [n for n, pair in enumerate(pairs) if not n or prefixes[n - 1] != pair]
    return _sessions(path, pairs, last_only=True), heads


def _sessions(path: pathlib.Path, sessions: Any, last_only: bool = False) -> Sessions:
    """Returns sessions, after checking that they are lists of item numbers from 1."""
    if not isinstance(sessions, list) or not sessions:
        raise UserError(f"{path} does not hold a list of sessions")
    # A small file may refer to one long list very often: nothing is copied until the
    # number of clicks is known to fit into the file.
    size = remaining = path.stat().st_size
    for number, session in enumerate(sessions):
        remaining -= len(session) if isinstance(session, list) else 0
        if remaining < 0:
            raise UserError(
                f"{path}, session {number}: so many clicks do not fit into a file of "
                f"{size:,} bytes; the file repeats its lists"
            )
        if (
            not isinstance(session, list)
            or not session
            or not all(type(i) is int and 0 < i <= MOST_ITEMS for i in session)
        ):
            raise UserError(
                f"{path}, session {number}: {_shown(session)} is not a list of item "
                f"numbers from 1 to {MOST_ITEMS:,}"
            )
    return Sessions.from_lists(sessions, last_only)


def _shown(value: Any) -> str:
    """Returns the start of a value's repr; all of it might be endless."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # Python does not print integers of thousands of digits.
        return f"a {type(value).__name__} of numbers out of range"


def _load(path: pathlib.Path) -> Any:
    try:
        return NumpyUnpickler(path.read_bytes()).load()
    except (OSError, UserError) as error:
        raise UserError(f"refused to read {path}: {reason(error)}") from None
