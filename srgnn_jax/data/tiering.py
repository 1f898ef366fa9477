"""Tiers: groups of sessions of a batch, each padded to one length.

Most sessions are short: padded to the longest, a batch would be nearly all padding.
Axes: E examples.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy import special

# (rows, length) of each tier of a part, shortest first.
Layout = tuple[tuple[int, int], ...]

# The probability that a batch does not even fit the roomier layout.
NEVER = 1e-9


class Tiering(NamedTuple):
    """How tiers are chosen; the unit of costs is the time that one position takes."""

    tier: float = 0.0  # the cost of a tier
    pair: float = 0.0  # the cost of a pair of positions of a session
    # The probability that a batch does not fit, and needs the roomier layout.
    overflow: float = 1e-2
    most: int = 8  # the maximum number of tiers


TIERING = Tiering()


def tier_layout(
    lengths: Int[np.ndarray, " E"],
    batch_size: int,
    parts: int = 1,
    tiering: Tiering = TIERING,
    by_chance: bool = True,
) -> Layout:
    """Returns the cheapest layout that holds nearly every batch of these examples.

    A batch's parts share its long and its short sessions evenly. If not `by_chance`,
    every batch holds its exact share of each length.
    """
    rows = math.ceil(batch_size / parts)
    ends = np.unique(np.geomspace(1, lengths.max(), 64).round().astype(np.int64))
    longer = len(lengths) - np.searchsorted(np.sort(lengths), ends, side="right")
    if by_chance:
        # A bound: as if examples were drawn with replacement.
        n = np.arange(min(batch_size, len(lengths)))
        beyond = special.bdtrc(n, len(n), longer[:, None] / len(lengths))
        most = (beyond > tiering.overflow / len(ends)).sum(axis=1)
    else:
        # A rounding error must not add a row.
        most = np.ceil(batch_size * longer / len(lengths) - 1e-6)
    # Rows that must be kept for sessions longer than each possible tier.
    kept = np.minimum(np.ceil(most / parts), rows)
    # cost[k, j]: the lowest for k + 1 tiers, of which the last ends at ends[j].
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
        if tier_rows:
            layout.insert(0, (int(tier_rows), int(ends[end])))
        end = start
    return tuple(layout)


def choose_layout(
    lengths: Int[np.ndarray, " E"],
    batch_size: int,
    shards: int,
    max_positions: int,
    max_rows: float | int = math.inf,
    tiering: Tiering = TIERING,
    by_chance: bool = True,
) -> tuple[Layout, int]:
    """Returns the layout of a part, and how many parts a batch has.

    The number of parts is a multiple of `shards`, the devices that share a batch. A
    part has at most `max_rows` rows, and `max_positions` positions unless one session
    alone has more.
    """
    each = 1  # parts per shard
    while True:
        layout = tier_layout(lengths, batch_size, shards * each, tiering, by_chance)
        rows = sum(n for n, _ in layout)
        positions = sum(n * length for n, length in layout)
        need = max(positions / max_positions, rows / max_rows)
        if need <= 1 or rows == 1:
            return layout, shards * each
        each = min(math.ceil(each * need), math.ceil(batch_size / shards))
