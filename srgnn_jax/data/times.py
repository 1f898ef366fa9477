"""Times of clicks, as text, numbers or dates -> microseconds since 1970, in UTC."""

import contextlib
import datetime
import logging
import re
import time as clock

import numpy as np
import polars as pl

from srgnn_jax.errors import UserError

log = logging.getLogger(__name__)

# Times in the years 1970 to 2261 are accepted.
LATEST_MICROSECONDS = 9_183_110_400_000_000
DAY = 86_400_000_000
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Numbers are in the unit that puts them in the years 1990 to 2099.
_LIKELY = (7_305 * DAY, 47_482 * DAY)
# Units of numbers: name, microseconds per unit, and the time of 0 (microseconds).
UNITS: dict[str, tuple[str, float, int]] = {
    "s": ("seconds", 1e6, 0),
    "ms": ("milliseconds", 1e3, 0),
    "us": ("microseconds", 1, 0),
    "ns": ("nanoseconds", 1e-3, 0),
    "days": ("days of a spreadsheet", DAY, -25_569 * DAY),
}
_CALLED = {unit: called for unit, (called, _, _) in UNITS.items()}
_CALLED["date"] = "dates such as 20240301"
_SINCE_1970 = ("s", "ms", "us", "ns")
# Dates as whole numbers, such as 20240301, by number of digits.
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
TIME_UNITS = ("", *UNITS, "date", "any")
# Common formats that are only read if they are named.
_DATES = (
    *("%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%Y%m%d"),
    *("%b %d, %Y", "%d %b %Y", "%d/%b/%Y", "%Y-%m-%d", "%d/%m/%y", "%m/%d/%y"),
    *("%d.%m.%y", "%b %d %Y", "%d-%b-%Y", "%a, %d %b %Y"),
)
_CLOCKS = ("%H:%M", "%H:%M:%S", "%I:%M:%S %p", "%I:%M %p", "%H:%M:%S %z")
_TIMES = ("", *(f"{before}{t}" for before in (" ", "T", ":", ", ") for t in _CLOCKS))
_TIMES += ("T%H%M%S", "T%H%M%SZ", " %H:%M:%S.%f", " %H:%M:%S GMT")
_TIMES += (" %H:%M:%S +0000 UTC", "T%H:%M:%SZ[UTC]")
# The year after the time, as in tweets and check-ins.
_OTHERS = (
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S UTC %Y",
)
_NUMBER = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
# Seconds or milliseconds that a spreadsheet has rounded: 1.70928E+12.
_ROUNDED = r"^\d(\.\d{0,7})?[eE]\+\d{2}$"
_CLOCK = r"^\d{1,2}:\d{2}(:\d{2}([.,]\d{1,9})?)?$"
# Python and polars read these alike.
_ISO = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:(?P<hour>[T ][0-9]{2}:[0-9]{2})"
    r"(?:(?P<second>:[0-9]{2})(?P<fraction>[.,][0-9]{1,9})?)?)?"
    r"(?P<zone>[ \t]{0,9}(?:Z|UTC|(?P<offset>[+-][0-9]{2}:?(?:[0-9]{2})?))?)"
)


def looks_like_number(text: str) -> bool:
    """Whether a text is a number, as times since 1970 are."""
    return re.match(_NUMBER, text.strip()) is not None


def looks_like_time(text: str) -> bool:
    """Whether text may be a time, in a form that need not be named."""
    return looks_like_number(text) or re.fullmatch(_ISO, text.strip()) is not None


def is_date(text: str) -> bool:
    """Whether text is a time, but not a number."""
    return bool(re.fullmatch(_ISO, text.strip()) or forms_of(text))


def looks_recent(text: str) -> bool:
    """Whether a text is a number that, in some unit, is a time from 1990 to 2099."""
    if not looks_like_number(text):
        return False
    number = pl.Series([float(text)])
    # Whole numbers of days are too small to tell from ids.
    units = (*_SINCE_1970, "date", *["days"] * (float(text) % 1 > 0))
    return any(_is_likely(_scaled(number, unit))[0] for unit in units)


