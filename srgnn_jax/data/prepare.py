"""Clicks -> sessions to train and test on: filtered, split by time, items numbered.

The rules are those of the published preprocessing, whose counts they reproduce; each is
an argument. Axes: C clicks, S sessions, I distinct items.
"""

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Integer

from srgnn_jax.data.counts import count
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.errors import UserError

SECOND = 1_000_000
DAY = 86_400 * SECOND


def prepare(
    clicks: pl.DataFrame,
    *,
    min_session_length: int = 2,
    min_item_count: int = 5,
    test_days: float = 1.0,
    test_start: int | None = None,
    test_end: int | None = None,
    train_fraction: float = 1.0,
    date_resolution_seconds: int = 0,
) -> Dataset:
    """Filters sessions and items, splits the sessions by date, and numbers the items.

    1. A session's clicks are sorted by time (stable); its date is that of its last
       click in the file.
    2. Sessions with too few clicks are dropped, then items with too few clicks, then
       sessions that have too few left.
    3. With T the latest date, a session trains if its date < T - test_days and tests if
       its date > T - test_days: those exactly on the edge do neither.
    4. Sessions are ordered by date, then by first appearance in the file.
    5. Items are numbered from 1 by first appearance in training. Test clicks on other
       items are dropped, and test sessions then too short.
    6. The last `train_fraction` of the training examples is kept. The published code
       lists a session's examples longest first, so one on the border keeps the
       shortest.

    Args:
      clicks: in file order; session, item: text, time and, if it differs, date: int64
        microseconds (see `read.read_clicks`).
      min_session_length: clicks that a session must have.
      min_item_count: clicks that an item must have.
      test_days: the span of the test split before T, in days of 24 hours.
      test_start: tests on sessions from this date on, and trains on those before it,
        instead of `test_days`.
      test_end: with `test_start`, leaves out sessions from this date on.
      train_fraction: in (0, 1].
      date_resolution_seconds: round dates down to a multiple of it; 0: keep them.

    Raises:
      UserError: a split is empty, or `test_end` is not after `test_start`.
    """
    if test_end is not None and (test_start is None or test_end <= test_start):
        raise UserError(
            "config.test_end needs a config.test_start before it: together they bound "
            "the test split"
        )
    kept, date, raw_items = _filter(
        clicks, min_session_length, min_item_count, date_resolution_seconds
    )
    if test_start is None:
        # A span that is longer than all of time leaves nothing before it.
        edge = date.max() - round(min(test_days, 1e6) * DAY)
        is_train, is_test = date < edge, date > edge
    else:
        is_train = date < test_start
        is_test = ~is_train & (date < (np.inf if test_end is None else test_end))
    train, test = _by_date(kept, date, is_train, is_test)
    test_sessions = len(test)
    train, test, ids = _number_items(train, test, len(raw_items), min_session_length)
    train = _last_examples(train, train_fraction)
    if not len(train) or not len(test):
        raise UserError(
            f"{len(train)} sessions are left to train on and {len(test)} to test on, "
            "after keeping config.train_fraction of the examples and dropping test "
            "clicks on items that no training session holds"
        )
    vocabulary = Vocabulary(raw_items.gather(ids).to_list())
    counts = count({"train": train, "test": test}, vocabulary)
    # As published: sessions by date, some of which may have no known item left.
    counts["test_sessions"] = test_sessions
    counts["raw_clicks"] = len(clicks)
    counts["edge_sessions"] = int((~is_train & ~is_test).sum())
    return Dataset({"train": train, "test": test}, vocabulary, counts)


def _filter(
    clicks: pl.DataFrame,
    min_session_length: int,
    min_item_count: int,
    date_resolution_seconds: int,
) -> tuple[Sessions, Int[np.ndarray, " S"], pl.Series]:
    """Applies rules 1 and 2.

    Returns:
      The sessions that are left, of items by number, not by row; their dates; and the
      raw id of every number.
    """
    session, _ = number_values(clicks["session"])
    item, raw_items = number_values(clicks["item"])
    time = clicks["time"].to_numpy()
    file_date = clicks["date"].to_numpy() if "date" in clicks.columns else time
    # The last assignment to an index wins: that of the last click in the file.
    date = np.zeros(session.max() + 1, np.int64)
    date[session] = file_date
    if date_resolution_seconds:
        date -= date % (date_resolution_seconds * SECOND)

    if not _in_order(session, time):
        order = np.lexsort((time, session))
        session, item = session[order], item[order]
    keep = _long_enough(session, np.ones(len(session), bool), min_session_length)
    keep &= (np.bincount(item[keep], minlength=len(raw_items)) >= min_item_count)[item]
    keep = _long_enough(session, keep, min_session_length)
    if not keep.any():
        raise UserError(
            f"no clicks are left of {len(clicks)} after dropping sessions of fewer "
            f"than {min_session_length} clicks and items of fewer than "
            f"{min_item_count}; lower config.min_session_length or "
            "config.min_item_count"
        )
    session, item = session[keep], item[keep]
    starts = np.flatnonzero(np.diff(session, prepend=-1))
    return (
        Sessions(item, np.append(starts, len(item))),
        date[session[starts]],
        raw_items,
    )


