"""Synthetic clicks, the data set that they give, and files of them in random forms.

The expected data set is computed here from the clicks, in plain Python.
"""

import bz2
import csv
import dataclasses
import datetime
import decimal
import gzip
import io
import itertools
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_709_251_200 * SECOND  # 2024-03-01
EPOCH = datetime.datetime(1970, 1, 1)
NOTHING = ("", "  ", "NULL", "null", "None", "NaN", "nan", "NA", "N/A", "\\N")
TITLES = {
    "none": [""],
    "plain": ["Tea", "Green tea", "12", "it's", "[1]", "a/b"],
    "accents": ["Café", "Tee für zwei", "Tea"],
    "bare": ['12" Mix', '"Heroes', '"Heroes"', 'end"', '"', '""', "plain"],
    "breaks": ["two\nlines", 'he said "no"\nand left', "a, b; c | d\te", "\n\n", "x"],
}


class Click(NamedTuple):
    """Ids, those that are whole numbers as int, and microseconds since 1970."""

    session: Any
    item: Any
    time: int
    event: str = "view"


@dataclasses.dataclass
class Log:
    """Files of clicks, the settings to read them with, and the expected clicks."""

    clicks: list[Click]
    said: str  # the form, in words
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    frame: pl.DataFrame | None = None  # instead of files
    columns: dict[str, str] = dataclasses.field(default_factory=dict)  # of the frame
    nothing: int = 0  # rows that lack an id or a time
    chunk: int = 1 << 25  # characters to read at a time


def visits_of(clicks: Sequence[Click], settings: dict[str, Any]) -> list[list[Click]]:
    """Returns the visits, with clicks by time and item; an id's visits are in order."""
    events = settings.get("events")
    gap = settings.get("session_gap_minutes", 0) * 60 * SECOND
    chosen = [click for click in clicks if not events or click.event in events]
    visits: list[list[Click]] = []
    for click in sorted(chosen, key=lambda c: (c.session, c.time, c.item)):
        last = visits[-1][-1] if visits else None
        starts = last is None or last.session != click.session
        if last and not starts:
            starts = bool(gap) and click.time - last.time > gap
            if settings.get("session_by_day"):
                starts |= last.time // DAY != click.time // DAY
        if starts:
            visits.append([])
        visits[-1].append(click)
    if settings.get("collapse_repeats"):
        pairs = [itertools.groupby(v, key=lambda click: click.item) for v in visits]
        visits = [[next(same) for _, same in groups] for groups in pairs]
    return visits


def data_set(clicks: Sequence[Click], settings: dict[str, Any]) -> dict | None:
    """Returns the vocabulary and the splits, as raw ids; None if a split is empty."""
    least = settings.get("min_session_length", 2)
    most = settings.get("max_session_clicks") or len(clicks)
    visits = [v for v in visits_of(clicks, settings) if least <= len(v) <= most]
    times = Counter(click.item for visit in visits for click in visit)
    dated = []
    for visit in visits:
        kept = [c.item for c in visit if times[c.item] >= settings["min_item_count"]]
        if len(kept) >= least:
            dated.append((visit[-1].time, visit[0].session, list(map(str, kept))))
    dated.sort(key=lambda visit: visit[:2])
    edge = dated[-1][0] - round(settings["test_days"] * DAY) if dated else 0
    train = [items for date, _, items in dated if date <= edge]
    vocabulary = list(dict.fromkeys(item for items in train for item in items))
    test = [[i for i in items if i in vocabulary] for d, _, items in dated if d > edge]
    test = [items for items in test if len(items) >= least]
    if not train or not test:
        return None
    return {"vocabulary": vocabulary, "train": train, "test": test}


# Drawing and writing ids.


def _draw_ids(rng: np.random.Generator, kind: str, count: int) -> list:
    if kind == "whole":
        low, high = ((0, 50), (-9, 40), (10**9, 2**52), (2**60, 2**63 - 1))[
            rng.integers(4)
        ]
        ids = sorted({int(n) for n in rng.integers(low, high, 4 * count)})
        return [ids[n] for n in rng.permutation(len(ids))[:count]]
    if kind == "zeros":
        return ["007", "7", *(f"{n:04}" for n in range(count - 2))]
    pool = [
        f"{w}{n}" for n in range(count) for w in ("a", "v-", "é ", "日", "x.0", "1e")
    ]
    return [pool[n] for n in rng.permutation(len(pool))[:count]]


