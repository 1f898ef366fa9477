"""RecBole's atomic .inter files: a log under its leave-one-out protocol, or splits.

Results can be compared with RecBole's only if both train and test on the same clicks:
its protocol is followed exactly, including its rounding of times.
"""

import dataclasses
import pathlib

import numpy as np
import polars as pl
from jaxtyping import Int

from srgnn_jax.data.counts import count
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources import recbole_splits, source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.data.visits import group_by_session
from srgnn_jax.errors import UserError

INSTRUCTIONS = (
    "Put one file there in RecBole's atomic format, such as ml-100k.inter, which is in "
    "recbole/dataset_example/ml-100k of the recbole package; or ready-made splits, "
    "such as tmall.train.inter, tmall.valid.inter and tmall.test.inter."
)
FILES = ("*.inter",)
SETTINGS = source.LOG_SETTINGS | {"recbole_time"}
PRESETS = {"default": Settings()}
# RecBole's names, as `columns.plain_name` spells them.
USUAL_NAMES = {
    "session": ("userid", "sessionid"),
    "item": ("itemid",),
    "time": ("timestamp",),
}


find_files = recbole_splits.find_files


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the file and holds out each user's last two clicks, or reads the splits."""
    if recbole_splits.split_of(files[0]):
        return recbole_splits.read(files, settings)
    form = dataclasses.replace(
        settings.form, usual=USUAL_NAMES, separator=settings.separator or "\t"
    )
    return source.read_log(files, form, leave_one_out, kind=settings.recbole_time)


def time_key(time: Int[np.ndarray, " C"], kind: str) -> np.ndarray:
    """Returns the key that clicks are sorted by: times [C], rounded as by RecBole.

    The `kind` is "exact"; "float32", RecBole's default, which rounds seconds since 1970
    to steps of 64 or 128, so that close times are ties, in file order; or "normalized",
    which scales times to [0, 1] first and leaves steps of about a second: RecBole's
    `normalize_all`, as in its settings for ml-100k. Times are in microseconds.
    """
    if kind == "exact":
        return time
    if kind == "float32":
        return (time / 1e6).astype(np.float32)
    span = max(int(time.max() - time.min()), 1)
    return ((time - time.min()) / span).astype(np.float32)


def leave_one_out(clicks: pl.DataFrame, kind: str) -> Dataset:
    """Splits each user's clicks by time: the last for test, the one before to validate.

    As in RecBole, users with three clicks have no validation example, and those with
    two are only for training. No item is dropped; items are numbered from 1, and users
    ordered, by first appearance in the file (see `read.read_clicks`). For `kind` see
    `time_key`. Raises UserError if no user has three clicks.
    """
    time = time_key(clicks["time"].to_numpy(), kind)
    users, _, item_ids = group_by_session(clicks, time)
    if users.lengths.max() < 3:
        raise UserError(
            f"no user has three clicks, of {len(users)} users with {len(clicks)} "
            "clicks: nothing can be held out for the test"
        )
    lengths = np.repeat(users.lengths, users.lengths)
    held_out = np.clip(lengths - 2, 0, 2)
    place = np.arange(len(clicks)) - np.repeat(users.offsets[:-1], users.lengths)
    kept = {
        "train": (lengths > 1) & (place < lengths - held_out),
        "validation": (held_out == 2) & (place < lengths - 1),
        "test": held_out > 0,
    }
    splits = {}
    for split, clicks_of in kept.items():
        part, _ = users.keep(clicks_of)
        splits[split] = Sessions(part.items + 1, part.offsets, split != "train")
    vocabulary = Vocabulary(item_ids.cast(pl.String).to_list())
    counts = count(splits, vocabulary)
    counts["clicks"] = counts["raw_clicks"] = len(clicks)
    return Dataset(splits, vocabulary, counts)
