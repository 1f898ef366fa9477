"""Times of clicks, as text, numbers or dates -> microseconds since 1970, in UTC."""

import re

import numpy as np
import polars as pl

# Years 1970 to 2261 are believed.
LATEST_MICROSECONDS = 9_183_110_400_000_000
_NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
# Read alike by Python and by polars.
_ISO = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:(?P<hour>[T ][0-9]{2}:[0-9]{2})"
    r"(?:(?P<second>:[0-9]{2})(?P<fraction>[.,][0-9]{1,9})?)?)?"
    r"(?P<zone>[ \t]{0,9}(?:Z|UTC|(?P<offset>[+-][0-9]{2}:?(?:[0-9]{2})?))?)"
)


def parse_iso(column: pl.Series) -> pl.Series:
    """Parses ISO times, with or without fraction and offset, and plain dates.

    Returns int64 microseconds since 1970, UTC; null where a value is no such time.
    """
    micro, left = np.full(len(column), -1), np.arange(len(column))
    while len(left):
        values = column[left]
        # As a rule, all values are written like the first.
        layout = re.fullmatch(_ISO, values[0] or "")
        alike = re.sub("[0-9]", "[0-9]", re.escape(layout[0])) if layout else _ISO
        done = values.str.contains(f"^{alike}$").fill_null(False)
        if layout:
            micro[left[done]] = _parse_layout(values.filter(done), layout)
        else:
            done = ~done
        left = left[~done.to_numpy()]
    return _in_range(pl.Series(column.name, micro))


def _parse_layout(values: pl.Series, layout: re.Match) -> np.ndarray:
    """Returns microseconds since 1970, -1 where there is no such day or hour."""
    hour, second, fraction, zone, offset = layout.groups()
    if offset and not hour:
        values = values.str.slice(0, 10) + "T00:00" + values.str.slice(10)
        hour = "T"
    form = "%Y-%m-%d" + (f"{hour[0]}%H:%M" if hour else "") + (":%S" if second else "")
    if fraction:
        values = values.str.replace(",", ".", literal=True)
        form += "%.f"
    form += zone.replace(offset, "%#z") if offset else zone
    moment = values.str.to_datetime(form, time_unit="us", strict=False, cache=False)
    return moment.to_physical().fill_null(-1).to_numpy()


class TimeParser:
    """Parses a column of times chunk by chunk, in the form that its first values tell.

    With `any_number`, numbers are no times and stay as they are.
    """

    def __init__(self, any_number: bool = False):
        self._any_number = any_number
        self._form = ""  # "iso", "s" or "ms", once told

    def __call__(self, column: pl.Series) -> pl.Series:
        """Returns int64 microseconds since 1970, null where a value is not a time."""
        if column.dtype in (pl.Date, pl.Datetime):
            # What polars stores is in UTC, whatever the zone.
            return _in_range(column.cast(pl.Datetime("us")).to_physical())
        if not column.dtype.is_numeric():
            column = column.cast(pl.String).str.strip_chars()
            if not self._form:
                given = column.filter(column.is_not_null() & (column != "")).head(1000)
                is_number = given.str.contains(_NUMBER)
                self._form = "iso" if 2 * is_number.sum() < len(given) else ""
            if self._form == "iso":
                return parse_iso(column)
        number = column.cast(pl.Float64, strict=False)
        if self._any_number:
            return number.set(~number.is_finite(), None)
        believed = (number >= 0) & (number * 1e3 < LATEST_MICROSECONDS)
        if not self._form and believed.any():
            # Seconds reach 1e11 in the year 5138; milliseconds reached it in 1973.
            first = number.filter(believed).head(1000).to_numpy()
            self._form = "ms" if np.median(first) >= 1e11 else "s"
        return _in_range((number * (1e3 if self._form == "ms" else 1e6)).round())


def _in_range(micro: pl.Series) -> pl.Series:
    """Casts to int64, null where a time cannot be believed."""
    believed = (micro >= 0) & (micro < LATEST_MICROSECONDS)
    return micro.set(~believed, None).cast(pl.Int64)