def forms_of(text: str) -> list[str]:
    """Returns the common formats, as for `datetime.strptime`, that can read a text."""
    if len(re.findall(r"\d+", text)) < 2:
        return []
    found = []
    for form in (*(date + time for date in _DATES for time in _TIMES), *_OTHERS):
        with contextlib.suppress(ValueError):
            datetime.datetime.strptime(text.strip(), form)
            found.append(form)
    return found


def parse_iso(column: pl.Series) -> pl.Series:
    """Parses ISO times, with or without fraction and offset, and plain dates.

    Returns int64 microseconds since 1970, UTC; null if a value is not such a time.
    """
    micro, left = np.full(len(column), -1), np.arange(len(column))
    while len(left):
        values = column[left]
        # Usually all values are written like the first.
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
    """Returns microseconds since 1970; -1 if a day or hour does not exist."""
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


def parse_form(column: pl.Series, form: str) -> pl.Series:
    """Parses times as `datetime.strptime` does; without a zone they are in UTC.

    Returns int64 microseconds since 1970, UTC; null where a value has another form.
    """
    # Python reads the names of local zones as well, and drops them.
    forms = dict.fromkeys(form.replace("%Z", zone) for zone in ("UTC", "GMT"))
    micro = pl.Series(column.name, [None] * len(column), pl.Int64)
    for one in forms:
        fast = one.replace("%S.%f", "%S%.f")
        # Elsewhere, "%f" counts nanoseconds in polars.
        if "%f" not in fast:
            with contextlib.suppress(pl.exceptions.ComputeError):
                moment = column.str.to_datetime(
                    fast, time_unit="us", strict=False, ambiguous="earliest"
                )
                micro = micro.zip_with(micro.is_not_null(), moment.to_physical())
    for one in forms:
        # polars reads less than Python: no Z for a zone, no wrong day of the week.
        left = (micro.is_null() & column.is_not_null()).arg_true()
        micro = micro.scatter(left, [_strptime(text, one) for text in column[left]])
    return _in_range(micro)


def _strptime(text: str, form: str) -> int | None:
    try:
        moment = datetime.datetime.strptime(text, form)
    except (ValueError, re.error):  # The latter for "%d/%d/%Y".
        return None
    since = moment.replace(tzinfo=moment.tzinfo or datetime.UTC) - EPOCH
    return since // datetime.timedelta(microseconds=1)


