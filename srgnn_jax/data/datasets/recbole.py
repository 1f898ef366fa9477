"""RecBole's atomic .inter files, under its leave-one-out protocol.

Its numbers can be compared with RecBole's own only if the same clicks are trained and
tested on, so that what RecBole does is followed to the letter, its rounding of times
included (see `time_key`). Axes: C clicks, U users.
"""

import pathlib

import numpy as np
import polars as pl
from jaxtyping import Int

from srgnn_jax.data.click_log import Columns, first_line, read_click_log
from srgnn_jax.data.datasets.builder import (
    COLUMN_SETTINGS,
    PreparationConfig,
    SessionsBuilder,
    named_file,
    naming,
    the_one_file,
)
from srgnn_jax.data.prepare import Prepared, count, number_values
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.errors import UserError


class RecboleInter(SessionsBuilder):
    """A RecBole data set: each user's clicks, of which the last two are held out."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put one file there of RecBole's atomic form, such as ml-100k.inter, which the "
        "recbole package holds in recbole/dataset_example/ml-100k."
    )

    SETTINGS = (
        SessionsBuilder.SETTINGS
        | COLUMN_SETTINGS
        | {"log_file", "separator", "recbole_time"}
    )

    @classmethod
    def source_files(
        cls, folder: pathlib.Path, config: PreparationConfig
    ) -> list[pathlib.Path]:
        """Returns the .inter file that is named, or the only one in the folder."""
        if config.log_file:
            return [named_file(folder, config.log_file)]
        return [the_one_file(folder, "*.inter", cls.MANUAL_DOWNLOAD_INSTRUCTIONS)]

    @classmethod
    def read(cls, files: list[pathlib.Path], config: PreparationConfig) -> Prepared:
        """Reads the file and holds out each user's last two clicks."""
        separator = config.separator or "\t"
        columns = find_columns(files[0], separator, config.columns)
        clicks, skipped = read_click_log(
            files[0], columns, separator=separator, on_bad_row=config.on_bad_row
        )
        with naming(files[0]):
            prepared = leave_one_out(clicks, config.recbole_time)
        prepared.counts["skipped_rows"] = skipped
        return prepared


def find_columns(path: pathlib.Path, separator: str, named: Columns) -> Columns:
    """Finds the columns by RecBole's usual names, or those that are named.

    Their types (`user_id:token`) may be left out. A column that is not there is
    returned under the name that was looked for.
    """
    header = first_line(path).split(separator)

    def find(name: str, *usual: str) -> str:
        for wanted in [name] if name else usual:
            for column in header:
                if wanted in (column, column.rpartition(":")[0]):
                    return column
        return name or usual[0]

    return Columns(
        session=find(named.session, "user_id", "session_id"),
        item=find(named.item, "item_id"),
        time=find(named.time, "timestamp"),
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


def leave_one_out(clicks: pl.DataFrame, kind: str) -> Prepared:
    """Splits each user's clicks by time: the last tests, the one before validates.

    As in RecBole, users of three clicks have no validation example, and those of two
    only train. Every item counts; items are numbered from 1, and users ordered, by
    first appearance in the file.

    Args:
      clicks: in file order; see `click_log.read_click_log`.
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
    return Prepared(splits, vocabulary, counts)


def _first_clicks(users: Sessions, kept: Int[np.ndarray, " U"]) -> Sessions:
    """Cuts each session to its first `kept` clicks; those of none are left out."""
    position = np.arange(len(users.items)) - np.repeat(
        users.offsets[:-1], users.lengths
    )
    items = users.items[position < np.repeat(kept, users.lengths)]
    lengths = kept[kept > 0]
    return Sessions(items, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
