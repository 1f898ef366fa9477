"""Turns clicks into sessions to train and test on: filters, splits, numbers items.

The rules are those of the published preprocessing and reproduce its counts; each is an
argument. Axes: C clicks, S sessions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from srgnn_jax.data.counts import count
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.times import DAY, written
from srgnn_jax.data.visits import SECOND, Visits, gather_visits, group_by_session
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
    train_days: float | int = 0.0,
    train_fraction: float = 1.0,
    date_resolution_seconds: int = 0,
    **visits: Any,
) -> Dataset:
    """Filters sessions and items, splits the sessions by date, and numbers the items.

    1. Clicks (see `read.read_clicks`) are sorted by time, ties by item id. A session's
       date is that of its latest click, rounded down to `date_resolution_seconds`
       unless 0. As published, ties are in file order, and the date is that of the
       session's last row. `visits`: see `visits.gather_visits`; ignored as published.
    2. Sessions with too few clicks are dropped, then items with too few clicks, then
       sessions that have too few left.
    3. With T the latest date, sessions dated after T - `test_days` (of 24 hours) are
       for test, the others for training; as published, those exactly on the edge are in
       neither. With `test_start`, sessions before it are for training, the others
       before `test_end` for test. Dates are in microseconds. If `test_days` is 0, not
       as published, all are for training. Only the last `train_days` of training are
       kept, unless 0.
    4. Sessions are ordered by date, then by id; as published, by first appearance in
       the file instead of id.
    5. Items are numbered from 1 by first appearance in training. Test clicks on other
       items are dropped, and then test sessions that are too short.
    6. The last `train_fraction` of the training examples is kept; a session on the
       border keeps its shortest ones, as the published code lists the longest first.

    Raises UserError if a split is empty, or `test_end` is not after `test_start`.
    """
    if test_end is not None and (test_start is None or test_end <= test_start):
        raise UserError("config.test_end needs a config.test_start before it")
    gathered = (
        _as_published(clicks) if as_published else gather_visits(clicks, **visits)
    )
    if date_resolution_seconds:
        rest = gathered.dates % (date_resolution_seconds * SECOND)
        gathered = gathered._replace(dates=gathered.dates - rest)
    kept, date, dropped = _filter(
        gathered, min_session_length, min_item_count, len(clicks)
    )
    is_train, is_test, is_older, rule = _by_time(
        date, as_published, test_days, test_start, test_end, train_days
    )
    train, test = (kept.take(np.flatnonzero(x)) for x in (is_train, is_test))
    for_test = bool(test_days) or as_published or test_start is not None
    _check_split(train, test, date, for_test)
    both = {"train": train, "test": test}
    raw = dict.fromkeys(both, gathered.raw_items)
    splits, vocabulary = _number(both, raw, min_session_length)
    splits["train"] = _last_examples(splits["train"], train_fraction)
    _check_left(splits, for_test)
    counts = count(splits, vocabulary) | gathered.counts
    # As published: before sessions without known items are dropped.
    counts |= {"test_sessions": len(test), "raw_clicks": len(clicks)}
    counts["edge_sessions"] = int((~is_train & ~is_test & ~is_older).sum())
    if train_days:
        counts["older_sessions"] = int(is_older.sum())
    unknown = len(test.items) - len(splits["test"].items)
    begins, *lost = _about_test(date[is_test], rule, unknown)
    notes = [_span(clicks), begins, *dropped, *lost]
    return Dataset(splits, vocabulary, counts, notes=notes)


def _about_test(date: Int[np.ndarray, " S"], rule: str, unknown: int) -> list[str]:
    """Returns notes on where test begins, given its dates, and what it loses."""
    if not len(date):
        return ["nothing is kept for test: config.test_days is 0"]
    return [
        f"test begins with the session of {written(date.min())}: {rule}",
        f"{unknown:,} test clicks dropped: on items that training lacks, or in "
        "sessions then too short",
    ]


def _by_time(
    date: Int[np.ndarray, " S"],
    as_published: bool,
    test_days: float | int,
    test_start: int | None,
    test_end: int | None,
    train_days: float | int,
) -> tuple[Bool[np.ndarray, " S"], Bool[np.ndarray, " S"], Bool[np.ndarray, " S"], str]:
    """Applies rule 3: masks of training, test and old sessions, and the rule's name."""
    # Training ends before `end`, and test begins at `start`.
    if test_start is None:
        edge = date.max() - round(min(test_days, 1e6) * DAY)
        start, end = edge + 1, edge if as_published else edge + 1
        days = "day" if test_days == 1 else "days"
        rule = f"the last {test_days:g} {days} (config.test_days)"
    else:
        start = end = test_start
        rule = "config.test_start"
    # With no window, or a huge one, no session is older.
    is_older = date < end - round(min(train_days or 1e6, 1e6) * DAY)
    is_test = (date >= start) & (date < (np.inf if test_end is None else test_end))
    return (date < end) & ~is_older, is_test, is_older, rule


