"""What runs on the devices in evaluation: targets are ranked, the best items listed.

Axes: C clicks, N parts of a batch, R rows of a part, K items of a list.
"""

import flax.linen as nn
from jaxtyping import Array, Int

from srgnn_jax.data import batches
from srgnn_jax.data.batches import Batch
from srgnn_jax.devices import layouts
from srgnn_jax.devices.tiers import encode
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import MAX_SCORES
from srgnn_jax.model.layers import Params


def rank_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    max_scores: int = MAX_SCORES,
    axis_name: str | None = None,
    item_axis: str | None = None,
) -> Int[Array, "N R"]:
    """Returns the rank of each target of a batch, of all devices' parts, 1 = best.

    See `train_step` for the arguments.
    """

    def rank(part):
        session, table = encode(
            model, params, part.tiers, max_scores=max_scores, axis_name=item_axis
        )
        return table.target_rank(session, part.target)

    return layouts.gather(batches.map_parts(rank, clicks, batch), axis_name)


def list_step(
    params: Params,
    clicks: Int[AnyArray, " C"],
    batch: Batch,
    *,
    model: nn.Module,
    k: int,
    max_scores: int = MAX_SCORES,
    axis_name: str | None = None,
    item_axis: str | None = None,
) -> Int[Array, "N R K"]:
    """Returns the k best items for each example of a batch; see `rank_step`."""

    def best(part):
        session, table = encode(
            model, params, part.tiers, max_scores=max_scores, axis_name=item_axis
        )
        return table.top_k(session, k)[1]

    return layouts.gather(batches.map_parts(best, clicks, batch), axis_name)