def _by_date(
    kept: Sessions,
    date: Int[np.ndarray, " S"],
    is_train: Bool[np.ndarray, " S"],
    is_test: Bool[np.ndarray, " S"],
) -> tuple[Sessions, Sessions]:
    """Returns the sessions to train and to test on, each ordered by date."""
    by_date = np.argsort(date, kind="stable")
    train = kept.take(by_date[is_train[by_date]])
    test = kept.take(by_date[is_test[by_date]])
    if not len(train) or not len(test):
        raise UserError(
            f"the split by time leaves {len(train)} sessions to train on and "
            f"{len(test)} to test on, of {len(kept)} from {_text(date.min())} to "
            f"{_text(date.max())}; set config.test_days, or config.test_start and "
            "config.test_end"
        )
    return train, test


def _number_items(
    train: Sessions, test: Sessions, num_raw: int, least: int
) -> tuple[Sessions, Sessions, Int[np.ndarray, " I"]]:
    """Applies rule 5.

    Returns:
      The sessions, of item rows now, and the number that each row had before.
    """
    ids = _by_first_appearance(train.items)
    row = np.zeros(num_raw, np.int32)
    row[ids] = np.arange(1, len(ids) + 1)
    return train.replace_items(row), _known_items(test.replace_items(row), least), ids


def number_values(column: pl.Series) -> tuple[Int[np.ndarray, " C"], pl.Series]:
    """Numbers the distinct values from 0 by first appearance.

    Returns:
      The number of each value, in int32, and the distinct values in that order.
    """
    # polars hashes once and numbers the values in an order of its own.
    own = column.cast(pl.Categorical(pl.Categories.random())).to_physical().to_numpy()
    order = _by_first_appearance(own)
    number = np.empty(own.max() + 1, np.int32)
    number[order] = np.arange(len(order))
    return number[own], column.gather(_first_positions(own)[order])


def _first_positions(numbers: Integer[np.ndarray, " C"]) -> Int[np.ndarray, " N"]:
    """Returns where each number from 0 on stands first; C where it stands nowhere."""
    first = np.full(numbers.max() + 1, len(numbers))
    # The last assignment to an index wins.
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]
    return first


def _by_first_appearance(numbers: Integer[np.ndarray, " C"]) -> Int[np.ndarray, " N"]:
    """Returns the distinct numbers in the order in which they come up."""
    first = _first_positions(numbers)
    return np.argsort(first, kind="stable")[: np.count_nonzero(first < len(numbers))]


def _in_order(session: Int[np.ndarray, " C"], time: np.ndarray) -> bool:
    """Whether the clicks are sorted by session, then time, as many logs are."""
    same = session[1:] == session[:-1]
    later = (session[1:] > session[:-1]) | (same & (time[1:] >= time[:-1]))
    return bool(later.all())


def _long_enough(
    session: Int[np.ndarray, " C"], keep: Bool[np.ndarray, " C"], least: int
) -> Bool[np.ndarray, " C"]:
    """Keeps, of the clicks kept so far, those of sessions with at least so many."""
    lengths = np.bincount(session[keep], minlength=session[-1] + 1)
    return keep & (lengths >= least)[session]


def _last_examples(train: Sessions, fraction: float) -> Sessions:
    if fraction == 1:
        return train
    examples = train.lengths - 1
    wanted = int(examples.sum() * fraction)
    from_end = np.cumsum(examples[::-1])[::-1]
    whole = int((from_end > wanted).sum())
    missing = wanted - (from_end[whole] if whole < len(train) else 0)
    last = train.take(np.arange(whole, len(train)))
    if not missing:
        return last
    border = train[whole - 1][: missing + 1]
    return Sessions(
        np.concatenate([border, last.items]),
        np.concatenate([[0], last.offsets + len(border)]),
    )


def _known_items(test: Sessions, least: int) -> Sessions:
    session = np.repeat(np.arange(len(test)), test.lengths)
    keep = _long_enough(session, test.items > 0, least)
    lengths = np.bincount(session[keep], minlength=len(test))
    offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
    return Sessions(test.items[keep], offsets)


def _text(microseconds: np.int64) -> str:
    return str(microseconds.astype("datetime64[us]"))[:19].replace("T", " ")
