"""Reads the prepared sessions of LESSR's code, as text, for the source `pickles`.

train.txt and test.txt have one session per line: item numbers from 0 on, separated by
commas. num_items.txt has the number of items.
"""

import pathlib

from srgnn_jax.data.counts import count
from srgnn_jax.data.files import reading
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError

NUM_ITEMS = "num_items.txt"
# Every number up to the largest gets a row: an absurd number must not fill the memory.
MOST_ITEMS = 20_000_000


def is_text(path: pathlib.Path) -> bool:
    """Whether a file is such text: no pickle begins with a digit."""
    with reading(path), path.open("rb") as file:
        return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].isdigit()


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads train.txt and test.txt, and checks them against num_items.txt, if given.

    Row i + 1 is item i, whose raw id is i; row 0 stays the padding. Every click of a
    session from the second on is a target, in training and in test.
    """
    train_path, test_path, *rest = files
    num_items = _num_items(*rest) if rest else MOST_ITEMS
    splits, skipped = {}, 0
    for split, path in (("train", train_path), ("test", test_path)):
        sessions, bad = _sessions(path, num_items, settings.on_bad_row)
        splits[split], skipped = Sessions.from_lists(sessions), skipped + bad
    largest = max(int(sessions.items.max()) for sessions in splits.values())
    vocabulary = Vocabulary([str(number) for number in range(largest)])
    counts = count(splits, vocabulary) | {"skipped_rows": skipped}
    return Dataset(splits, vocabulary, counts)


def _sessions(
    path: pathlib.Path, num_items: int, on_bad_row: str
) -> tuple[list[list[int]], int]:
    """Returns the sessions, as item rows, and the number of skipped lines."""
    sessions, skipped = [], 0
    with reading(path), path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                session = [int(item) + 1 for item in line.split(",")]
            except ValueError:
                session = [0]
            if min(session) >= 1 and max(session) <= num_items:
                sessions.append(session)
            elif on_bad_row == "error":
                raise UserError(
                    f"{path}, line {number}: {line.strip()[:80]!r} is not a session "
                    f"(item numbers from 0 to {num_items - 1:,} separated by commas); "
                    "fix it, or drop such lines with --config.on_bad_row=skip"
                )
            else:
                skipped += 1
    if not sessions:
        raise UserError(f"{path} holds no session")
    return sessions, skipped


def _num_items(path: pathlib.Path) -> int:
    with reading(path), path.open(encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline(100).strip()
    if not (first.isascii() and first.isdigit() and 0 < int(first[:9]) <= MOST_ITEMS):
        raise UserError(
            f"{path}, line 1: {first[:80]!r} is not a number of items, from 1 to "
            f"{MOST_ITEMS:,}"
        )
    return int(first)
