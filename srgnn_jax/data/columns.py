"""Which columns of a click log hold what: their usual names, and how one is found."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from srgnn_jax.errors import UserError

# Usual names of the columns, spelled as by `plain_name`, the likeliest first.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "session": ("sessionid", "session", "sid", "usersession", "visitid"),
    "item": ("itemid", "item", "productid", "product", "iid", "articleid"),
    "time": ("time", "timestamp", "eventtime", "datetime", "ts", "date", "eventdate"),
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of a log's columns; an empty one is looked for by usual names."""

    session: str = ""
    item: str = ""
    time: str = ""
    # A session's, where it is not the time of its last click: then `time` may be any
    # number that orders a session's clicks. Empty: there is none.
    date: str = ""


def plain_name(name: str) -> str:
    """Returns a column's name without case, spaces, '_', '-' and RecBole's `:type`."""
    return name.split(":")[0].strip().lower().translate({ord(c): None for c in " _-"})


def find_columns(
    path: pathlib.Path,
    columns: Columns,
    usual: Mapping[str, Sequence[str]],
    names: Sequence[str],
) -> dict[str, int]:
    """Returns the position among `names` of each column that is to be read.

    A column that is named is found by that name, with or without RecBole's type. Raises
    UserError if a column is missing, or there is more than one of its name.
    """
    stripped = [name.strip() for name in names]
    without_type = [name.rpartition(":")[0] for name in names]
    plain = [plain_name(name) for name in names]
    found = {}
    for column, named in vars(columns).items():
        tries = [(plain, name) for name in usual.get(column, ())]
        if named:
            tries = [(stripped, named), (without_type, named)]
        places = ([i for i, n in enumerate(ns) if n == name] for ns, name in tries)
        matches = next(filter(None, places), [])
        if len(matches) == 1:
            found[column] = matches[0]
        elif tries:
            what = f"{column} column {named!r}" if named else f"{column} column"
            raise UserError(
                f"{path}: {'more than one' if matches else 'no'} {what} among "
                f"{', '.join(map(repr, names))[:600]}; name it with "
                f"--config.{column}_column"
            )
    return found
