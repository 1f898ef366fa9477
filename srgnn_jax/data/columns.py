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
    """The names of a log's columns; an empty one is looked for by usual names.

    Attributes:
      session: an id of the visit.
      item: an id of what was clicked.
      time: of the click.
      date: of the session, where it is not the time of its last click; then `time` may
        be any number that orders a session's clicks. Empty: there is none.
    """

    session: str = ""
    item: str = ""
    time: str = ""
    date: str = ""


def plain_name(name: str) -> str:
    """Returns a column's name without case, spaces, '_', '-' and RecBole's type.

    In RecBole's files the type stands behind the name: `item_id:token`.
    """
    return name.split(":")[0].strip().lower().translate({ord(c): None for c in " _-"})


def find_columns(
    path: pathlib.Path,
    columns: Columns,
    usual: Mapping[str, Sequence[str]],
    names: Sequence[str],
) -> dict[str, int]:
    """Returns the position among `names` of each column that is to be read.

    A column that is named is found by that name, with or without RecBole's type.

    Raises:
      UserError: a column is missing, or there is more than one of its name.
    """
    found = {}
    for column, named in dataclasses.asdict(columns).items():
        if named:
            stripped = [name.strip() for name in names]
            without_type = [name.rpartition(":")[0] for name in names]
            tries = [(stripped, named), (without_type, named)]
        else:
            plain = [plain_name(name) for name in names]
            tries = [(plain, name) for name in usual.get(column, ())]
        if not tries:
            continue
        places = ([i for i, n in enumerate(ns) if n == name] for ns, name in tries)
        matches = next(filter(None, places), [])
        if len(matches) != 1:
            what = f"{column} column {named!r}" if named else f"{column} column"
            shown = ", ".join(repr(name[:80]) for name in names[:40])
            shown += f" and {len(names) - 40} more" if len(names) > 40 else ""
            raise UserError(
                f"{path}: {'more than one' if matches else 'no'} {what} among "
                f"{shown}; name it with --config.{column}_column"
            )
        found[column] = matches[0]
    return found
