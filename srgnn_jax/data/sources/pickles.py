"""The prepared sessions that users of the published code have, as Python pickles."""

import pathlib
import reprlib
from typing import Any

from srgnn_jax.data.counts import count
from srgnn_jax.data.plain_pickle import PlainUnpickler
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError, reason

TRAIN, TEST = "all_train_seq.txt", "test.txt"
# Every number up to the largest gets a row: one absurd number must not fill the memory.
MOST_ITEMS = 20_000_000

INSTRUCTIONS = (
    "Put the two files there that preprocess.py of the published code writes: "
    f"{TRAIN} (a list of training sessions) and {TEST} (prefixes and targets)."
)
SETTINGS = frozenset({"on_bad_row"})
PRESETS = {"default": Settings()}


def source_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Returns all_train_seq.txt and test.txt."""
    return [source.find_file(folder, name, INSTRUCTIONS) for name in (TRAIN, TEST)]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the pickles; an item's number is its row, and as text its raw id."""
    train_path, test_path = files
    train = _sessions(train_path, _load(train_path))
    pairs = _load(test_path)
    if not (
        isinstance(pairs, tuple | list)
        and len(pairs) == 2
        and all(isinstance(part, list) for part in pairs)
        and len(pairs[0]) == len(pairs[1])
    ):
        raise UserError(
            f"{test_path} does not hold (prefixes, targets), two equally long lists"
        )
    prefixes, targets = pairs
    _sessions(test_path, prefixes)
    with_target = [[*p, t] for p, t in zip(prefixes, targets, strict=True)]
    test = _sessions(test_path, with_target, last_only=True)
    largest = max(int(train.items.max()), int(test.items.max()))
    vocabulary = Vocabulary([str(row) for row in range(1, largest + 1)])
    counts = count({"train": train, "test": test}, vocabulary)
    heads = _session_heads(prefixes, targets)
    counts["test_sessions"] = len(heads)
    counts["clicks"] = len(train.items) + int(test.lengths[heads].sum())
    return Dataset({"train": train, "test": test}, vocabulary, counts)


def _session_heads(prefixes: list[list[int]], targets: list[int]) -> list[int]:
    """Finds the pairs that start a session: the others only shorten the pair before."""
    heads = []
    before: list[int] = []
    for number, (prefix, target) in enumerate(zip(prefixes, targets, strict=True)):
        if before != [*prefix, target]:
            heads.append(number)
        before = prefix
    return heads


def _sessions(path: pathlib.Path, sessions: Any, last_only: bool = False) -> Sessions:
    """Checks that these are lists of item numbers from 1 on."""
    if not isinstance(sessions, list) or not sessions:
        raise UserError(f"{path} does not hold a list of sessions")
    # A small file may refer to one long list very often: nothing is copied before all
    # is known to be no longer than what was read.
    remaining = path.stat().st_size
    for number, session in enumerate(sessions):
        remaining -= len(session) if isinstance(session, list) else 0
        if remaining < 0:
            raise UserError(
                f"{path}, session {number}: so many clicks do not fit into a file of "
                f"{path.stat().st_size:,} bytes; it repeats its lists"
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