class TimeColumn:
    """Parses a column of times chunk by chunk, in the form of its first values.

    Args:
      any_number: numbers are not times and stay as they are.
      unit: one of `TIME_UNITS`; "": detected from the values, which must then agree.
      form: the format of other text, as for `datetime.strptime`.
    """

    def __init__(self, any_number: bool = False, unit: str = "", form: str = ""):
        self._any_number = any_number
        self._is_detected = not unit
        self._unit, self._form = unit, form
        self._kind = ""  # "text", "clock" or "number", once known
        self._has_warned = False  # of rounded numbers
        self._first = ""  # the place of the first number in that unit
        self._read_as = ""  # what the chunks so far were read as
        # Whether the last chunk has times of day; another column must give the day.
        self.is_clock = False

    @property
    def has_numbers(self) -> bool:
        """Whether the first values, in text, were numbers."""
        return self._kind == "number"

    def __call__(self, column: pl.Series, lines: pl.Series, where: str) -> pl.Series:
        """Parses a chunk; `where` and `lines` give the place of each value.

        Returns int64 microseconds since 1970, null if a value is not a time. Raises
        UserError if numbers in two units are mixed, or times of day with other times.
        """
        self.is_clock = column.dtype == pl.Time
        parsed = self._parse(column, lines, where)
        if parsed.count():
            kind = "numbers" if parsed.dtype == pl.Float64 else "times"
            kind = "times of day" if self.is_clock else kind
            if kind != (self._read_as or kind):
                place = int(parsed.is_not_null().to_numpy().argmax())
                raise UserError(
                    f"{where} {lines[place]}: {column[place]!r} is one of {kind}, but "
                    f"the times before are {self._read_as}; write all in one form"
                )
            self._read_as = kind
        return parsed

    def _parse(self, column: pl.Series, lines: pl.Series, where: str) -> pl.Series:
        if column.dtype in (pl.Date, pl.Datetime):
            # polars stores UTC, whatever the time zone.
            return _in_range(column.cast(pl.Datetime("us")).to_physical())
        if column.dtype == pl.Time:
            return column.to_physical() // 1000
        if self._form or not column.dtype.is_numeric():
            text = _as_text(column)
            if self._form and not self._is_for_another_column(text):
                return parse_form(text, self._form)
        if not column.dtype.is_numeric():
            column = text
            if not self._kind:
                self._kind = _kind_of(column)
            if self._kind in ("", "text"):
                return parse_iso(column)
            if self._kind == "number":
                self._warn_of_rounding(column)
            if self._kind == "clock":
                self.is_clock = True
                return parse_iso("1970-01-01T" + column.str.replace(r"^(\d):", "0$1:"))
        number = column.cast(pl.Float64, strict=False)
        number = number.set(~number.is_finite(), None)
        if column.dtype == pl.Float32 and (number.abs() >= 2**24).any():
            raise UserError(
                f"{where} {lines[0]}: times are Float32, which is not exact for whole "
                f"numbers from {2**24:,} on; write them as integers or text"
            )
        return number if self._any_number else self._scale(number, lines, where)

    def _is_for_another_column(self, text: pl.Series) -> bool:
        """Whether the form is that of the day, next to a clock or another number."""
        is_day = not re.search("%[HIcXT]", self._form)
        if not (is_day or self._any_number):
            return False
        kind = _kind_of(text)
        return (kind == "clock" and is_day) or (kind == "number" and self._any_number)

    def _warn_of_rounding(self, column: pl.Series) -> None:
        short = column.head(1000).drop_nulls()
        short = short.filter(short.str.contains(_ROUNDED))
        if len(short) > 1 and not self._has_warned:
            self._has_warned = True
            log.warning(
                "times such as %s were rounded by a spreadsheet: clicks have lost "
                "their order; export times as text",
                short[0],
            )

    def _scale(self, number: pl.Series, lines: pl.Series, where: str) -> pl.Series:
        self._unit = self._unit or unit_of(number)
        if self._unit == "any":
            micro = _scaled(number, "s")
            for unit in _SINCE_1970[1:]:
                scaled = _scaled(number, unit)
                micro = scaled.zip_with(_is_likely(scaled), micro)
            return _in_range(micro)
        if self._is_detected and number.count():
            if not self._first:
                # A number in another unit may come before it.
                own = _is_likely(_scaled(number, self._unit)).fill_null(False)
                own = own if own.any() else number.is_not_null()
                self._first = f"{where} {lines[int(own.to_numpy().argmax())]}"
            for unit in set(_SINCE_1970) - {self._unit}:
                other = _is_likely(_scaled(number, unit)).fill_null(False)
                if other.any():
                    place = int(other.to_numpy().argmax())
                    raise UserError(
                        f"{where} {lines[place]}: {number[place]:.15g} looks like a "
                        f"time in {_CALLED[unit]}, but the one in {self._first}, is "
                        f"in {_CALLED[self._unit]}; --config.time_unit=any detects the "
                        "unit of each by its size"
                    )
        return _in_range(_scaled(number, self._unit or "s"))

    def warn(self, micro: pl.Series) -> None:
        """Warns of times at which nobody can have clicked; suggests a likelier unit."""
        latest = clock.time() * 1e6 + DAY
        values = micro.to_numpy()
        first, last = int(values.min()), int(values.max())
        if first >= _LIKELY[0] and last <= latest:
            return
        said = f"times are from {written(first)[:10]} to {written(last)[:10]}"
        if self._kind == "text" or self._unit not in UNITS:
            log.warning("%s; is that right?", said)
            return
        number = pl.Series([float(np.median(micro))])
        _, scale, offset = UNITS[self._unit]
        number = (number - offset) / scale
        for unit in (*UNITS, "date"):
            meant = _scaled(number, unit)[0]
            if unit != self._unit and meant and _LIKELY[0] <= meant <= latest:
                day = written(meant)[:10]
                log.warning(
                    "%s, read as %s; read as %s, they would be around %s: if that is "
                    "right, set --config.time_unit=%s",
                    *(said, _CALLED[self._unit], _CALLED[unit], day, unit),
                )
                return
        log.warning("%s, read as %s; is that right?", said, _CALLED[self._unit])


