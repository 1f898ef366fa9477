"""Which columns of a click log hold what: their usual names, and how one is found."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence

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
# They may be missing.
_OPTIONAL = ("date", "day", "event")


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


def find_columns(
    path: pathlib.Path | str,
    columns: Columns,
    usual: Mapping[str, Sequence[str]],
    names: Sequence[str],
    optional: Collection[str] = _OPTIONAL,
    lists: Collection[str] = (),
) -> dict[str, int]:
    """Returns the position among `names` of each column that is to be read.

    A column that is named is found by that name, with or without RecBole's type; one of
    `events.aid`, nested as in JSON, by its last part too. Where items lie in lists, of
    which `lists` are the names, a row is a session, and needs no column of them. Raises
    UserError if a column is missing that is not optional, or there is more than one of
    its name.
    """
    stripped = [name.strip() for name in names]
    without_type = [name.rpartition(":")[0] for name in names]
    plain = [plain_name(name) for name in names]
    last = [name.rpartition(".")[2] for name in stripped]

    def places_of(column: str) -> list[int]:
        named = getattr(columns, column, "")
        known = usual.get(column, ())
        tries = [
            (these, n) for these in (plain, [*map(plain_name, last)]) for n in known
        ]
        if named:
            tries = [(stripped, named), (without_type, named), (last, named)]
        places = ([i for i, n in enumerate(ns) if n == name] for ns, name in tries)
        return next(filter(None, places), [])

    of_items = [names[place] for place in places_of("item")]
    if any(name in lists or is_named_list(name) for name in of_items):
        optional = (*optional, "session")
    found: dict[str, int] = {}
    for column in ("session", "item", "time", "date", "day", "event"):
        named, places = getattr(columns, column, ""), places_of(column)
        if len(places) == 1:
            found[column] = places[0]
        elif named or (column in usual and column not in optional):
            what = f"{column} column {named!r}" if named else f"{column} column"
            raise UserError(
                f"{path}: {'more than one' if places else 'no'} {what} among "
                f"{', '.join(map(repr, names))[:600]}; "
                + _advice(column, named, places, names, plain)
            )
    if found.get("day") == found.get("time"):
        found.pop("day", None)
    return found


def _advice(
    column: str,
    named: str,
    matches: Sequence[int],
    names: Sequence[str],
    plain: Sequence[str],
) -> str:
    of_visitors = [name for name, p in zip(names, plain, strict=True) if p in VISITORS]
    if column == "session" and of_visitors and not named and not matches:
        return (
            f"if {of_visitors[0]!r} tells visitors, their clicks are cut into visits "
            f"with --config.session_column={of_visitors[0].split(':')[0]} "
            "--config.session_gap_minutes=30"
        )
    if len({names[place] for place in matches}) < len(matches):
        return "give each a name of its own"
    return f"name it with --config.{column}_column"
