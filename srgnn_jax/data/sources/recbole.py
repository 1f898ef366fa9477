"""RecBole's atomic .inter files, under its leave-one-out protocol.

Its numbers can be compared with RecBole's own only if the same clicks are trained and
tested on, so that what RecBole does is followed to the letter, its rounding of times
included (see `time_key`). Axes: C clicks, U users.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int

from srgnn_jax.data.columns import Columns
from srgnn_jax.data.counts import count
from srgnn_jax.data.prepare import number_values
from srgnn_jax.data.read import read_header
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError

INSTRUCTIONS = (
    "Put one file there of RecBole's atomic form, such as ml-100k.inter, which the "
    "recbole package holds in recbole/dataset_example/ml-100k."
)
SETTINGS = (
    source.ROW_SETTINGS
    | source.COLUMN_SETTINGS
    | {"log_file", "separator", "recbole_time"}
)
PRESETS = {"default": Settings()}


def source_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Returns the .inter file that is named, or the only one in the folder."""
    return [source.find_file(folder, "*.inter", INSTRUCTIONS, settings.log_file)]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the file and holds out each user's last two clicks."""
    separator = settings.separator or "\t"
    columns = usual_columns(read_header(files[0], separator), settings.columns)
    split = functools.partial(leave_one_out, kind=settings.recbole_time)
    return source.read_log(
        files[0], settings, columns, separator=separator, split=split
    )


def usual_columns(header: Sequence[str], named: Columns) -> Columns:
    """Returns the columns that are named, the others by RecBole's usual names."""
    names = {name.rpartition(":")[0] or name for name in header}
    session = "user_id"
    if session not in names and "session_id" in names:
        session = "session_id"
    return Columns(
        named.session or session, named.item or "item_id", named.time or "timestamp"
    )


def time_key(time: Int[np.ndarray, " C"], kind: str) -> np.ndarray:
    """Returns what clicks are sorted by: times as exact as RecBole has them.

    RecBole holds every number in single precision. Times in seconds since 1970 are then
    64 or 128 seconds apart, and those between are ties, which keep the order of the
    file. Its own settings for ml-100k scale times to [0, 1] first (`normalize_all`),
    which leaves steps of a second or so.

    Args:
      time: microseconds since 1970.
      kind: "exact"; "float32", what RecBole does unless told otherwise; or
        "normalized", what it does under `normalize_all`.
    """
    if kind == "exact":
        return time
    if kind == "float32":
        return (time / 1e6).astype(np.float32)
    span = max(int(time.max() - time.min()), 1)
    return ((time - time.min()) / span).astype(np.float32)


def leave_one_out(clicks: pl.DataFrame, kind: str) -> Dataset:
    """Splits each user's clicks by time: the last tests, the one before validates.

    As in RecBole, users of three clicks have no validation example, and those of two
    only train. Every item counts; items are numbered from 1, and users ordered, by
    first appearance in the file.

    Args:
      clicks: in file order; see `read.read_clicks`.
      kind: how times are compared; see `time_key`.

    Raises:
      UserError: no user has three clicks.
    """
    user, _ = number_values(clicks["session"])
    item, item_ids = number_values(clicks["item"])
    order = np.lexsort((time_key(clicks["time"].to_numpy(), kind), user))
    lengths = np.bincount(user)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    users = Sessions((item[order] + 1).astype(np.int32), offsets)
    if lengths.max() < 3:
        raise UserError(
            f"no user has three clicks, of {len(users)} users with {len(clicks)} "
            "clicks: nothing can be held out for the test"
        )
    held_out = np.clip(lengths - 2, 0, 2)
    splits = {
        "train": _first_clicks(users, np.where(lengths > 1, lengths - held_out, 0)),
        "validation": _first_clicks(users, np.where(held_out == 2, lengths - 1, 0)),
        "test": _first_clicks(users, np.where(held_out > 0, lengths, 0)),
    }
    for split in ("validation", "test"):
        pairs = splits[split]
        splits[split] = Sessions(pairs.items, pairs.offsets, last_only=True)
    vocabulary = Vocabulary(item_ids.to_list())
    counts = count(splits, vocabulary)
    counts["clicks"] = counts["raw_clicks"] = len(clicks)
    return Dataset(splits, vocabulary, counts)


def _first_clicks(users: Sessions, kept: Int[np.ndarray, " U"]) -> Sessions:
    """Cuts each session to its first `kept` clicks; those of none are left out."""
    position = np.arange(len(users.items)) - np.repeat(
        users.offsets[:-1], users.lengths
    )
    items = users.items[position < np.repeat(kept, users.lengths)]
    lengths = kept[kept > 0]
    return Sessions(items, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