def _texts(rng: np.random.Generator, ids: Sequence) -> list[str]:
    """Writes ids as text, some whole numbers with a decimal point."""
    points = ("", ".0", ".00") if rng.random() < 0.4 else ("",)
    return [
        f"{i}{points[rng.integers(len(points))]}" if isinstance(i, int) else i
        for i in ids
    ]


def _id_column(rng: np.random.Generator, ids: Sequence, said: list[str]) -> pl.Series:
    """Returns ids, None if one is missing, as a column of some type."""
    given = [i for i in ids if i is not None]
    whole = all(isinstance(i, int) for i in given)
    ways = ["text", "categorical", "enum", "binary"]
    if whole:
        ways += ["int", "int", "decimal", "decimal.00"]
        small = max(map(abs, given), default=0)
        ways += ["float64"] * 2 if small < 2**53 else []
        ways += ["float32", "int32"] if small < 2**24 else []
        ways += ["uint64"] if min(given, default=0) >= 0 else []
    way = ways[rng.integers(len(ways))]
    said.append(way)
    if way in ("float64", "float32"):
        values = [float("nan") if i is None else float(i) for i in ids]
        return pl.Series(values, dtype=pl.Float64 if way == "float64" else pl.Float32)
    types: dict[str, Any] = {
        "int": pl.Int64,
        "int32": pl.Int32,
        "uint64": pl.UInt64,
        "decimal": pl.Decimal(20, 0),
        "decimal.00": pl.Decimal(22, 2),
    }
    if way in types:
        exact = [None if i is None else decimal.Decimal(i) for i in ids]
        return pl.Series(exact if "dec" in way else ids, dtype=types[way])
    texts: list[str | None] = list(_texts(rng, given))
    words = iter(texts)
    texts = [None if i is None else next(words) for i in ids]
    if way == "binary":
        return pl.Series([None if t is None else t.encode() for t in texts])
    column = pl.Series(texts, dtype=pl.String)
    if way == "enum":
        return column.cast(pl.Enum(sorted({t for t in texts if t is not None})))
    return column.cast(pl.Categorical) if way == "categorical" else column


# Times.


class Time(NamedTuple):
    """How times are written: the step in microseconds, and what writes a time."""

    name: str
    step: int
    write: Callable[[int], str]
    settings: dict[str, Any] = {}  # noqa: RUF012
    is_number: bool = False


def _iso(form: str, fraction: int = 0, zone: str = "", hours: float = 0) -> Callable:
    def write(micro: int) -> str:
        moment = EPOCH + datetime.timedelta(microseconds=micro, hours=hours)
        digits = f".{moment.microsecond:06}000"[: fraction + 1] if fraction else ""
        return moment.strftime(form) + digits + zone

    return write


def _with_comma(write: Callable[[int], str]) -> Callable[[int], str]:
    return lambda micro: write(micro).replace(".", ",")


