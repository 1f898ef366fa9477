"""Turns examples into batches of few static shapes.

The examples of a batch are sorted by length and dealt out, like cards, to its *parts*:
one for each device, or several that a device works through in turn. Every part has the
same *tiers* (see `tiering`). The host only picks examples: the clicks are on the
devices, which look the prefixes up by start and length.

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
    tier_layout,
)
from srgnn_jax.model.graph import AnyArray

# Sessions padded to one length: item ids [b, L], 0 = padding, and lengths [b].
Tier = tuple[Int[AnyArray, "_ _"], Int[AnyArray, " _"]]


@flax.struct.dataclass
class Batch:
    """What a step needs to know about a batch besides the clicks; int32 arrays [N, R].

    Stacked batches have arrays [S, N, R], of which the first `count` are used.
    """

    start: Any  # the index of each prefix's first click
    length: Any  # the number of its clicks; 0: a padding row
    example: Any  # the example's number
    layout: Layout = flax.struct.field(pytree_node=False)
    count: Any = None

    @property
    def examples(self) -> int:
        """The number of examples; on the host only."""
        return int(np.count_nonzero(self.length))


class Part(NamedTuple):
    """A part of a batch, as the model takes it."""

    tiers: tuple[Tier, ...]  # padding at the end only, lengths >= 1
    target: Int[Array, " R"]
    example: Int[Array, " R"]
    weight: Float[Array, " R"]  # 0 for padding rows, else 1


def stack(several: Sequence[Batch], size: int) -> Batch:
    """Stacks at most `size` batches of one layout, for one call of several steps."""
    padded = [*several] + [several[-1]] * (size - len(several))
    stacked = jax.tree.map(lambda *each: np.stack(each), *padded)
    return dataclasses.replace(stacked, count=np.int32(len(several)))


def in_calls(
    batches: Iterable[Batch], most: Callable[[], int]
) -> Iterator[list[Batch]]:
    """Groups successive batches of one layout; `most()` limits the next group."""
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
    """Looks up the clicks of part n of a batch, on the device."""
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
    return Part(tuple(tiers), target, example, (length > 0).astype(jnp.float32))


def sum_over_parts(
    function: Callable[[Part], Any], clicks: Int[AnyArray, " C"], batch: Batch
) -> Any:
    """Sums what a function returns for each part of a batch, one after another."""

    def value(n):
        return function(gather_part(clicks, batch, n))

    def add(n, total):
        return jax.tree.map(jnp.add, total, value(n))

    if len(batch.start) == 1:
        return value(0)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(value, 0))
    return jax.lax.fori_loop(0, len(batch.start), add, zeros)


def map_parts(
    function: Callable[[Part], Any], clicks: Int[AnyArray, " C"], batch: Batch
) -> Any:
    """Stacks what a function returns for each part of a batch, one after another."""
    numbers = jnp.arange(len(batch.start))
    return jax.lax.map(lambda n: function(gather_part(clicks, batch, n)), numbers)


def own_clicks(
    clicks: Int[np.ndarray, " C"], batch: Batch
) -> tuple[Int[np.ndarray, " c"], Batch]:
    """Cuts out a batch's clicks, for devices that cannot hold all clicks.

    Their number depends on the layout alone. The starts of the returned batch are
    indices of the returned clicks.
    """
    width = np.tile(_widths(batch.layout) + 1, len(batch.start))
    end = np.cumsum(width)
    first = end - width
    index = np.arange(end[-1]) + np.repeat(batch.start.reshape(-1) - first, width)
    start = first.astype(np.int32).reshape(batch.start.shape)
    own = clicks[np.minimum(index, len(clicks) - 1)]
    return own, dataclasses.replace(batch, start=start)


def _widths(layout: Layout) -> Int[np.ndarray, " R"]:
    """Returns the length that each row is padded to."""
    rows, length = np.array(layout).T
    return np.repeat(length, rows)


def make_batch(
    examples: Examples,
    chosen: Int[np.ndarray, " n"],
    layouts: Sequence[Layout],
    parts: int = 1,
) -> Batch:
    """Deals the chosen examples, given by number, out to the parts of a batch.

    The batch gets the first layout that it fits; the last must fit any batch. All
    layouts have the same number of rows, at least the number of examples over parts.
    """
    rows = sum(n for n, _ in layouts[0])
    lengths = examples.lengths[chosen]
    # Padding rows come first: they are the shortest.
    order = np.full(parts * rows, -1, np.int64)
    order[order.size - chosen.size :] = np.argsort(lengths, kind="stable")
    dealt = order.reshape(rows, parts).T
    number = chosen[dealt]
    length = np.where(dealt >= 0, lengths[dealt], 0).astype(np.int32)
    longest = length.max(axis=0)
    fitting = (layout for layout in layouts if (longest <= _widths(layout)).all())
    start = examples.starts[number]
    # Only `own_clicks` can use starts beyond int32.
    if len(examples.items) < 2**31:
        start = start.astype(np.int32)
    return Batch(start, length, number.astype(np.int32), next(fitting))


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
    """Returns an epoch's batches, in an order that depends only on (seed, epoch).

    Every example is in one batch of `batch_size`; the last may have fewer. An
    interrupted epoch resumes at `first_step`. For the other arguments see
    `choose_layout`.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    starts = range(first_step * batch_size, len(examples), batch_size)
    chosen = (order[start : start + batch_size] for start in starts)
    return batches_of(examples, chosen, batch_size, shards, max_positions, tiering)


