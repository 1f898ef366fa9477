"""Warm start: a run starts from what another run, its parent, has learnt.

The item table is matched by raw id. Items that the parent has too keep their parameters
and both of Adam's moments; the others start by `config.new_items`, with moments of 0.
Everything else is the parent's, including Adam's step count. The run's own steps and
epochs start at 0.

Axes: V item rows of this run, P of the parent, D embedding, N new items.
"""

import contextlib
import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from scipy import sparse

from srgnn_jax import config as config_lib
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError, differences
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite
from srgnn_jax.runs.progress import Progress, model_name
from srgnn_jax.runs.workdir import load_vocabulary
from srgnn_jax.train.step import TrainState

# Values to set in rows: for each row the index of its values, or -1 if it has none.
Rows = tuple[Int[np.ndarray, "_"], Float[np.ndarray, "_ D"]]


@dataclasses.dataclass(frozen=True)
class Parent:
    """The run that another one starts from.

    Attributes:
      folder: its workdir.
      progress: of its best checkpoint, which is used; if no epoch is complete yet, of
        the last one.
      checksum: of that checkpoint.
      rows: for each row of the new run, row 0 included, the row in the parent's table;
        -1 for new items.
    """

    folder: pathlib.Path
    progress: Progress
    checksum: str
    rows: Int[np.ndarray, " V"]

    def hand_on(self, progress: Progress, schedule: str) -> Progress:
        """Returns the progress of a run that starts from this one.

        Its `parents` lists each run that it descends from, newest first, with the
        numbers of items kept, new and gone when the run after it started.
        """
        own = self.progress
        kept = np.unique(self.rows[self.rows > 0]).size
        born = {
            "workdir": self.folder.name,
            "step": own.step,
            "epoch": own.epoch,
            "checksum": self.checksum,
            "data": own.data,
            "vocabulary": own.vocabulary,
            "kept_items": kept,
            "new_items": int(np.count_nonzero(self.rows < 0)),
            "gone_items": own.num_items - 1 - kept,
        }
        first = own.first_epoch + own.epoch if schedule == "go_on" else 0
        parents = [born, *own.parents]
        return dataclasses.replace(progress, first_epoch=first, parents=parents)


def find_parent(
    config: ConfigDict, workdir: pathlib.Path, model: nn.Module, vocabulary: Vocabulary
) -> Parent:
    """Finds the run that `config.warm_start` names, and matches its items by raw id.

    Raises:
      UserError: there is no such run, it is this one, its network differs, or its
        checkpoint or vocabulary is damaged.
    """
    # All files are of one run, even if a link is switched now.
    folder = pathlib.Path(config.warm_start).expanduser().resolve()
    where = f"config.warm_start is {config.warm_start!r}"
    if folder == workdir.resolve():
        raise UserError(f"{where}, the run's own workdir; choose another --workdir")
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        progress = checkpoints.progress()
        if progress.best_step:
            progress = checkpoints.progress(progress.best_step)
        checksum = checkpoints.checksum(progress.step)
    own = config_lib.from_dict(progress.config)
    networks = [
        {**{f"config.{k}": one[k] for k in config_lib.NETWORK_FIELDS}, "model": name}
        for one, name in ((own, progress.model), (config, model_name(model)))
    ]
    if found := differences(*networks):
        raise UserError(
            f"{where}, a run of another network; use its settings, or train from "
            f"scratch: {found}"
        )
    rows = load_vocabulary(folder, progress.vocabulary).rows(vocabulary.ids)
    rows = np.append(0, np.where(rows > 0, rows, -1))
    return Parent(folder, progress, checksum, rows)