T, BLANK = "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"
MINUTE = 60 * SECOND
TIMES = [
    Time("s", SECOND, lambda t: str(t // SECOND), is_number=True),
    Time("s.0", SECOND, lambda t: f"{t // SECOND}.0", is_number=True),
    Time("s.mmm", 1000, lambda t: f"{t // SECOND}.{t // 1000 % 1000:03}", {}, True),
    Time("s.uuuuuu", 1, lambda t: f"{t // SECOND}.{t % SECOND:06}", {}, True),
    Time("ms", 1000, lambda t: str(t // 1000), is_number=True),
    Time("us", 1, str, is_number=True),
    Time("ns", 1, lambda t: f"{t}000", is_number=True),
    Time("s, named", SECOND, lambda t: str(t // SECOND), {"time_unit": "s"}, True),
    Time("ms, named", 1000, lambda t: str(t // 1000), {"time_unit": "ms"}, True),
    Time(
        "any",
        SECOND,
        lambda t: str(t // (SECOND, 1000, 1)[t // SECOND % 3]),
        {"time_unit": "any"},
        True,
    ),
    Time("days", MINUTE, lambda t: repr(t / DAY + 25_569), {"time_unit": "days"}, True),
    Time("20240301", DAY, _iso("%Y%m%d"), is_number=True),
    Time("202403011230", MINUTE, _iso("%Y%m%d%H%M"), is_number=True),
    Time("20240301123005", SECOND, _iso("%Y%m%d%H%M%S"), is_number=True),
    Time("date", DAY, _iso("%Y-%m-%d")),
    Time("T", SECOND, _iso(T)),
    Time("blank", SECOND, _iso(BLANK)),
    Time("minutes", MINUTE, _iso("%Y-%m-%dT%H:%M")),
    Time("minutes of a zone", MINUTE, _iso("%Y-%m-%d %H:%M", 0, "+05:30", 5.5)),
    Time("Z", SECOND, _iso(T, 0, "Z")),
    Time("UTC", SECOND, _iso(BLANK, 0, " UTC")),
    Time("mmm", 1000, _iso(T, 3, "Z")),
    Time("mmm,", 1000, _with_comma(_iso(BLANK, 3))),
    Time("uuuuuu", 1, _iso(BLANK, 6)),
    Time("nnnnnnnnn", 1, _iso(T, 9, "Z")),
    Time("+02:00", SECOND, _iso(T, 0, "+02:00", 2)),
    Time("-0330", 1000, _iso(BLANK, 3, " -0330", -3.5)),
    Time("+05", SECOND, _iso(BLANK, 0, "+05", 5)),
    Time("%d/%m/%Y %H:%M", MINUTE, _iso("%d/%m/%Y %H:%M"), {"time_format": 1}),
    Time("%d.%m.%Y", DAY, _iso("%d.%m.%Y"), {"time_format": 1}),
    Time(
        "%b %d %Y %I:%M:%S %p", SECOND, _iso("%b %d %Y %I:%M:%S %p"), {"time_format": 1}
    ),
    Time(
        "%d/%b/%Y:%H:%M:%S %z",
        SECOND,
        _iso("%d/%b/%Y:%H:%M:%S", 0, " +0200", 2),
        {"time_format": 1},
    ),
]
TIMES = [
    t._replace(settings={"time_format": t.name}) if "time_format" in t.settings else t
    for t in TIMES
]
NUMBERS = [t for t in TIMES if t.is_number]


def _date_column(rng: np.random.Generator, times: Sequence, said: list[str]):
    """Returns microseconds, None if one is missing, as a column of dates."""
    zones = (None, "UTC", "Europe/Berlin", "America/New_York")
    way, zone = ("ms", "us", "ns")[rng.integers(3)], zones[rng.integers(4)]
    said.append(f"Datetime({way}, {zone})")
    column = pl.Series(times, dtype=pl.Datetime("us", zone))
    return column.cast(pl.Datetime(way, zone))


# Logs.


def draw_clicks(rng: np.random.Generator, step: int, said: list[str]) -> list[Click]:
    """Draws clicks whose times are multiples of `step`; often several at one time."""
    kinds = [
        ("whole", "words", "zeros")[n] for n in rng.choice(3, 2, p=(0.6, 0.3, 0.1))
    ]
    said += kinds
    sessions = _draw_ids(rng, kinds[0], int(rng.integers(4, 16)))
    items = _draw_ids(rng, kinds[1], int(rng.integers(3, 9)))
    step = max(step, (1, SECOND, 60 * SECOND)[rng.integers(3)])
    spread = (60 * SECOND, DAY // 3, 3 * DAY)[rng.integers(3)]
    clicks = []
    for n, session in enumerate(sessions):
        start = START + n * DAY * int(rng.integers(1, 3)) // int(rng.integers(1, 3))
        for _ in range(int(rng.integers(1, 6))):
            time = start + int(rng.integers(max(spread // step, 2))) * step
            item = items[int(rng.integers(len(items)))]
            event = ("view", "cart", "buy")[int(rng.integers(3))]
            clicks.append(Click(session, item, time // step * step, event))
    return clicks


def draw_rules(rng: np.random.Generator) -> dict[str, Any]:
    """Draws settings of how clicks are prepared, not of how they are read."""
    rules: dict[str, Any] = {
        "min_item_count": int(rng.integers(1, 4)),
        # No session is exactly on the edge, even if a spreadsheet's days are rounded.
        "test_days": float(rng.integers(1, 5)) + 1 / 7,
        "min_session_length": int(rng.integers(2, 4)),
    }
    if rng.random() < 0.2:
        rules["test_days"] = float(rng.integers(1, 5))
    if rng.random() < 0.2:
        rules["session_gap_minutes"] = int(rng.choice([1, 30, 600]))
    if rng.random() < 0.1:
        rules["session_by_day"] = True
    if rng.random() < 0.1:
        rules["collapse_repeats"] = True
    if rng.random() < 0.1:
        rules["max_session_clicks"] = 4
    return rules


def draw(rng: np.random.Generator) -> Log:
    """Draws clicks and writes them in a random form."""
    said: list[str] = []
    ways = [_text, _text, _text, _parquet, _parquet, _json, _lists, _frame]
    way = ways[rng.integers(len(ways))]
    said.append(way.__name__.strip("_"))
    time = TIMES[rng.integers(len(TIMES))]
    if way in (_parquet, _frame):
        time = [*NUMBERS, None, None, None, None, None][rng.integers(len(NUMBERS) + 5)]
    said.append(time.name if time else "dates")
    step = time.step if time else (1000, DAY)[int(rng.random() < 0.2)]
    log = Log(draw_clicks(rng, step, said), "", draw_rules(rng))
    log.settings["on_bad_row"] = ("error", "skip")[rng.integers(2)]
    if rng.random() < 0.15:
        log.settings["events"] = ("view", "buy")
    order = rng.integers(3)
    if order == 0:
        log.clicks.sort(key=lambda click: click.time, reverse=bool(rng.integers(2)))
    elif order == 1:
        log.clicks = [log.clicks[n] for n in rng.permutation(len(log.clicks))]
    if rng.random() < 0.3:
        log.chunk = int(rng.choice([100, 1000]))
    way(rng, log, time, said)
    log.said = ", ".join(said)
    return log


NAMES = {
    "session": (
        "session_id",
        "SessionId",
        "sessionId",
        "Session ID",
        "session_id:token",
    ),
    "item": ("item_id", "ItemId", "product_id", "item_id:token", "aid"),
    "time": ("timestamp", "Time", "ts", "event_time", "timestamp:float"),
    "event": ("event", "type", "event_type"),
}


def _names(rng: np.random.Generator, log: Log) -> dict[str, str]:
    """Draws a name for each column; unusual names are added to the settings."""
    names = {}
    for role, usual in NAMES.items():
        names[role] = usual[rng.integers(len(usual))]
        if rng.random() < 0.2:
            names[role] = f"the {role}"
            log.settings[f"{role}_column"] = names[role]
    return names


def _gaps(rng: np.random.Generator, log: Log, allowed: bool = True) -> list[str]:
    """Adds rows that lack something to the clicks; returns what each row lacks."""
    lacks = [""] * len(log.clicks)
    if not allowed or rng.random() < 0.6:
        return lacks
    log.nothing = int(rng.integers(1, 5))
    for _ in range(log.nothing):
        at = int(rng.integers(len(lacks) + 1))
        log.clicks.insert(at, log.clicks[int(rng.integers(len(log.clicks)))])
        lacks.insert(at, ("session", "item", "time")[rng.integers(3)])
    return lacks


def _forget(log: Log, lacks: Sequence[str]) -> None:
    """Keeps only the clicks that lack nothing."""
    log.clicks = [c for c, gap in zip(log.clicks, lacks, strict=True) if not gap]


def _text(rng, log: Log, time: Time, said: list[str]) -> None:
    """Writes csv and similar formats."""
    separator = (",", ",", "\t", ";", "|", "::")[rng.integers(6)]
    title = list(TITLES)[rng.integers(len(TITLES))]
    if separator == "::" and title in ("breaks", "bare"):
        title = "plain"
    unquoted = title == "bare" or separator == "::"
    if title == "bare" and separator != "\t":
        log.settings["quoting"] = "none"
    if separator == "," and time.name == "mmm," and unquoted:
        time = time._replace(write=lambda t: _iso(BLANK, 3)(t))
    said += [repr(separator), title]
    headless = rng.random() < 0.15
    parts = int(rng.integers(2, 6)) if rng.random() < 0.25 else 1
    header_once = parts > 1 and rng.random() < 0.5 and not time.settings
    lacks = _gaps(rng, log, not header_once)
    columns = {
        "session": _texts(rng, [c.session for c in log.clicks]),
        "item": _texts(rng, [c.item for c in log.clicks]),
        "time": [time.write(c.time) for c in log.clicks],
        "event": [c.event for c in log.clicks],
        "title": [TITLES[title][rng.integers(len(TITLES[title]))] for _ in lacks],
    }
    for n, role in enumerate(lacks):
        if role:
            # A file without a header is recognized by its first row.
            columns[role][n] = NOTHING[rng.integers(2 * (not n), len(NOTHING))]
    names = {**_names(rng, log), "title": "title"}
    has_clock = time.name in ("T", "blank", "minutes") and rng.random() < 0.4
    if has_clock and "time_column" not in log.settings:
        _part_times(rng, log, columns, names)
        said.append("date and time")
    roles = [r for r in columns if r != "title" or title != "none"]
    roles = [roles[n] for n in rng.permutation(len(roles))]
    header: list[str] = [names[role] for role in roles]
    if headless:
        said.append("no header")
        log.settings["header"] = "none"
        for role in set(roles) - {"title"}:
            log.settings[f"{role}_column"] = str(roles.index(role) + 1)
        if separator == "," and (title == "breaks" or time.name == "mmm,"):
            log.settings["separator"] = ","
        elif title == "breaks":
            log.settings["separator"] = separator.replace("\t", "\\t")
    log.settings.update(time.settings)
    rows = list(zip(*(columns[role] for role in roles), strict=True))
    all_quoted = not unquoted and rng.random() < 0.2
    end = ("\n", "\r\n")[int(rng.random() < 0.2)]
    spaces = not all_quoted and title != "breaks" and rng.random() < 0.1
    spaces = spaces and not unquoted and (separator, time.name) != (",", "mmm,")

    def line(fields: Sequence[str]) -> str:
        if spaces:
            return f"{separator} ".join(f.replace(separator, " ") for f in fields) + end
        if unquoted:
            return separator.join(fields) + end
        file = io.StringIO()
        how: Any = csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL
        csv.writer(file, delimiter=separator, lineterminator=end, quoting=how).writerow(
            fields
        )
        return file.getvalue()

    blank = rng.random() < 0.1
    texts = []
    for n, part in enumerate(_parted(rng, rows, parts)):
        lines = [line(row) for row in part]
        if not headless and not (header_once and n):
            lines.insert(0, line(header))
        text = (end if blank else "").join(lines)
        texts.append(text.removesuffix(end) if rng.random() < 0.2 else text)
    said.append("spaces" if spaces else "quoted" if all_quoted else "")
    _pack(rng, log, texts, title, said)
    _forget(log, lacks)


def _part_times(rng, log: Log, columns: dict[str, list[str]], names: dict) -> None:
    """Puts the day and the time of day in two columns."""
    moments = [
        re.split("[T ]", m) if m[:4] == "2024" else [m, m] for m in columns["time"]
    ]
    columns["date"], columns["time"] = map(list, zip(*moments, strict=True))
    names["time"], names["date"] = "time", ("date", "Day")[rng.integers(2)]
    if rng.random() < 0.2:
        names["date"] = "on"
        log.settings["date_column"] = "on"


def _parted(rng, rows: Sequence, parts: int) -> list[Sequence]:
    cuts = sorted(int(n) for n in rng.integers(1, len(rows), parts - 1))
    ends = zip([0, *cuts], [*cuts, len(rows)], strict=True)
    return [rows[start:end] for start, end in ends if end > start]


def _zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "gz": lambda data: gzip.compress(data, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": _zstd,
}


def _pack(rng, log: Log, texts: Sequence[str], title: str, said: list[str]) -> None:
    """Encodes and compresses the text of each part."""
    ways = ["utf-8", "utf-8", "utf-8-sig", "utf-16"]
    is_latin = all(
        text.encode("cp1252", "replace").decode("cp1252") == text for text in texts
    )
    if is_latin and title == "accents":
        ways += ["cp1252"] * 4
    encoding = ways[rng.integers(len(ways))]
    if encoding == "cp1252" and ("é" in _ids_of(log) or rng.random() < 0.5):
        log.settings["encoding"] = "cp1252"
    packed = list(PACK)[rng.integers(len(PACK))] if rng.random() < 0.3 else ""
    said += [encoding, packed]
    _name_files(rng, log, [PACK[packed](text.encode(encoding)) for text in texts], said)


def _ids_of(log: Log) -> str:
    return " ".join(f"{click.session} {click.item}" for click in log.clicks)


def _name_files(rng, log: Log, parts: Sequence[bytes], said: list[str]) -> None:
    """Names the parts of a log, and sometimes adds a file that tools leave there."""
    if len(parts) == 1:
        names = [
            ("log.csv", "EXPORT.CSV", "clicks.parquet", "x", "l.txt")[rng.integers(5)]
        ]
    else:
        form = ("p-{:05}", "day={0}/part-0.parquet", "log.csv/part-{}", "{}.csv.gz")
        said.append(f"{len(parts)} parts")
        chosen = form[rng.integers(len(form))]
        names = [chosen.format(n) for n in range(len(parts))]
    log.files = dict(zip(names, parts, strict=True))
    if rng.random() < 0.3:
        beside = ("_SUCCESS", ".DS_Store", ".part-0.crc", "README.md", "._log.csv")
        log.files[beside[rng.integers(len(beside))]] = b"\0\1not a log,\n"


def _columns(rng, log: Log, time: Time | None, said: list[str]) -> pl.DataFrame:
    """Returns the clicks as typed columns."""
    lacks = _gaps(rng, log)
    values: dict[str, list] = {
        role: [
            None if gap == role else value for value, gap in zip(of, lacks, strict=True)
        ]
        for role, of in zip(
            ("session", "item", "time"),
            list(zip(*log.clicks, strict=True))[:3],
            strict=True,
        )
    }
    log.columns = names = _names(rng, log)
    columns = [
        _id_column(rng, values[role], said).alias(names[role])
        for role in ("session", "item")
    ]
    if time:
        texts = [None if t is None else time.write(t) for t in values["time"]]
        number = pl.Series(names["time"], texts, pl.String)
        to_float = "." in time.name or time.name == "days" or rng.random() < 0.2
        # A float is exact for today's microseconds, but not for its nanoseconds.
        to_float = to_float and time.name != "ns"
        columns.append(number.cast(pl.Float64 if to_float else pl.Int64))
        log.settings.update(time.settings)
    elif all(t is None or t % DAY == 0 for t in values["time"]):
        dates = pl.Series(names["time"], values["time"], pl.Datetime("us"))
        columns.append(dates.cast(pl.Date))
    else:
        columns.append(_date_column(rng, values["time"], said).alias(names["time"]))
    columns.append(pl.Series(names["event"], [c.event for c in log.clicks]))
    columns.append(pl.Series("title", [[n] for n in range(len(lacks))]))
    _forget(log, lacks)
    frame = pl.DataFrame(columns)
    return frame.select(frame.columns[n] for n in rng.permutation(len(columns)))


def _parquet_bytes(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def _parquet(rng, log: Log, time: Time | None, said: list[str]) -> None:
    frame = _columns(rng, log, time, said)
    if rng.random() < 0.2:
        frame = frame.select(pl.struct(pl.all()).alias("data"))
        log.settings |= {
            role: f"data.{log.settings[role]}"
            for role in log.settings
            if role.endswith("_column") and rng.random() < 0.5
        }
        said.append("nested")
    parts = int(rng.integers(2, 6)) if rng.random() < 0.3 else 1
    rows = _parted(rng, range(len(frame)), parts)
    data = [_parquet_bytes(frame[part[0] : part[-1] + 1]) for part in rows]
    _name_files(rng, log, data, said)


def _frame(rng, log: Log, time: Time | None, said: list[str]) -> None:
    log.frame = _columns(rng, log, time, said)


def _json(rng, log: Log, time: Time, said: list[str]) -> None:
    """Writes JSON lines, one click each."""
    lacks = _gaps(rng, log)
    names, records = _names(rng, log), []
    is_text = not time.is_number or rng.random() < 0.3
    whole: Callable = (int, float, str)[rng.integers(3)]
    far = any(abs(n) >= 2**53 for c in log.clicks for n in c[:2] if isinstance(n, int))
    whole = int if far else whole
    nested = rng.random() < 0.3
    for click, gap in zip(log.clicks, lacks, strict=True):
        values: dict[str, Any] = {
            role: whole(i) if isinstance(i, int) else i
            for role, i in (("session", click.session), ("item", click.item))
        }
        moment = time.write(click.time)
        values["time"] = moment if is_text else json.loads(moment)
        values["event"] = click.event
        if gap:
            values[gap] = (None, "", "NULL")[rng.integers(3)]
        record = {names[role]: value for role, value in values.items()}
        if values.get(gap, 0) is None and rng.random() < 0.5 and records:
            del record[names[gap]]
        record["title"] = ["Tea", "Café", None, {"a": 1}][rng.integers(4)]
        records.append({"v": 1, "data": record} if nested else record)
    log.settings.update(time.settings)
    _write_json(rng, log, records, said)
    _forget(log, lacks)


def _write_json(rng, log: Log, records: Sequence[dict], said: list[str]) -> None:
    parts = int(rng.integers(2, 6)) if rng.random() < 0.2 else 1
    ascii_only = bool(rng.integers(2))
    texts = [
        "".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in part)
        for part in _parted(rng, records, parts)
    ]
    _pack(rng, log, texts, "", said)


def _lists(rng, log: Log, time: Time, said: list[str]) -> None:
    """Writes one session per row, its clicks in lists."""
    log.settings.pop("events", None)
    sessions: dict[Any, list[Click]] = {}
    for click in log.clicks:
        sessions.setdefault(click.session, []).append(click)
    one_time = rng.random() < 0.3
    if one_time:
        # The row has the time at which the session began, the list the order of clicks.
        said.append("one time a row")
        sessions = {
            session: [c._replace(time=clicks[0].time + n) for n, c in enumerate(clicks)]
            for session, clicks in sessions.items()
        }
        log.clicks = [click for clicks in sessions.values() for click in clicks]
    ways = ["json", "json of objects", "parquet", "parquet of structures", "joined"]
    way = ways[rng.integers(len(ways))]
    if way.endswith("s") and one_time:
        way = way.split(" ")[0]
    if way == "joined" and any(set(' ,;|"[]') & set(str(c.item)) for c in log.clicks):
        way = "parquet"
    if way == "joined" and set(" ,") & set(time.write(START)) and not one_time:
        way = "parquet"
    said.append(way)
    log.settings.update(time.settings)
    _write_lists(rng, log, sessions, way, time, one_time, said)


def _write_lists(rng, log, sessions, way, time, one_time, said) -> None:
    items = {s: [c.item for c in clicks] for s, clicks in sessions.items()}
    if way in ("json", "json of objects", "joined"):
        number = json.loads if time.is_number else str
    else:
        number = str
    times = {
        s: [number(time.write(c.time)) for c in clicks]
        for s, clicks in sessions.items()
    }
    if one_time:
        first = {
            s: number(time.write(clicks[0].time)) for s, clicks in sessions.items()
        }
    ids = list(sessions)
    if way == "json of objects":
        log_records = [
            {
                "session": s,
                "events": [
                    {"aid": i, "ts": t, "type": "clicks"}
                    for i, t in zip(items[s], times[s], strict=True)
                ],
            }
            for s in ids
        ]
        return _write_json(rng, log, log_records, said)
    when = "timestamp" if one_time else "timestamp_list"
    values = first if one_time else times
    if way == "json":
        records = [{"session_id": s, "items": items[s], when: values[s]} for s in ids]
        return _write_json(rng, log, records, said)
    if way == "joined":
        mark = (" ", "|", " ")[rng.integers(3)]
        lines = [f"session_id;item_id_list;{when}\n"]
        for s in ids:
            joined = mark.join(map(str, items[s]))
            if rng.random() < 0.3:
                joined = str(items[s])
            moment = values[s] if one_time else mark.join(map(str, values[s]))
            lines.append(f"{s};{joined};{moment}\n")
        return _pack(rng, log, ["".join(lines)], "", said)
    if way == "parquet of structures":
        events = [
            [{"aid": i, "ts": t} for i, t in zip(items[s], times[s], strict=True)]
            for s in ids
        ]
        frame = pl.DataFrame({"session": ids, "events": events})
    else:
        frame = pl.DataFrame(
            {
                "session_id": ids,
                "item_id-list": [items[s] for s in ids],
                when: [values[s] for s in ids],
            }
        )
    return _name_files(rng, log, [_parquet_bytes(frame)], said)
