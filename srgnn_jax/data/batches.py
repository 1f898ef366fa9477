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
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import special

from srgnn_jax.data.sessions import Examples
from srgnn_jax.model.graph import AnyArray

# (rows, length) of each tier of a part, shortest first.
Layout = tuple[tuple[int, int], ...]
# Sessions padded to one length: item ids [b, L], 0 = padding, and lengths [b].
Tier = tuple[Int[AnyArray, "_ _"], Int[AnyArray, " _"]]

# So improbable is a batch that does not fit the roomier layout either.
NEVER = 1e-9


class Tiering(NamedTuple):
    """How tiers are chosen.

    Attributes:
      tier: the cost of each, in the time that one position takes.
      pair: the cost of each pair of positions of a session, likewise.
      overflow: how probable it may be that a batch does not fit, and takes the roomier
        layout.
      most: how many there are, at most.
    """

    tier: float = 0.0
    pair: float = 0.0
    overflow: float = 1e-2
    most: int = 8


TIERING = Tiering()


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


def tier_layout(
    lengths: Int[np.ndarray, " E"],
    batch_size: int,
    parts: int = 1,
    tiering: Tiering = TIERING,
    by_chance: bool = True,
) -> Layout:
    """Chooses the tiers of the parts of a batch of examples with these lengths.

    Of all layouts that hold nearly every batch, it is the one that costs least.

    Args:
      lengths: the lengths of all examples, at least one.
      batch_size: how many are in a batch.
      parts: parts of a batch, which share its long and its short sessions evenly.
      tiering: how they are chosen.
      by_chance: whether batches are drawn; else each holds its share of each length.
    """
    rows = math.ceil(batch_size / parts)
    ends = np.unique(np.geomspace(1, lengths.max(), 64).round().astype(np.int64))
    longer = len(lengths) - np.searchsorted(np.sort(lengths), ends, side="right")
    if by_chance:
        # No more probable than if each example were drawn from all.
        n = np.arange(min(batch_size, len(lengths)))
        beyond = special.bdtrc(n, len(n), longer[:, None] / len(lengths))
        most = (beyond > tiering.overflow / len(ends)).sum(axis=1)
    else:
        # What rounding leaves of a whole number is no row.
        most = np.ceil(batch_size * longer / len(lengths) - 1e-6)
    # Rows that must be kept for sessions that are longer than each possible tier.
    kept = np.minimum(np.ceil(most / parts), rows)
    # cost[k, j]: the least of k + 1 tiers of which the last ends at ends[j].
    cost = np.full((tiering.most, len(ends)), np.inf)
    before = np.zeros((tiering.most, len(ends)), np.int64)
    of_row = ends * (1 + tiering.pair * ends)
    cost[0] = (rows - kept) * of_row
    earlier = np.tri(len(ends), k=-1, dtype=bool).T
    for k in range(1, tiering.most):
        added = (kept[:, None] - kept) * of_row + tiering.tier
        total = np.where(earlier, cost[k - 1][:, None] + added, np.inf)
        before[k], cost[k] = total.argmin(axis=0), total.min(axis=0)
    layout: list[tuple[int, int]] = []
    end = len(ends) - 1
    for k in range(int(cost[:, -1].argmin()), -1, -1):
        start = before[k, end]
        tier_rows = (kept[start] if k else rows) - kept[end]
        layout.append((int(tier_rows), int(ends[end])))
        end = start
    return tuple((n, length) for n, length in reversed(layout) if n)


def num_positions(layout: Layout) -> int:
    """Returns the positions of a part, padding included."""
    return sum(rows * length for rows, length in layout)


def choose_layout(
    lengths: Int[np.ndarray, " E"],
    batch_size: int,
    shards: int,
    max_positions: int,
    max_rows: float | int = math.inf,
    tiering: Tiering = TIERING,
    by_chance: bool = True,
) -> tuple[Layout, int]:
    """Chooses layout and parts so that no part exceeds what a device is to hold.

    Args:
      lengths: the lengths of all examples.
      batch_size: how many are in a batch.
      shards: devices that share a batch.
      max_positions: positions of a part, at most, if one row has no more.
      max_rows: rows of a part, at most.
      tiering: how tiers are chosen.
      by_chance: see `tier_layout`.

    Returns:
      The layout of a part, and the number of parts, a multiple of `shards`.
    """
    each = 1  # Parts of each shard.
    while True:
        layout = tier_layout(lengths, batch_size, shards * each, tiering, by_chance)
        rows = sum(tier_rows for tier_rows, _ in layout)
        need = max(num_positions(layout) / max_positions, rows / max_rows)
        if need <= 1 or rows == 1:
            return layout, shards * each
        each = min(math.ceil(each * need), math.ceil(batch_size / shards))


def train_layouts(
    lengths: Int[np.ndarray, " E"],
    batch_size: int,
    shards: int = 1,
    max_positions: int = 2**30,
    tiering: Tiering = TIERING,
) -> tuple[tuple[Layout, ...], int]:
    """Chooses the layouts that batches of training examples may have.

    Returns:
      The layouts, in the order in which a batch tries them, and the number of parts.
      The last holds any batch; all but it can be expected in an epoch.
    """
    layout, parts = choose_layout(
        lengths, batch_size, shards, max_positions, tiering=tiering
    )
    found = [layout]
    if tiering.overflow > NEVER and len(layout) > 1:
        roomier = tiering._replace(overflow=NEVER, most=2)
        found.append(tier_layout(lengths, batch_size, parts, roomier))
    rows = sum(tier_rows for tier_rows, _ in layout)
    return (*found, ((rows, int(lengths.max())),)), parts


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


def sample_batches(
    examples: Examples,
    batch_size: int,
    shards: int = 1,
    max_positions: int = 2**30,
    tiering: Tiering = TIERING,
) -> Iterator[Batch]:
    """Yields a batch of each layout that can be expected, to compile for."""
    layouts, parts = train_layouts(
        examples.lengths, batch_size, shards, max_positions, tiering
    )
    for layout in layouts[:-1]:
        yield make_batch(examples, np.zeros(1, np.int64), (layout,), parts)


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