def begin(
    parent: Parent,
    state: TrainState,
    devices: layouts.Devices,
    sessions: Sessions,
    new_items: str,
) -> TrainState:
    """Returns the state before the first step of a run that starts from its parent.

    Each device gets its own rows of the tables; the parent's are read as a whole.

    Args:
      parent: what `find_parent` returned.
      state: the state as drawn, laid out for the devices.
      devices: those of the run.
      sessions: the training sessions, which determine which items are neighbours.
      new_items: the rule of `config.new_items`.

    Raises:
      UserError: the parent's arrays have other names or shapes, or are not finite.
    """
    latest, state = state.latest, state._replace(latest=())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    if parent.progress.config.get("averaging"):
        shapes = shapes._replace(latest=shapes.params)
    step = parent.progress.step
    with contextlib.closing(Checkpoints(parent.folder)) as checkpoints:
        old = checkpoints.restore(shapes, step)
    try:
        check_finite(old.params)
    except ValueError as error:
        raise UserError(
            f"config.warm_start: the checkpoint of step {step} is unusable: {error}"
        ) from None
    decay, adam, schedule = state.opt_state
    _, old_adam, _ = old.opt_state
    means: list[Rows] = []
    if new_items == "neighbours":
        means = [neighbour_means(sessions, parent.rows, old.params["item_embedding"])]

    def carry(drawn: Any, old: Any, *others: Rows) -> Any:
        def leaf(path, drawn, old):
            if layouts.is_table(path):
                return _set_rows(drawn, (parent.rows, old), *others)
            shape, sharding = drawn.shape, drawn.sharding
            return jax.make_array_from_callback(shape, sharding, lambda at: old[at])

        return jax.tree_util.tree_map_with_path(leaf, drawn, old)

    params = carry(state.params, old.params, *means)
    adam = carry(adam, old_adam)
    # Averages start again from what the parent has learnt.
    latest = carry(latest, old.params, *means) if latest else ()
    return devices.lay_out(
        state._replace(params=params, opt_state=(decay, adam, schedule), latest=latest)
    )


def neighbour_means(
    sessions: Sessions, rows: Int[np.ndarray, " V"], table: Float[np.ndarray, "P D"]
) -> Rows:
    """Returns, for new items, the mean of the items clicked just before and after them.

    Each such click counts. New items that are next to none of the parent's items are
    left out.

    Args:
      sessions: sessions of the new run's item rows.
      rows: for each row of the new run, the row in `table`; -1 for new items.
      table: the parent's.
    """
    items = sessions.items
    is_last = np.zeros(len(items), bool)
    is_last[sessions.offsets[1:][sessions.lengths > 0] - 1] = True
    pairs = np.stack([items[:-1], items[1:]])[:, ~is_last[:-1]]
    new, adjacent = np.concatenate([pairs, pairs[::-1]], axis=1)
    chosen = (rows[new] < 0) & (rows[adjacent] >= 0)
    found, number = np.unique(new[chosen], return_inverse=True)
    ones = np.ones(len(number), np.float32)
    counts = sparse.csr_array(
        (ones, (number, rows[adjacent[chosen]])), shape=(len(found), len(table))
    )
    where = np.full(len(rows), -1)
    where[found] = np.arange(len(found))
    total = np.bincount(number, minlength=len(found)).astype(table.dtype)
    return where, (counts @ table) / total[:, None]


def _set_rows(drawn: jax.Array, *several: Rows) -> jax.Array:
    """Returns a table, which may be split over devices, with some rows set."""
    shards = []
    for shard in drawn.addressable_shards:
        values = np.array(shard.data)
        for rows, source in several:
            # The last rows of a split table may be padding.
            missing = len(drawn) - len(rows)
            where = np.pad(rows, (0, missing), constant_values=-1)[shard.index[0]]
            values[where >= 0] = source[where[where >= 0]]
        shards.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(drawn.shape, drawn.sharding, shards)


def line(progress: Progress) -> str:
    """Returns one line on what a run starts from."""
    parent = progress.parents[0]
    counts = ", ".join(f"{parent[f'{n}_items']:,} {n}" for n in ("kept", "new", "gone"))
    return (
        f"warm start from {parent['workdir']}, step {parent['step']}, "
        f"epoch {parent['epoch']}: items {counts}"
    )
