"""How a click log is read, and which of its columns hold what."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from srgnn_jax.data.ids import MISSING
from srgnn_jax.errors import UserError

# A column with one of these names holds lists, even if they are text: "17 4 9".
_ITEM_LISTS = ("itemidlist", "itemlist", "items", "itemids", "itemseq", "productids")
_TIME_LISTS = ("timestamplist", "timestamps", "times")
LISTS = frozenset((*_ITEM_LISTS, *_TIME_LISTS))
# Usual names of the columns, as `plain_name` spells them, the likeliest first.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "session": ("sessionid", "session", "sid", "usersession", "visitid"),
    "item": (
        *("itemid", "item", "productid", "product", "iid", "articleid", "aid"),
        *("movieid", "trackid", "songid", "sku", "asin"),
        *_ITEM_LISTS,
    ),
    "time": (
        *("time", "timestamp", "eventtime", "datetime", "ts", "eventtimestamp"),
        *("createdat", "unixtime", "timestampms", "timestampfirst", "starttime"),
        *(*_TIME_LISTS, "date", "eventdate"),
    ),
    # The day, if the time is a time of day.
    "day": ("date", "day", "eventdate"),
    "event": ("event", "eventtype", "type", "action"),
}
# Columns of visitors, whose clicks may be several visits.
VISITORS = ("visitorid", "userid", "customerid", "clientid", "fullvisitorid", "user")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of a log's columns; the usual names are tried if one is empty."""

    session: str = ""
    item: str = ""
    time: str = ""
    # The session's date, if that is not the time of its last click. `time` may then be
    # any number that orders a session's clicks. Empty: there is no such column.
    date: str = ""
    # What a click was: a view, a purchase. Needed only if events are chosen.
    event: str = ""


def plain_name(name: str) -> str:
    """Returns a column's name without case, spaces, `_-#` and RecBole's `:type`."""
    return name.split(":")[0].strip().lower().translate({ord(c): None for c in " _-#"})


def is_named_list(name: str) -> bool:
    """Whether a column's name says that it holds lists."""
    return plain_name(name.rpartition(".")[2]) in LISTS


@dataclasses.dataclass(frozen=True)
class Form:
    """How a log is read; what is left empty is detected from the log."""

    columns: Columns = Columns()
    usual: Mapping[str, Sequence[str]] | None = None  # None: USUAL_NAMES
    header: str | Sequence[str] = ""  # names, if the file has none; "none": numbers
    separator: str = ""
    quoting: str = ""
    encoding: str = ""
    missing_values: Sequence[str] = MISSING
    time_unit: str = ""
    time_format: str = ""
    events: Sequence[str] = ()  # those that are clicks; empty: all rows are
    of_visitors: bool = False  # usual names of visitors are names of sessions, too
    on_bad_row: str = "error"
    needs_time: bool = True  # else clicks without times are in the order of rows

    def names(
        self, columns: Mapping[str, bool] | Sequence[str], where: pathlib.Path | str
    ) -> dict[str, str]:
        """Returns the name of each column to read.

        `columns` are those of a log; a dict says of each whether it holds lists. A
        column set in `Columns` is found by that name, with or without RecBole's type; a
        nested one, such as `events.aid`, also by its last part. If items are in lists,
        each row is a session, and no session column is needed. Raises UserError if a
        required column is missing, or more than one has its name.
        """
        usual = dict(self.usual or USUAL_NAMES)
        if self.of_visitors:
            usual["session"] = (*usual["session"], *VISITORS)
        if self.columns.date:
            usual.pop("day", None)
        usual.pop("event", None)
        if self.events:
            usual["event"] = USUAL_NAMES["event"]
        required = usual.keys() - {"day"}
        if not self.needs_time:
            required.discard("time")
        names = [*columns]
        is_list = columns if isinstance(columns, Mapping) else {}
        of_items = _places(names, self.columns.item, usual["item"])
        if any(is_list.get(names[i]) or is_named_list(names[i]) for i in of_items):
            required.discard("session")
        found: dict[str, int] = {}
        for column in ("session", "item", "time", "date", "day", "event"):
            named = getattr(self.columns, column, "")
            places = _places(names, named, usual.get(column, ()))
            if len(places) == 1:
                found[column] = places[0]
            elif named or column in required:
                what = f"{column} column {named!r}" if named else f"{column} column"
                raise UserError(
                    f"{where}: {'more than one' if places else 'no'} {what} among "
                    f"{', '.join(map(repr, names))[:600]}; "
                    + _advice(column, named, [names[i] for i in places], names)
                )
        if found.get("day") == found.get("time"):
            found.pop("day", None)
        return {column: names[place] for column, place in found.items()}


# For a log from which everything can be detected.
USUAL_FORM = Form()


def _places(names: Sequence[str], named: str, usual: Sequence[str]) -> list[int]:
    """Returns which of `names` match a column: the given name, or the likeliest."""
    stripped = [name.strip() for name in names]
    last = [name.rpartition(".")[2] for name in stripped]
    if named:
        without_type = [name.rpartition(":")[0] for name in names]
        wanted, spelled = [named], [stripped, without_type, last]
    else:
        wanted, spelled = [*usual], [list(map(plain_name, of)) for of in (names, last)]
    places = (
        [i for i, name in enumerate(spelling) if name == one]
        for spelling in spelled
        for one in wanted
    )
    return next(filter(None, places), [])


def _advice(
    column: str, named: str, matches: Sequence[str], names: Sequence[str]
) -> str:
    of_visitors = [name for name in names if plain_name(name) in VISITORS]
    if column == "session" and of_visitors and not named and not matches:
        return (
            f"if {of_visitors[0]!r} identifies visitors, cut their clicks into visits "
            f"with --config.session_column={of_visitors[0].split(':')[0]} "
            "--config.session_gap_minutes=30"
        )
    if len(set(matches)) < len(matches):
        return "give each its own name"
    return f"name it with --config.{column}_column"
