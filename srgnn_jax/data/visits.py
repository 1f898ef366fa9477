"""Groups clicks by session, sorts them by time, and cuts them into visits.

Axes: C clicks, S sessions.
"""

import logging
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int

from srgnn_jax.data.sessions import Sessions
from srgnn_jax.data.times import DAY
from srgnn_jax.errors import UserError

SECOND = 1_000_000
# A session of more days, from its first click to its last, is not a single visit.
LONGEST_VISIT = 7
# Share of clicks that may have the item and time of the click before.
MOST_DOUBLED = 0.05

log = logging.getLogger(__name__)


class Visits(NamedTuple):
    """Sessions whose items are numbered from 0, in no particular order."""

    sessions: Sessions
    raw_items: pl.Series  # the raw id of every item number
    ids: pl.Series  # [S], raw; visits cut from one session have the same id
    dates: Int[np.ndarray, " S"]  # of the latest click, in microseconds
    counts: dict[str, int]  # of what was dropped

    def last_of_each_id(self) -> Int[np.ndarray, " I"]:
        """Returns the number of each id's last session; an id's visits are adjacent."""
        return np.flatnonzero((self.ids != self.ids.shift(-1)).fill_null(True))


def gather_visits(
    clicks: pl.DataFrame,
    *,
    session_gap_minutes: float | int = 0.0,
    session_by_day: bool = False,
    collapse_repeats: bool = False,
    max_session_clicks: int = 0,
) -> Visits:
    """Groups clicks by session and sorts them by time, whatever the order of rows.

    Args:
      clicks: see `read.read_clicks`. At equal times the lower item id is first.
      session_gap_minutes: a longer pause starts a new session; 0: no pause does.
      session_by_day: a new day, in UTC, starts a new session.
      collapse_repeats: of consecutive clicks on one item, only the first is kept.
      max_session_clicks: longer sessions, as of robots, are dropped; 0: none are.

    Raises:
      UserError: there is a gap, but the times are numbers that only order the clicks.
    """
    time = clicks["time"].to_numpy()
    session, ids = number(clicks["session"])
    item, raw_items = number(clicks["item"])
    arrays = [session, item, time]
    if "date" in clicks.columns:
        arrays.append(clicks["date"].to_numpy())
    rank = raw_items.rank("ordinal").cast(pl.Int32).to_numpy()
    only_orders = time.dtype == np.float64
    if session_gap_minutes and only_orders:
        raise UserError(
            "config.session_gap_minutes needs the time of each click, but the time "
            "column holds numbers that only order them; set config.session_by_day, or "
            "name a column of times with config.time_column"
        )
    # A number that orders the clicks of a day may start again on the next one.
    days = [arrays[-1] // DAY] if session_by_day and only_orders else []
    order = _order(session, *days, time, rank[item])
    if order is not None:
        arrays = [array[order] for array in arrays]
    session, item, time, date = *arrays[:3], arrays[-1]
    is_start = np.append(True, session[1:] != session[:-1])
    _warn_of_times(session, item, time)
    if session_gap_minutes:
        is_start[1:] |= np.diff(time) > session_gap_minutes * 60 * SECOND
    if session_by_day:
        day = (date if only_orders else time) // DAY
        is_start[1:] |= day[1:] != day[:-1]
    counts = {}
    if collapse_repeats:
        is_kept = is_start.copy()
        is_kept[1:] |= item[1:] != item[:-1]
        counts["repeated_clicks"] = int((~is_kept).sum())
        session, item, is_start = session[is_kept], item[is_kept], is_start[is_kept]
        time, date = time[is_kept], date[is_kept]
    starts = np.flatnonzero(is_start)
    sessions = Sessions(item, np.append(starts, len(item)))
    dates = np.maximum.reduceat(date, starts)
    spans = dates - np.minimum.reduceat(date, starts)
    _warn_of_spans(spans, ids, session[starts])
    owners = session[starts]
    if max_session_clicks:
        few = sessions.lengths <= max_session_clicks
        counts["long_sessions"] = int((~few).sum())
        kept = np.flatnonzero(few)
        sessions, owners, dates = sessions.take(kept), owners[kept], dates[kept]
    return Visits(sessions, raw_items, ids.gather(owners), dates, counts)


def _warn_of_times(session: np.ndarray, item: np.ndarray, time: np.ndarray) -> None:
    same = session[1:] == session[:-1]
    if same.any() and not (time % DAY).any():
        log.warning(
            "all times are whole days: a session's clicks of one day are in order of "
            "their item ids; if another column holds the time, or the order, name it "
            "with --config.time_column"
        )
    doubled = same & (item[1:] == item[:-1]) & (time[1:] == time[:-1])
    if doubled.sum() > MOST_DOUBLED * len(item):
        log.warning(
            "%s of %s clicks have the same item and time as the click before: if rows "
            "are duplicated, --config.collapse_repeats=True counts them once",
            *(f"{doubled.sum():,}", f"{len(item):,}"),
        )


def _warn_of_spans(spans: np.ndarray, ids: pl.Series, owners: np.ndarray) -> None:
    long = spans > LONGEST_VISIT * DAY
    if long.any():
        longest = int(spans.argmax())
        log.warning(
            "%s of %s sessions span more than %s days (%r: %s days): if these are "
            "visitors, --config.session_gap_minutes=30 cuts their clicks into visits",
            *(f"{long.sum():,}", f"{len(spans):,}", LONGEST_VISIT),
            *(str(ids[int(owners[longest])]), f"{spans[longest] / DAY:,.0f}"),
        )


def _order(*keys: np.ndarray) -> np.ndarray | None:
    """Returns the order by keys, most significant first; None if already in order."""
    *before, last = keys
    later = last[1:] >= last[:-1]
    for key in reversed(before):
        later = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & later)
    # Many logs are in order already, and checking is faster than sorting.
    return None if later.all() else np.lexsort(keys[::-1])


def group_by_session(
    clicks: pl.DataFrame, time: np.ndarray
) -> tuple[Sessions, Int[np.ndarray, " C"], pl.Series]:
    """Groups clicks by session, sorted by `time` [C], ties in file order.

    Returns the sessions, of item numbers, not rows; the number of each click's session,
    in file order; and the raw id of every item number. All numbers are from 0 on, by
    first appearance.
    """
    session, _ = number(clicks["session"])
    item, raw_items = number(clicks["item"])
    order = _order(session, time)
    grouped = item if order is None else item[order]
    return Sessions.from_lengths(grouped, np.bincount(session)), session, raw_items


def number(column: pl.Series) -> tuple[Int[np.ndarray, " C"], pl.Series]:
    """Returns each value's number (int32), and the distinct values in that order."""
    distinct = column.unique(maintain_order=True)
    if column.dtype == pl.String:
        numbers = column.cast(pl.Enum(distinct)).to_physical()
        return numbers.cast(pl.Int32).to_numpy(), distinct
    values = column.to_numpy()
    least, most = int(values.min()), int(values.max())
    places = np.arange(len(distinct), dtype=np.int32)
    if most - least < 4 * len(values) + 1024:
        number_of = np.zeros(most - least + 1, np.int32)
        number_of[distinct.to_numpy() - least] = places
        return number_of[values - least], distinct
    order = distinct.arg_sort().to_numpy()
    found = np.searchsorted(distinct.to_numpy()[order], values)
    return places[order][found], distinct
