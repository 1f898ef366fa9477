"""The prepared sessions that users of the published code have, as Python pickles."""

import pathlib
import reprlib
from typing import Any

from srgnn_jax.data.counts import count
from srgnn_jax.data.plain_pickle import PlainUnpickler
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError, reason

FILES = ("all_train_seq.txt", "test.txt")
# Every number up to the largest gets a row: one absurd number must not fill the memory.
MOST_ITEMS = 20_000_000
INSTRUCTIONS = (
    "Put the two files there that preprocess.py of the published code writes: "
    "all_train_seq.txt (a list of training sessions) and test.txt (prefixes and "
    "targets)."
)
SETTINGS = frozenset({"on_bad_row"})
PRESETS = {"default": Settings()}


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the pickles; an item's number is its row, and as text its raw id."""
    train_path, test_path = files
    train = _sessions(train_path, _load(train_path))
    match _load(test_path):
        case (list(prefixes), list(targets)) if len(prefixes) == len(targets):
            _sessions(test_path, prefixes)
        case _:
            raise UserError(
                f"{test_path} does not hold (prefixes, targets), two equally long lists"
            )
    pairs = [[*p, t] for p, t in zip(prefixes, targets, strict=True)]
    test = _sessions(test_path, pairs, last_only=True)
    largest = max(int(train.items.max()), int(test.items.max()))
    vocabulary = Vocabulary([str(row) for row in range(1, largest + 1)])
    counts = count({"train": train, "test": test}, vocabulary)
    # These start a session: the others only shorten the pair before.
    heads = [n for n, pair in enumerate(pairs) if not n or prefixes[n - 1] != pair]
    counts["test_sessions"] = len(heads)
    counts["clicks"] = len(train.items) + int(test.lengths[heads].sum())
    return Dataset({"train": train, "test": test}, vocabulary, counts)


def _sessions(path: pathlib.Path, sessions: Any, last_only: bool = False) -> Sessions:
    """Checks that these are lists of item numbers from 1 on."""
    if not isinstance(sessions, list) or not sessions:
        raise UserError(f"{path} does not hold a list of sessions")
    # A small file may refer to one long list very often: nothing is copied before all
    # is known to be no longer than what was read.
    size = remaining = path.stat().st_size
    for number, session in enumerate(sessions):
        remaining -= len(session) if isinstance(session, list) else 0
        if remaining < 0:
            raise UserError(
                f"{path}, session {number}: so many clicks do not fit into a file of "
                f"{size:,} bytes; it repeats its lists"
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
    """Shows the start of a value, which may be endless when it is all printed."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # Python prints no integer of thousands of digits.
        return f"a {type(value).__name__} of numbers out of range"


def _load(path: pathlib.Path) -> Any:
    try:
        return PlainUnpickler(path.read_bytes()).load()
    except (OSError, UserError) as error:
        raise UserError(f"refused to read {path}: {reason(error)}") from None
