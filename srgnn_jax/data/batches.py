"""Examples -> padded batches of a few static shapes.

Most sessions are short: padding a batch to its longest one would spend nearly all
work on padding. A batch is therefore sorted by length and cut into *tiers*, each padded
to its own length; the layout, (rows, length) per tier, is chosen once for the data, so
that all batches but one in many thousands have the same shapes. The others fall back on
one tier of the greatest length. Which examples share a batch is untouched by this.

A batch is a dict of arrays, all that ever travels to a device:
    tiers: ((item_seq [b, L] int32, item_seq_len [b] int32), ...), sum of b = B
    target: [B] int32
    example: [B] int32, the example's number
    weight: [B] float32, 1 for an example, 0 for a row that only fills up the batch
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from srgnn_jax.data.sessions import Examples

Batch = dict[str, Any]
# (rows, length) of each tier, shortest first.
Layout = tuple[tuple[int, int], ...]

MAX_TIERS = 4
# A tier boundary leaves room for this many standard deviations of the number of longer
# sessions in a batch: about one batch in 30,000 needs the fallback.
TIER_SIGMAS = 4.0
# Evaluation sorts by length: two lengths serve all of its batches.
SHORT_LENGTH = 8


def tier_layout(
    lengths: Int[np.ndarray, " E"], rows: int, max_length: int | None = None
) -> Layout:
    """Chooses the tiers of a batch of `rows` random examples with these lengths.

    Of all layouts of at most `MAX_TIERS` tiers that hold nearly every batch, it is the
    one with the fewest positions, sum of rows * length.

    Args:
      lengths: the lengths of all examples, at least one.
      rows: batch size.
      max_length: the longest tier; the greatest of `lengths` unless given.
    """
    max_length = max_length or int(lengths.max())
    ends = np.unique(np.geomspace(1, max_length, 64).round().astype(np.int64))
    share = np.array([np.mean(lengths > end) for end in ends])
    deviation = np.sqrt(rows * share * (1 - share))
    # Rows that must be kept for sessions that are longer than each possible tier.
    longer = np.minimum(np.ceil(rows * share + TIER_SIGMAS * deviation), rows)
    # cost[k, j]: fewest positions of k + 1 tiers of which the last ends at ends[j].
    cost = np.full((MAX_TIERS, len(ends)), np.inf)
    before = np.zeros((MAX_TIERS, len(ends)), np.int64)
    cost[0] = (rows - longer) * ends
    earlier = np.tri(len(ends), k=-1, dtype=bool).T
    for k in range(1, MAX_TIERS):
        added = (longer[:, None] - longer) * ends
        total = np.where(earlier, cost[k - 1][:, None] + added, np.inf)
        before[k], cost[k] = total.argmin(axis=0), total.min(axis=0)
    tiers = int(cost[:, -1].argmin())
    layout: list[tuple[int, int]] = []
    end = len(ends) - 1
    for k in range(tiers, -1, -1):
        start = before[k, end]
        tier_rows = (longer[start] if k else rows) - longer[end]
        layout.append((int(tier_rows), int(ends[end])))
        end = start
    return tuple((n, length) for n, length in reversed(layout) if n)


def make_batch(
    examples: Examples,
    chosen: Int[np.ndarray, " n"],
    layouts: tuple[Layout, ...],
    shards: int = 1,
) -> Batch:
    """Gathers the chosen examples into one padded batch.

    Args:
      examples: where they come from.
      chosen: example numbers, at most `shards` times the layout's rows.
      layouts: the layouts to try, in this order, for one shard; the last must hold any
        example. All have the same number of rows.
      shards: the batch is laid out for so many devices: each tier and `target` hold the
        rows of shard 0, then those of shard 1, and so on, all of the same shapes.
    """
    rows = sum(tier_rows for tier_rows, _ in layouts[0])
    lengths = examples.lengths[chosen]
    # Fill-up rows come first: they are the shortest. The rest is dealt out like cards,
    # so that every shard gets short and long ones alike.
    order = np.full(shards * rows, -1, np.int64)
    order[order.size - chosen.size :] = np.argsort(lengths, kind="stable")
    dealt = order.reshape(rows, shards)
    real = dealt >= 0
    number = np.where(real, chosen[dealt], 0)
    length = np.where(real, lengths[dealt], 1)
    starts = examples.starts[number]
    longest = length.max(axis=1)
    layout = next(
        layout for layout in layouts if layout is layouts[-1] or _fits(longest, layout)
    )
    tiers = []
    row = 0
    for tier_rows, tier_length in layout:
        part = slice(row, row + tier_rows)
        row += tier_rows
        n, start = length[part].T.reshape(-1), starts[part].T.reshape(-1)
        position = np.arange(tier_length)
        is_click = (position < n[:, None]) & real[part].T.reshape(-1)[:, None]
        index = np.where(is_click, start[:, None] + position, 0)
        item_seq = np.where(is_click, examples.items[index], 0)
        tiers.append((item_seq.astype(np.int32), n.astype(np.int32)))
    target = np.where(real, examples.items[starts + length], 1)
    return {
        "tiers": tuple(tiers),
        "target": target.T.reshape(-1).astype(np.int32),
        "example": number.T.reshape(-1).astype(np.int32),
        "weight": real.T.reshape(-1).astype(np.float32),
    }


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
) -> Iterator[Batch]:
    """Yields an epoch's batches, in an order that (seed, epoch) alone determine.

    Args:
      examples: the training examples; each is in exactly one batch of the epoch.
      batch_size: examples in a batch over all shards; the last batch may have fewer.
      seed: of the run.
      epoch: counted from 0.
      first_step: skips this many batches: where an interrupted epoch goes on.
      shards: number of devices that the batch is laid out for.
    """
    rows = -(-batch_size // shards)
    max_length = int(examples.lengths.max())
    layouts = (
        tier_layout(examples.lengths, rows, max_length),
        ((rows, max_length),),
    )
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    for start in range(first_step * batch_size, len(examples), batch_size):
        yield make_batch(examples, order[start : start + batch_size], layouts, shards)


def eval_batches(
    examples: Examples, batch_size: int, shards: int = 1
) -> Iterator[Batch]:
    """Yields all examples once, shortest first, padded to one of two lengths."""
    rows = -(-batch_size // shards)
    max_length = int(examples.lengths.max())
    short = min(SHORT_LENGTH, max_length)
    layouts = (((rows, short),), ((rows, max_length),))
    order = np.argsort(examples.lengths, kind="stable")
    for start in range(0, len(examples), batch_size):
        yield make_batch(examples, order[start : start + batch_size], layouts, shards)
