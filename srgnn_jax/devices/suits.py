"""What suits a backend: one table, and the reason for each entry.

Nothing here changes a number but by rounding.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from srgnn_jax.data.tiering import NEVER, Tiering

# Multiplications and additions of a step for each position and D^2: 11 products of D^2
# in the network, once forward and twice backward.
POSITION_FLOPS = 2 * 3 * 11
# And for each pair of positions and D: A_in and A_out.
PAIR_FLOPS = 2 * 3 * 2


class Suits(NamedTuple):
    """What suits a backend.

    Attributes:
      tier_flops: arithmetic that takes as long as what one more tier adds in operations
        to be launched.
      overflow: see `Tiering`.
      max_positions: positions of sessions that are worked on at a time.
      max_scores: scores (items times sessions) that are held at a time.
      max_rows: sessions that are ranked at a time.
      steps_per_call: training steps that the host starts at once.
      table_order: of the axes of the item table; see `layouts.Devices`.
    """

    tier_flops: float
    overflow: float
    max_positions: int
    max_scores: int
    max_rows: int
    steps_per_call: int
    table_order: tuple[int, int] | None = None


SUITS = {
    # A tier costs some 0.1 ms, at 50 GFLOP/s; a third fewer positions are worth having
    # a second layout. What a step holds at a time then stays in the caches. Steps of
    # several in one call are slower, as operations in a loop do not overlap.
    "cpu": Suits(5e6, 1e-2, 8192, 2**23, 512, 1),
    # A tier is some 66 operations of 2 microseconds, at 30 TFLOP/s in float32.
    "gpu": Suits(4e9, NEVER, 2**20, 2**29, 4096, 32),
    # By the compiler's estimate for a v5e: 50,000 cycles a tier, at 30 TFLOP/s. Its own
    # order of a table saves memory, but a step then copies table and moments to rows
    # and back: 0.4 of 1.63 million cycles at 43,098 items. The scores of a block stay
    # in the chip's vector memory: a softmax of batch 4096 over 43,098 items takes 2.0
    # million cycles in bfloat16 and 8.1 exact, with all scores held at once 5.4 and 6.9
    # and 0.7 GB.
    "tpu": Suits(5.5e8, NEVER, 2**20, 2**24, 4096, 32, (0, 1)),
}


def limits_for(
    platform: str, embedding_size: int, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns fields of `layouts.Devices` that suit devices.

    Args:
      platform: theirs: "cpu", "gpu" or "tpu".
      embedding_size: D, by which tiers are chosen.
      limits: fields that are set; those that are 0 or None are chosen.
    """
    suits = SUITS.get(platform, SUITS["gpu"])
    position = POSITION_FLOPS * embedding_size**2
    pair = PAIR_FLOPS * embedding_size
    chosen = suits._asdict()
    tiering = Tiering(
        chosen.pop("tier_flops") / position, pair / position, chosen.pop("overflow")
    )
    given = {name: limit for name, limit in limits.items() if limit}
    return chosen | {"tiering": tiering} | given


def scores_to_rank(max_scores: int) -> int:
    """Returns how many scores are ranked at a time, of as many as training holds.

    Half: they are read again, for ranks and lists, a quarter faster so on CPU.
    """
    return (max_scores or SUITS[jax.default_backend()].max_scores) // 2