def batches_of(
    examples: Examples,
    chosen: Iterable[Int[np.ndarray, " n"]],
    batch_size: int,
    shards: int = 1,
    max_positions: int = 2**30,
    tiering: Tiering = TIERING,
) -> Iterator[Batch]:
    """Yields a batch for each array of at most `batch_size` example numbers."""
    lengths = examples.lengths
    layout, parts = choose_layout(
        lengths, batch_size, shards, max_positions, tiering=tiering
    )
    layouts = [layout]
    if tiering.overflow > NEVER and len(layout) > 1:
        # Some batches do not fit the first layout; they are expected to fit this one.
        roomier = tiering._replace(overflow=NEVER, most=2)
        layouts.append(tier_layout(lengths, batch_size, parts, roomier))
    layouts.append(((sum(n for n, _ in layout), int(lengths.max())),))
    for numbers in chosen:
        yield make_batch(examples, numbers, layouts, parts)


def one_of_each_layout(
    batches: Iterable[Batch], tiering: Tiering = TIERING
) -> list[Batch]:
    """Returns the first batch of each layout, to compile for them ahead of time.

    If no batch is expected to overflow, the first has the layout of all.
    """
    found: dict[Layout, Batch] = {}
    for batch in itertools.islice(batches, 1 if tiering.overflow <= NEVER else None):
        found.setdefault(batch.layout, batch)
    return list(found.values())


def eval_batches(
    examples: Examples,
    batch_size: int,
    shards: int = 1,
    max_positions: int = 2**30,
    max_rows: float | int = math.inf,
    tiering: Tiering = TIERING,
) -> Iterator[Batch]:
    """Yields all examples once, in batches of one shape.

    The examples are first dealt out to parts of at most `max_positions` and `max_rows`.
    `batch_size`, rounded up to whole parts for each shard, and `shards` only decide how
    many parts make a batch. An example is therefore always computed together with the
    same others, in the same place; the rounding of a matrix product depends on both.
    """
    layout, parts = choose_layout(
        *(examples.lengths, len(examples), 1, max_positions, max_rows, tiering),
        by_chance=False,
    )
    whole = make_batch(examples, np.arange(len(examples)), (layout,), parts)
    each = -(-min(batch_size, len(examples)) // (whole.start.shape[1] * shards))
    # Slightly smaller batches, if fewer parts are then empty.
    sizes = [n * shards for n in range(each, each // 2, -1)]
    size = min(sizes, key=lambda size: -parts % size)
    whole = jax.tree.map(lambda x: np.pad(x, [(0, -parts % size), (0, 0)]), whole)
    for first in range(0, parts, size):
        yield jax.tree.map(lambda x, n=first: x[n : n + size], whole)