def _span(clicks: pl.DataFrame) -> str:
    time = clicks["date" if "date" in clicks.columns else "time"].to_numpy()
    first, last = (written(when) for when in (time.min(), time.max()))
    return f"{len(clicks):,} clicks from {first} to {last}, UTC"


def _check_split(
    train: Sessions, test: Sessions, date: Int[np.ndarray, " S"], for_test: bool
) -> None:
    if not len(train) or (for_test and not len(test)):
        first, last = (written(when) for when in (date.min(), date.max()))
        raise UserError(
            f"the split by time leaves {len(train)} sessions to train on and "
            f"{len(test)} to test on, of {len(date)} from {first} to {last}; "
            "set config.test_days, or config.test_start and config.test_end"
        )


def _check_left(splits: Mapping[str, Sessions], for_test: bool) -> None:
    if not len(splits["train"]) or (for_test and not len(splits["test"])):
        raise UserError(
            f"{len(splits['train'])} sessions are left to train on and "
            f"{len(splits['test'])} to test on, after config.train_fraction and "
            "without test clicks on unknown items"
        )


def prepare_splits(
    clicks: Mapping[str, pl.DataFrame], min_session_length: int = 2, **visits: Any
) -> Dataset:
    """Numbers the items of ready-made splits.

    `clicks` has those of train, test and, if there is one, validation. Clicks and
    sessions are ordered, and items numbered, as in `prepare`. Only short sessions and
    clicks on items that train lacks are dropped.
    """
    gathered = {split: gather_visits(of, **visits) for split, of in clicks.items()}
    kept = {
        split: _filter(of, min_session_length, 1, len(clicks[split]))[0]
        for split, of in gathered.items()
    }
    raw = {split: of.raw_items for split, of in gathered.items()}
    splits, vocabulary = _number(kept, raw, min_session_length)
    for split, sessions in splits.items():
        if not len(sessions):
            raise UserError(
                f"no session is left in the {split} split after dropping clicks on "
                "items that train does not have"
            )
    counts = count(splits, vocabulary)
    counts["raw_clicks"] = sum(map(len, clicks.values()))
    notes = [f"{split}: {_span(of)}" for split, of in clicks.items()]
    return Dataset(splits, vocabulary, counts, notes=notes)


def _number(
    splits: Mapping[str, Sessions], raw_items: Mapping[str, pl.Series], least: int
) -> tuple[dict[str, Sessions], Vocabulary]:
    """Applies rule 5 to sessions of item numbers; `raw_items` holds their raw ids."""
    numbers = pl.Series(splits["train"].items).unique(maintain_order=True)
    ids = {split: raw.cast(pl.String) for split, raw in raw_items.items()}
    vocabulary = Vocabulary(ids["train"].gather(numbers).to_list())
    numbered = {}
    for split, sessions in splits.items():
        rows = vocabulary.rows(ids[split].to_list()).astype(np.int32)
        known = Sessions(rows[sessions.items], sessions.offsets)
        numbered[split], _ = known.keep(known.items > 0, least)
    return numbered, vocabulary


def _as_published(clicks: pl.DataFrame) -> Visits:
    """Groups clicks as the published code does: by time, ties in file order."""
    sessions, session, raw_items = group_by_session(clicks, clicks["time"].to_numpy())
    # The last assignment to an index wins: that of the last click in the file.
    dates = np.zeros(len(sessions), np.int64)
    dates[session] = clicks["date" if "date" in clicks.columns else "time"].to_numpy()
    # Sessions are numbered by first appearance.
    return Visits(
        sessions, raw_items, pl.Series(np.arange(len(sessions))), dates, counts={}
    )


def _filter(
    visits: Visits, least: int, least_of_item: int, clicks: int
) -> tuple[Sessions, Int[np.ndarray, " S"], list[str]]:
    """Applies rules 2 and 4.

    Returns sessions of item numbers, in order; their dates; and what was dropped.
    """
    everything = visits.sessions
    long, is_long = everything.keep(np.ones(len(everything.items), bool), least)
    clicked = np.bincount(long.items, minlength=len(visits.raw_items))
    often = clicked >= least_of_item
    kept, is_kept = long.keep(often[long.items], least)
    if not len(kept):
        raise UserError(
            f"no clicks are left of {clicks} after dropping sessions of fewer "
            f"than {least} clicks and items of fewer than {least_of_item}; lower "
            "config.min_session_length or config.min_item_count"
        )
    left = np.flatnonzero(is_long)[is_kept]
    dates = visits.dates[left]
    ids = visits.ids.gather(left)
    key = ids if ids.dtype.is_integer() else ids.rank("ordinal")
    order = np.lexsort((key.to_numpy(), dates))
    rare = clicked[~often & (clicked > 0)]
    dropped = [
        f"{(~is_long).sum():,} of {len(everything):,} sessions dropped: fewer than "
        f"{least} clicks",
        f"{len(rare):,} items dropped: fewer than {least_of_item} clicks; with them "
        f"{rare.sum():,} clicks, and {(~is_kept).sum():,} sessions then too short",
    ]
    return kept.take(order), dates[order], dropped


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
