"""Functions that the sources of ready-made splits share."""

from collections.abc import Iterable, Mapping

import polars as pl

from srgnn_jax.data.counts import count
from srgnn_jax.data.sessions import Dataset, Sessions, Vocabulary
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError

# Names of the validation split.
VALIDATION = ("validation", "valid", "val", "dev")


def refuse(
    settings: Settings, names: Iterable[str], what: str, *presets: Settings
) -> None:
    """Raises UserError if one of these settings is not as in one of the presets.

    Such a setting would change nothing; `what` completes the reason "the data set is".
    Without presets, settings must be at their defaults.
    """
    for name in sorted(names):
        value = getattr(settings, name)
        usual = [getattr(preset, name) for preset in presets or [Settings()]]
        if value not in usual:
            raise UserError(
                f"config.{name} is {value!r}, which would change nothing: the data set "
                f"is {what}; leave it at {usual[0]!r}"
            )


def number_items(
    clicks: Mapping[str, pl.Series], first: Iterable[pl.Series], last_only: bool
) -> Dataset:
    """Numbers the items of splits from 1, by first appearance, and counts.

    Args:
      clicks: the sessions of each split: lists of item ids as text, none empty.
      first: ids that are numbered before all others.
      last_only: whether only the last click of a session is a target.
    """
    ids = {split: sessions.explode() for split, sessions in clicks.items()}
    known = pl.concat([*first, *ids.values()]).unique(maintain_order=True)
    splits = {}
    for split, sessions in clicks.items():
        rows = ids[split].cast(pl.Enum(known)).to_physical().cast(pl.Int32).to_numpy()
        lengths = sessions.list.len().cast(pl.Int64).to_numpy()
        splits[split] = Sessions.from_lengths(rows + 1, lengths, last_only)
    vocabulary = Vocabulary(known.to_list())
    return Dataset(splits, vocabulary, count(splits, vocabulary))
