"""Examples -> batches of few static shapes.

Most sessions are short: padding a batch to its longest one would spend nearly all
work on padding. A batch is therefore sorted by length and cut into *tiers*, each padded
to its own length; the layout, (rows, length) per tier, is chosen once for the data, so
that nearly all training batches have the same shapes. One in hundreds takes a roomier
layout, and what does not fit that either, one tier of the greatest length. Which
examples share a batch is untouched by this.

A batch is also cut into *parts* of the same layout: as many as there are devices, or a
multiple of it, where a device works through its parts one after another, so that what
it holds at a time stays small. Sorted examples are dealt out to the parts like cards.

The host only chooses and indexes: what travels is where each prefix starts in the flat
array of clicks, which lies on the devices, and how long it is; the device gathers.

Axes: E examples, C clicks, N parts of a batch, R rows of a part, L positions.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from srgnn_jax.data.sessions import Examples
from srgnn_jax.data.tiering import (
    NEVER,
    TIERING,
    Layout,
    Tiering,
    choose_layout,
    train_layouts,
)
from srgnn_jax.model.graph import AnyArray

# Sessions padded to one length: item ids [b, L], 0 = padding, and lengths [b].
Tier = tuple[Int[AnyArray, "_ _"], Int[AnyArray, " _"]]


@flax.struct.dataclass
class Batch:
    """What a step needs to know of a batch, beside the clicks.

    The arrays are [N, R], int32.

    Attributes:
      start: first click of each prefix, an index into the clicks.
      length: number of its clicks, 0 for a row that only fills up the batch.
      example: the example's number.
      layout: how the rows of a part are padded.
      count: None; of stacked batches, whose arrays are [S, N, R], how many count.
    """

    start: Any
    length: Any
    example: Any
    layout: Layout = flax.struct.field(pytree_node=False)
    count: Any = None

    @property
    def examples(self) -> int:
        """How many examples the batch holds; on the host only."""
        return int(np.count_nonzero(self.length))


class Part(NamedTuple):
    """A part of a batch, as the model takes it.

    Attributes:
      tiers: item ids [b, L], 0 = padding at the end, and lengths [b] >= 1 of each tier.
      target: the item that was clicked next.
      example: the example's number.
      weight: 1 for an example, 0 for a row that only fills up.
    """

    tiers: tuple[Tier, ...]
    target: Int[Array, " R"]
    example: Int[Array, " R"]
    weight: Float[Array, " R"]


def stack(several: Sequence[Batch], size: int) -> Batch:
    """Stacks at most `size` batches of one layout, for one call of several steps."""
    filled_up = [*several] + [several[-1]] * (size - len(several))
    stacked = jax.tree.map(lambda *each: np.stack(each), *filled_up)
    return dataclasses.replace(stacked, count=np.int32(len(several)))


def in_calls(
    batches: Iterable[Batch], most: Callable[[], int]
) -> Iterator[list[Batch]]:
    """Groups batches that follow each other and have one layout.

    Args:
      batches: the batches.
      most: tells, before each group, how many it may have.
    """
    group: list[Batch] = []
    room = 0
    for batch in batches:
        if group and (len(group) == room or batch.layout != group[0].layout):
            yield group
            group = []
        if not group:
            room = most()
        group.append(batch)
    if group:
        yield group


def gather_part(clicks: Int[AnyArray, " C"], batch: Batch, n: int | Array) -> Part:
    """Looks up what part n of a batch was clicked, on the device."""
    clicks = jnp.asarray(clicks)
    start, length, example = (
        jnp.asarray(x)[n] for x in (batch.start, batch.length, batch.example)
    )
    tiers, row = [], 0
    for rows, width in batch.layout:
        part = slice(row, row + rows)
        row += rows
        position = jnp.arange(width)
        item_seq = clicks.at[start[part, None] + position].get(mode="clip")
        is_click = position < length[part, None]
        tiers.append((jnp.where(is_click, item_seq, 0), jnp.maximum(length[part], 1)))
    target = jnp.where(length > 0, clicks.at[start + length].get(mode="clip"), 1)
    weight = (length > 0).astype(jnp.float32)
    return Part(tuple(tiers), target, example, weight)


def sum_over_parts(
    function: Callable[[Part], Any], clicks: Int[AnyArray, " C"], batch: Batch
) -> Any:
    """Sums what a function returns for each part of a batch, one after another."""
    parts = batch.start.shape[0]

    def value(n):
        return function(gather_part(clicks, batch, n))

    if parts == 1:
        return value(0)

    def add(n, total):
        return jax.tree.map(jnp.add, total, value(n))

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value, 0)
    )
    return jax.lax.fori_loop(0, parts, add, zeros)


def map_parts(
    function: Callable[[Part], Any], clicks: Int[AnyArray, " C"], batch: Batch
) -> Any:
    """Stacks what a function returns for each part of a batch, one after another."""
    return jax.lax.map(
        lambda n: function(gather_part(clicks, batch, n)),
        jnp.arange(batch.start.shape[0]),
    )


def own_clicks(
    clicks: Int[np.ndarray, " C"], batch: Batch
) -> tuple[Int[np.ndarray, " c"], Batch]:
    """Cuts out the clicks of one batch, where all of them are too many for a device.

    Returns:
      The batch's clicks, of a size that the layout alone determines, and the batch with
      its starts in them.
    """
    parts = batch.start.shape[0]
    width = np.repeat(*np.array(batch.layout).T[::-1]) + 1
    offset = np.concatenate([[0], np.cumsum(np.tile(width, parts))])
    start = offset[:-1].astype(np.int32).reshape(batch.start.shape)
    position = np.arange(offset[-1]) - np.repeat(offset[:-1], np.tile(width, parts))
    index = np.repeat(batch.start.reshape(-1), np.tile(width, parts)) + position
    return clicks[np.minimum(index, len(clicks) - 1)], dataclasses.replace(
        batch, start=start
    )


def make_batch(
    examples: Examples,
    chosen: Int[np.ndarray, " n"],
    layouts: Sequence[Layout],
    parts: int = 1,
) -> Batch:
    """Deals the chosen examples out to the parts of a batch.

    Args:
      examples: where they come from.
      chosen: example numbers, at most `parts` times the layout's rows.
      layouts: the layouts to try, in this order; the last must hold any example. All
        have the same number of rows.
      parts: parts of the batch.
    """
    rows = sum(tier_rows for tier_rows, _ in layouts[0])
    lengths = examples.lengths[chosen]
    # Rows that only fill up come first: they are the shortest. The rest is dealt out
    # like cards, so that every part gets short and long ones alike.
    order = np.full(parts * rows, -1, np.int64)
    order[order.size - chosen.size :] = np.argsort(lengths, kind="stable")
    dealt = order.reshape(rows, parts).T
    number = chosen[dealt]
    length = np.where(dealt >= 0, lengths[dealt], 0).astype(np.int32)
    longest = length.max(axis=0)
    layout = next(
        layout for layout in layouts if layout is layouts[-1] or _fits(longest, layout)
    )
    # Beyond int32 only `own_clicks` can follow.
    start = examples.starts[number]
    if len(examples.items) < 2**31:
        start = start.astype(np.int32)
    return Batch(
        start=start,
        length=length,
        example=number.astype(np.int32),
        layout=layout,
    )


def _fits(longest: Int[np.ndarray, " R"], layout: Layout) -> bool:
    ends = np.cumsum([tier_rows for tier_rows, _ in layout])
    return all(longest[ends - 1] <= [tier_length for _, tier_length in layout])


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of batches in an epoch, the last partial one included."""
    return -(-num_examples // batch_size)


def train_batches(
    examples: Examples,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    shards: int = 1,
    max_positions: int = 2**30,
    tiering: Tiering = TIERING,
) -> Iterator[Batch]:
    """Returns an epoch's batches, in an order that (seed, epoch) alone determine.

    Args:
      examples: the training examples; each is in exactly one batch of the epoch.
      batch_size: examples in a batch over all shards; the last batch may have fewer.
      seed: of the run.
      epoch: counted from 0.
      first_step: skips this many batches: where an interrupted epoch goes on.
      shards: number of devices that share a batch; it has a multiple of so many parts.
      max_positions: positions that a device holds at a time; see `choose_layout`.
      tiering: how tiers are chosen.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    starts = range(first_step * batch_size, len(examples), batch_size)
    chosen = (order[start : start + batch_size] for start in starts)
    return batches_of(examples, chosen, batch_size, shards, max_positions, tiering)


def one_of_each_layout(
    batches: Iterable[Batch], tiering: Tiering = TIERING
) -> list[Batch]:
    """Returns the first batch of each layout, to compile for them beforehand.

    Where no batch is expected to overflow, the first tells the layout of all.
    """
    found: dict[Layout, Batch] = {}
    for batch in itertools.islice(batches, 1 if tiering.overflow <= NEVER else None):
        found.setdefault(batch.layout, batch)
    return list(found.values())


def batches_of(
    examples: Examples,
    chosen: Iterable[Int[np.ndarray, " n"]],
    batch_size: int,
    shards: int = 1,
    max_positions: int = 2**30,
    tiering: Tiering = TIERING,
) -> Iterator[Batch]:
    """Yields a batch of each choice of examples.

    Args:
      examples: where they come from.
      chosen: example numbers of each batch, at most `batch_size`.
      batch_size: see `train_batches`.
      shards: see `train_batches`.
      max_positions: see `train_batches`.
      tiering: how tiers are chosen.
    """
    layouts, parts = train_layouts(
        examples.lengths, batch_size, shards, max_positions, tiering
    )
    for numbers in chosen:
        yield make_batch(examples, numbers, layouts, parts)


def eval_batches(
    examples: Examples,
    batch_size: int,
    shards: int = 1,
    max_positions: int = 2**30,
    max_rows: float | int = math.inf,
    tiering: Tiering = TIERING,
) -> Iterator[Batch]:
    """Yields all examples once, in batches of one shape.

    The examples are dealt out to the parts once, whatever `batch_size` and `shards`
    are: these only say how many parts make a batch. What is computed for an example is
    then computed beside the same others, in the same place, for every choice of them:
    a matrix product rounds a row by its place among the others.

    Args:
      examples: what is evaluated.
      batch_size: examples of a batch, rounded up to whole parts for each shard.
      shards: number of devices that share a batch; it has a multiple of so many parts.
      max_positions: positions of a part; see `choose_layout`.
      max_rows: rows of a part.
      tiering: how tiers are chosen.
    """
    layout, parts = choose_layout(
        examples.lengths,
        len(examples),
        1,
        max_positions,
        max_rows,
        tiering,
        by_chance=False,
    )
    whole = make_batch(examples, np.arange(len(examples)), (layout,), parts)
    each = -(-min(batch_size, len(examples)) // (whole.start.shape[1] * shards))
    # Somewhat smaller batches where fewer parts are then empty.
    sizes = [n * shards for n in range(each, each // 2, -1)]
    size = min(sizes, key=lambda size: -parts % size)
    whole = jax.tree.map(lambda x: np.pad(x, [(0, -parts % size), (0, 0)]), whole)
    for first in range(0, parts, size):
        yield jax.tree.map(lambda x, n=first: x[n : n + size], whole)
