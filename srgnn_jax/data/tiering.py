"""How a batch is cut into tiers: groups of sessions, each padded to one length.

Axes: E examples.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import special

# (rows, length) of each tier of a part, shortest first.
Layout = tuple[tuple[int, int], ...]


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
