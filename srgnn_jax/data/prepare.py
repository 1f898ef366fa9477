"""Clicks -> sessions to train and test on: filtered, split by time, items numbered.

The rules are those of the published preprocessing, whose counts they reproduce; each is
an argument. Axes: C clicks, S sessions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from srgnn_jax.data.counts import count
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.visits import (
    DAY,
    SECOND,
    Visits,
    gather_visits,
    group_by_session,
    sort_key,
)
from srgnn_jax.errors import UserError


def prepare(
    clicks: pl.DataFrame,
    *,
    as_published: bool = True,
    min_session_length: int = 2,
    min_item_count: int = 5,
    test_days: float = 1.0,
    test_start: int | None = None,
    test_end: int | None = None,
    train_fraction: float = 1.0,
    date_resolution_seconds: int = 0,
    **visits: Any,
) -> Dataset:
    """Filters sessions and items, splits the sessions by date, and numbers the items.

    1. Clicks (see `read.read_clicks`) are sorted by time, ties by item id; a session's
       date is that of its latest click, rounded down to `date_resolution_seconds`
       unless 0. As published, ties stay as they are in the file, and the date is that
       of the last click there. `visits`: see `visits.gather_visits`; not as published.
    2. Sessions with too few clicks are dropped, then items with too few clicks, then
       sessions that have too few left.
    3. With T the latest date, a session tests if its date > T - `test_days` (of 24
       hours), else it trains; as published, those exactly on the edge do neither. With
       `test_start`, sessions before it train, the others before `test_end` test. Dates
       are in microseconds.
    4. Sessions are ordered by date, then by id, as published by first appearance in the
       file.
    5. Items are numbered from 1 by first appearance in training. Test clicks on other
       items are dropped, and test sessions then too short.
    6. The last `train_fraction` of the training examples is kept; a session on the
       border keeps its shortest, as the published code lists them longest first.

    Raises UserError if a split is empty, or `test_end` is not after `test_start`.
    """
    if test_end is not None and (test_start is None or test_end <= test_start):
        raise UserError("config.test_end needs a config.test_start before it")
    gathered = _gather(clicks, as_published, date_resolution_seconds, visits)
    kept, date, keys = _filter(
        gathered, min_session_length, min_item_count, len(clicks)
    )
    raw_items = gathered.raw_items.cast(pl.String)
    is_train, is_test = _split(date, as_published, test_days, test_start, test_end)
    order = np.lexsort((keys, date))
    train, test = (kept.take(order[part[order]]) for part in (is_train, is_test))
    if not len(train) or not len(test):
        first, last = np.array([date.min(), date.max()], "datetime64[us]").astype(str)
        raise UserError(
            f"the split by time leaves {len(train)} sessions to train on and "
            f"{len(test)} to test on, of {len(kept)} from {first[:19]} to {last[:19]}; "
            "set config.test_days, or config.test_start and config.test_end"
        )
    test_sessions = len(test)
    numbers, train, test = _number_items(train, test)
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
    counts |= gathered.counts
    return Dataset({"train": train, "test": test}, vocabulary, counts)


def _gather(
    clicks: pl.DataFrame,
    as_published: bool,
    date_resolution_seconds: int,
    visits: Mapping[str, Any],
) -> Visits:
    """Applies rule 1."""
    gathered = (
        _as_published(clicks) if as_published else gather_visits(clicks, **visits)
    )
    if not date_resolution_seconds:
        return gathered
    dates = gathered.dates
    return gathered._replace(dates=dates - dates % (date_resolution_seconds * SECOND))


def _split(
    date: Int[np.ndarray, " S"],
    as_published: bool,
    test_days: float,
    test_start: int | None,
    test_end: int | None,
) -> tuple[Bool[np.ndarray, " S"], Bool[np.ndarray, " S"]]:
    """Applies rule 3: returns which sessions train, and which test."""
    if test_start is not None:
        is_train = date < test_start
        return is_train, ~is_train & (date < (np.inf if test_end is None else test_end))
    # A span that is longer than all of time leaves nothing before it.
    edge = date.max() - round(min(test_days, 1e6) * DAY)
    is_test = date > edge
    return date < edge if as_published else ~is_test, is_test


def _number_items(
    train: Sessions, test: Sessions
) -> tuple[np.ndarray, Sessions, Sessions]:
    """Applies rule 5: returns the items in order of appearance, and their rows.

    Items that train does not have get row 0.
    """
    items = pl.Series(train.items).unique(maintain_order=True).to_numpy()
    most = max(train.items.max(), test.items.max())
    row = np.zeros(most + 1, np.int32)
    row[items] = np.arange(1, len(items) + 1)
    train, test = (Sessions(row[part.items], part.offsets) for part in (train, test))
    return items, train, test


def prepare_splits(
    clicks: Mapping[str, pl.DataFrame], min_session_length: int = 2, **visits: Any
) -> Dataset:
    """Numbers the items of splits that are ready-made; nothing else is filtered.

    `clicks` are those of train, test and, where there is one, validation. Clicks and
    sessions are put in order, and items numbered, as `prepare` does it.
    """
    splits, raw = {}, {}
    for split, those in clicks.items():
        gathered = gather_visits(those, **visits)
        kept, date, keys = _filter(gathered, min_session_length, 1, len(those))
        splits[split] = kept.take(np.lexsort((keys, date)))
        raw[split] = gathered.raw_items.cast(pl.String).to_list()
    numbers = pl.Series(splits["train"].items).unique(maintain_order=True)
    vocabulary = Vocabulary([raw["train"][number] for number in numbers])
    for split, sessions in splits.items():
        row = vocabulary.rows(raw[split]).astype(np.int32)
        known = Sessions(row[sessions.items], sessions.offsets)
        splits[split], _ = known.keep(known.items > 0, min_session_length)
        if not len(splits[split]):
            raise UserError(
                f"no session is left in the {split} split, without clicks on items "
                "that train does not have"
            )
    counts = count(splits, vocabulary)
    counts["raw_clicks"] = sum(map(len, clicks.values()))
    return Dataset(splits, vocabulary, counts)


def _as_published(clicks: pl.DataFrame) -> Visits:
    """Joins clicks as the published code does: by time, ties as in the file."""
    sessions, session, raw_items = group_by_session(clicks, clicks["time"].to_numpy())
    # The last assignment to an index wins: that of the last click in the file.
    dates = np.zeros(len(sessions), np.int64)
    dates[session] = clicks["date" if "date" in clicks.columns else "time"].to_numpy()
    # By first appearance.
    return Visits(
        sessions, raw_items, pl.Series(np.arange(len(sessions))), dates, counts={}
    )


def _filter(
    visits: Visits, least: int, least_of_item: int, clicks: int
) -> tuple[Sessions, Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Applies rule 2.

    Returns the sessions that are left, of items by number, not by row; their dates; and
    what sessions of one date are ordered by.
    """
    everything = visits.sessions
    long, is_long = everything.keep(np.ones(len(everything.items), bool), least)
    often = np.bincount(long.items, minlength=len(visits.raw_items)) >= least_of_item
    kept, is_kept = long.keep(often[long.items], least)
    if not len(kept):
        raise UserError(
            f"no clicks are left of {clicks} after dropping sessions of fewer "
            f"than {least} clicks and items of fewer than {least_of_item}; lower "
            "config.min_session_length or config.min_item_count"
        )
    left = np.flatnonzero(is_long)[is_kept]
    return kept, visits.dates[left], sort_key(visits.ids.gather(left))


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
