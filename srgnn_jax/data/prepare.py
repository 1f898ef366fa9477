"""Clicks -> sessions to train and test on: filtered, split by time, items numbered.

The rules are those of the published preprocessing, whose counts they reproduce; each is
an argument. Axes: C clicks, S sessions.
"""

import numpy as np
import polars as pl
from jaxtyping import Int

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

    1. Clicks (see `read.read_clicks`) are sorted by time (stable); a session's date is
       that of its last in file, rounded down to `date_resolution_seconds` unless 0.
    2. Sessions with too few clicks are dropped, then items with too few clicks, then
       sessions that have too few left.
    3. With T the latest date, a session trains if its date < T - `test_days` (of 24
       hours) and tests if its date > T - `test_days`: those exactly on the edge do
       neither. With `test_start`, sessions before it train, the others before
       `test_end` test. Dates are in microseconds.
    4. Sessions are ordered by date, then by first appearance in the file.
    5. Items are numbered from 1 by first appearance in training. Test clicks on other
       items are dropped, and test sessions then too short.
    6. The last `train_fraction` of the training examples is kept; a session on the
       border keeps its shortest, as the published code lists them longest first.

    Raises UserError if a split is empty, or `test_end` is not after `test_start`.
    """
    if test_end is not None and (test_start is None or test_end <= test_start):
        raise UserError("config.test_end needs a config.test_start before it")
    kept, date, raw_items = _filter(
        clicks, min_session_length, min_item_count, date_resolution_seconds
    )
    # A span that is longer than all of time leaves nothing before it.
    edge = date.max() - round(min(test_days, 1e6) * DAY)
    is_train, is_test = date < edge, date > edge
    if test_start is not None:
        is_train = date < test_start
        is_test = ~is_train & (date < (np.inf if test_end is None else test_end))
    order = np.argsort(date, kind="stable")
    train, test = (kept.take(order[part[order]]) for part in (is_train, is_test))
    if not len(train) or not len(test):
        first, last = np.array([date.min(), date.max()], "datetime64[us]").astype(str)
        raise UserError(
            f"the split by time leaves {len(train)} sessions to train on and "
            f"{len(test)} to test on, of {len(kept)} from {first[:19]} to {last[:19]}; "
            "set config.test_days, or config.test_start and config.test_end"
        )
    test_sessions = len(test)
    # Items in order of appearance, and the row of each; 0: none.
    numbers = pl.Series(train.items).unique(maintain_order=True).to_numpy()
    row = np.zeros(len(raw_items), np.int32)
    row[numbers] = np.arange(1, len(numbers) + 1)
    train, test = (Sessions(row[part.items], part.offsets) for part in (train, test))
    test, _ = test.keep(test.items > 0, min_session_length)
    train = _last_examples(train, train_fraction)
    if not len(train) or not len(test):
        raise UserError(
            f"{len(train)} sessions are left to train on and {len(test)} to test on, "
            "after config.train_fraction and without test clicks on unknown items"
        )
    vocabulary = Vocabulary(raw_items.gather(numbers).to_list())
    counts = count({"train": train, "test": test}, vocabulary)
    # As published: before those without a known item are dropped.
    counts |= {"test_sessions": test_sessions, "raw_clicks": len(clicks)}
    counts["edge_sessions"] = int((~is_train & ~is_test).sum())
    return Dataset({"train": train, "test": test}, vocabulary, counts)


def _filter(
    clicks: pl.DataFrame, least: int, least_of_item: int, date_resolution_seconds: int
) -> tuple[Sessions, Int[np.ndarray, " S"], pl.Series]:
    """Applies rules 1 and 2.

    Returns the sessions that are left, of items by number, not by row; their dates; and
    the raw id of every number.
    """
    everything, session, raw_items = group_by_session(clicks, clicks["time"].to_numpy())
    # The last assignment to an index wins: that of the last click in the file.
    date = np.zeros(len(everything), np.int64)
    date[session] = clicks["date" if "date" in clicks.columns else "time"].to_numpy()
    if date_resolution_seconds:
        date -= date % (date_resolution_seconds * SECOND)
    long, is_long = everything.keep(np.ones(len(clicks), bool), least)
    often = np.bincount(long.items, minlength=len(raw_items)) >= least_of_item
    kept, is_kept = long.keep(often[long.items], least)
    if not len(kept):
        raise UserError(
            f"no clicks are left of {len(clicks)} after dropping sessions of fewer "
            f"than {least} clicks and items of fewer than {least_of_item}; lower "
            "config.min_session_length or config.min_item_count"
        )
    return kept, date[is_long][is_kept], raw_items


def group_by_session(
    clicks: pl.DataFrame, time: np.ndarray
) -> tuple[Sessions, Int[np.ndarray, " C"], pl.Series]:
    """Joins the clicks of each session, sorted by `time` [C] (stable).

    Returns the sessions, of items by number, not by row; the number of each click's
    session, in file order; and the raw id of every item number. All are numbered from 0
    by first appearance.
    """
    session, _ = _number(clicks["session"])
    item, raw_items = _number(clicks["item"])
    # In many logs they are in order, which takes less time to tell than to bring about.
    same = session[1:] == session[:-1]
    if not ((session[1:] > session[:-1]) | (same & (time[1:] >= time[:-1]))).all():
        item = item[np.lexsort((time, session))]
    return Sessions.from_lengths(item, np.bincount(session)), session, raw_items


def _number(column: pl.Series) -> tuple[Int[np.ndarray, " C"], pl.Series]:
    """Numbers the distinct values, in int32, and returns them in that order."""
    distinct = column.unique(maintain_order=True)
    number = column.cast(pl.Enum(distinct)).to_physical()
    return number.cast(pl.Int32).to_numpy(), distinct


def _last_examples(train: Sessions, fraction: float) -> Sessions:
    """Applies rule 6."""
    if fraction == 1:
        return train
    examples = train.lengths - 1
    wanted = int(examples.sum() * fraction)
    from_end = np.cumsum(examples[::-1])[::-1]
    whole = int((from_end > wanted).sum())
    missing = wanted - (from_end[whole] if whole < len(train) else 0)
    last = train.take(np.arange(whole, len(train)))
    border = train[whole - 1][: missing + 1] if missing else train.items[:0]
    lengths = np.append(len(border), last.lengths)[not missing :]
    return Sessions.from_lengths(np.append(border, last.items), lengths)