def _as_text(column: pl.Series) -> pl.Series:
    """Returns the values as text, whole numbers as in a csv file."""
    if column.dtype.is_float():
        column = column.cast(pl.Int64, strict=False)
    return column.cast(pl.String).str.strip_chars()


def _kind_of(column: pl.Series) -> str:
    """Returns the kind of most of the first values; "" if none is a time."""
    given = column.drop_nulls()
    kinds = {"text": f"^{_ISO}$", "number": _NUMBER, "clock": _CLOCK}
    for some in (given.head(1000), given):
        found = {kind: some.str.contains(form).sum() for kind, form in kinds.items()}
        most = max(found, key=lambda kind: found[kind])
        if found[most]:
            return most
    return ""


def unit_of(number: pl.Series) -> str:
    """Returns the likeliest unit of numbers, or "date"; "" if there are no numbers."""
    number = number.drop_nulls()
    if not len(number):
        return ""
    likely = {u: _is_likely(_scaled(number, u)).sum() for u in _SINCE_1970}
    most = max(likely, key=lambda unit: likely[unit])
    if likely[most]:
        return most
    if not _scaled(number, "date").null_count():
        return "date"
    are_days = number.is_between(_LIKELY[0] / DAY + 25_569, _LIKELY[1] / DAY + 25_569)
    if are_days.all() and (number != number.floor()).any():
        return "days"
    # Seconds reach 1e11 in the year 5138; milliseconds reached it in 1973.
    thousands = int(np.log10(max(np.median(number), 1)) - 8) // 3
    return _SINCE_1970[min(max(thousands, 0), 3)]


def _scaled(number: pl.Series, unit: str) -> pl.Series:
    """Returns microseconds since 1970, float64 or int64."""
    if unit != "date":
        _, scale, offset = UNITS[unit]
        return (number * scale).round() + offset
    text = number.set(number != number.floor(), None).cast(pl.Int64, strict=False)
    text = text.cast(pl.String)
    moments = [
        text.set(text.str.len_bytes() != digits, None).str.to_datetime(
            form, time_unit="us", strict=False
        )
        for digits, form in _COMPACT.items()
    ]
    micro = pl.select(pl.coalesce(moments)).to_series().to_physical()
    return micro.set(~_is_likely(micro), None)


def _is_likely(micro: pl.Series) -> pl.Series:
    return (micro >= _LIKELY[0]) & (micro < _LIKELY[1])


def written(micro: float | int | np.integer) -> str:
    """Formats microseconds since 1970 as a date and time, to the second."""
    return str(np.datetime64(int(micro), "us"))[:19].replace("T", " ")


def _in_range(micro: pl.Series) -> pl.Series:
    """Casts to int64; times out of range become null."""
    is_in_range = (micro >= 0) & (micro < LATEST_MICROSECONDS)
    return micro.set(~is_in_range, None).cast(pl.Int64)
