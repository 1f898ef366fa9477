"""How a click log is read, and which of its columns hold what."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from srgnn_jax.data.ids import MISSING
from srgnn_jax.errors import UserError

# A column of such a name holds lists, even where they are text: "17 4 9".
_ITEM_LISTS = ("itemidlist", "itemlist", "items", "itemids", "itemseq", "productids")
_TIME_LISTS = ("timestamplist", "timestamps", "times")
LISTS = frozenset((*_ITEM_LISTS, *_TIME_LISTS))
# Usual names of the columns, spelled as by `plain_name`, the likeliest first.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "session": ("sessionid", "session", "sid", "usersession", "visitid"),
    "item": (
        *("itemid", "item", "productid", "product", "iid", "articleid", "aid"),
        *("movieid", "trackid", "songid", "sku", "asin"),
        *_ITEM_LISTS,
    ),
    "time": (
        *("time", "timestamp", "eventtime", "datetime", "ts", "eventtimestamp"),
        *("createdat", "unixtime", "timestampms", "date", "eventdate"),
        *("timestampfirst", "starttime", *_TIME_LISTS),
    ),
    # The day, where the time is a time of day.
    "day": ("date", "day", "eventdate"),
    "event": ("event", "eventtype", "type", "action"),
}
# Of those whose clicks may be many visits.
VISITORS = ("visitorid", "userid", "customerid", "clientid", "fullvisitorid", "user")


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of a log's columns; an empty one is looked for by usual names."""

    session: str = ""
    item: str = ""
    time: str = ""
    # A session's, where it is not the time of its last click: then `time` may be any
    # number that orders a session's clicks. Empty: there is none.
    date: str = ""
    # What a click was: a view, a purchase. Looked for only where events are chosen.
    event: str = ""


def plain_name(name: str) -> str:
    """Returns a column's name without case, spaces, `_-#` and RecBole's `:type`."""
    return name.split(":")[0].strip().lower().translate({ord(c): None for c in " _-#"})


def is_named_list(name: str) -> bool:
    """Whether a column's name says that it holds lists."""
    return plain_name(name.rpartition(".")[2]) in LISTS


@dataclasses.dataclass(frozen=True)
class Form:
    """How a log is read; what is left empty is told by the log."""

    columns: Columns = Columns()
    usual: Mapping[str, Sequence[str]] | None = None  # None: USUAL_NAMES
    header: str | Sequence[str] = ""  # names, where the file has none; "none": numbers
    separator: str = ""
    quoting: str = ""
    encoding: str = ""
    missing_values: Sequence[str] = MISSING
    time_unit: str = ""
    time_format: str = ""
    events: Sequence[str] = ()  # those that are clicks; none: all rows are
    of_visitors: bool = False  # their usual names are those of sessions, too
    on_bad_row: str = "error"
    needs_time: bool = True  # else clicks without one are in the order of rows

    def names(
        self, columns: Mapping[str, bool] | Sequence[str], where: pathlib.Path | str
    ) -> dict[str, str]:
        """Returns the name of each column that is to be read.

        `columns` are those of a log; a dict tells of each whether it holds lists. One
        that is named is found by that name, with or without RecBole's type; one of
        `events.aid`, nested as in JSON, by its last part too. Where items lie in lists,
        a row is a session, and needs no column of them. Raises UserError if a column is
        missing that is not optional, or there is more than one of its name.
        """
        usual = dict(self.usual or USUAL_NAMES)
        if self.of_visitors:
            usual["session"] = (*usual["session"], *VISITORS)
        if self.columns.date:
            usual.pop("day", None)
        if not self.events:
            usual.pop("event", None)
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


# Of a log that tells all of it.
USUAL_FORM = Form()


def _places(names: Sequence[str], named: str, usual: Sequence[str]) -> list[int]:
    """Returns which names are those of a column: the one given, or the likeliest."""
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
            f"if {of_visitors[0]!r} tells visitors, their clicks are cut into visits "
            f"with --config.session_column={of_visitors[0].split(':')[0]} "
            "--config.session_gap_minutes=30"
        )
    if len(set(matches)) < len(matches):
        return "give each a name of its own"
    return f"name it with --config.{column}_column"
