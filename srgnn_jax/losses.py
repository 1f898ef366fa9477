"""Losses, one value per example; whoever calls them weights, sums and divides.

The softmax over all items is `item_table.full_softmax`. Axes: B batch, D embedding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# RecBole's BPRLoss adds it inside the logarithm.
BPR_GAMMA = 1e-10


def bpr(
    session: Float[Array, "B D"],
    target_embedding: Float[Array, "B D"],
    negative_embedding: Float[Array, "B D"],
) -> Float[Array, " B"]:
    """Bayesian personalised ranking: -log(1e-10 + sigmoid(s . e_target - s . e_neg)).

    Source: Rendle et al. 2009; the constant is that of RecBole's `BPRLoss`.
    """
    difference = jnp.sum(session * (target_embedding - negative_embedding), axis=-1)
    return -jnp.log(BPR_GAMMA + jax.nn.sigmoid(difference))
