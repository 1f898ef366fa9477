"""Settings for each backend in one table, with the reason for each entry.

They change results by rounding only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from srgnn_jax.data.tiering import NEVER, Tiering

# Multiplications and additions of a step per position and D^2: 11 products of D^2 in
# the network, once forward and twice backward.
POSITION_FLOPS = 2 * 3 * 11
# The same per pair of positions and D: A_in and A_out.
PAIR_FLOPS = 2 * 3 * 2


class Suits(NamedTuple):
    """Settings for a backend.

    Attributes:
      tier_flops: arithmetic that takes as long as the operations that one more tier
        launches.
      overflow: see `Tiering`.
      max_positions: session positions to process at a time.
      max_scores: scores (items times sessions) to hold at a time.
      max_rows: sessions to rank at a time.
      steps_per_call: training steps that the host starts at once.
      table_order: see `layouts.Devices`.
    """

    tier_flops: float
    overflow: float
    max_positions: int
    max_scores: int
    max_rows: int
    steps_per_call: int
    table_order: tuple[int, int] | None = None


SUITS = {
    # A tier costs some 0.1 ms, at 50 GFLOP/s. A second, roomier layout is worth having:
    # the usual one then needs a third fewer positions. With these limits, a step's data
    # stays in the caches. Several steps per call are slower, because operations in a
    # loop do not overlap.
    "cpu": Suits(5e6, 1e-2, 8192, 2**23, 512, 1),
    # A tier is some 66 operations of 2 microseconds, at 30 TFLOP/s in float32.
    "gpu": Suits(4e9, NEVER, 2**20, 2**29, 4096, 32),
    # The compiler's estimates for a v5e: 50,000 cycles per tier, at 30 TFLOP/s. The
    # compiler's own table order saves memory, but a step then copies the table and its
    # moments to row order and back: 0.4 of 1.63 million cycles at 43,098 items. The
    # scores of a block stay in the chip's vector memory: a softmax of batch 4096 over
    # 43,098 items takes 2.0 million cycles in bfloat16 and 8.1 million exact. With all
    # scores held at once, it takes 5.4 and 6.9 million, and 0.7 GB.
    "tpu": Suits(5.5e8, NEVER, 2**20, 2**24, 4096, 32, (0, 1)),
}


def limits_for(
    platform: str, embedding_size: int, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields of `layouts.Devices` for a platform.

    Args:
      platform: "cpu", "gpu" or "tpu".
      embedding_size: D, which tiers depend on.
      limits: fields to set; 0 or None means the platform's default.
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
    """Returns how many scores to rank at a time: half of what training holds.

    Ranks and lists read the scores again, which on CPU is a quarter faster this way.
    """
    return (max_scores or SUITS[jax.default_backend()].max_scores) // 2
