"""Readouts of a session: equations 6 and 7 of Wu et al. 2019, and variants.

Axes: B batch, L positions, D embedding.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srgnn_jax.model.layers import dense, uniform_init

# The paper's SR-GNN; SR-GNN-ATT, SR-GNN-AVG and SR-GNN-L are from its ablation.
ATTENTION_READOUTS = ("hybrid", "attention")
READOUTS = (*ATTENTION_READOUTS, "average", "local")


class Readout(nn.Module):
    """Turns the states of a session's clicks into one embedding.

        alpha_i  = q . sigmoid(W1 s_last + b1 + W2 s_i + b2)      (no softmax)
        s_global = sum_i alpha_i s_i over positions: repeat clicks count again
        s        = W3 [s_global ; s_last] + b3

    This is the paper's "hybrid". "attention" is s_global alone, "average" the mean of
    the s_i, and "local" s_last. With reverse positions, W2 is applied to

        z_i = tanh(W4 [s_i ; p_(n - i)] + b4)

    instead, where p_j is an embedding of the distance j from the end of n clicks.
    Clicks further from the end than there are embeddings share the last one.

    The weight of each click in the sum is sown as "click_weights" [B, L].

    Attributes:
      embedding_size: D.
      readout: one of `READOUTS`.
      reverse_positions: number of position embeddings; 0: positions are not used.
      softmax_attention: whether the alpha_i go through a softmax over the clicks.
      compute_dtype: of the matrix products, see `layers.product`.

    Source: Wu et al. 2019, equations 6 and 7, and section "Comparison with Variants of
    Session Embeddings"; Wang et al. 2020 (GCE-GNN), section "Session Representation
    Layer".
    """

    embedding_size: int
    readout: str = "hybrid"
    reverse_positions: int = 0
    softmax_attention: bool = False
    compute_dtype: str | None = None

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B L D"],
        is_click: Bool[Array, "B L"],
        item_seq: Int[Array, "B L"],
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings.

        Args:
          states: the state of each click.
          is_click: which positions are clicks; they come first in each session.
          item_seq: the clicked items. Unused here; a custom readout may use them.

        Raises:
          ValueError: unknown readout.
        """
        del item_seq
        if self.readout not in READOUTS:
            names = ", ".join(READOUTS)
            raise ValueError(f"readout is {self.readout!r}, not one of {names}")
        d = self.embedding_size
        linear = functools.partial(
            dense, embedding_size=d, compute_dtype=self.compute_dtype
        )
        last = is_click.sum(axis=1, keepdims=True) - 1
        s_last = jnp.take_along_axis(states, last[:, :, None], axis=1)
        distance = last - jnp.arange(states.shape[1])
        if self.readout == "local":
            weight = (distance == 0).astype(states.dtype)
        elif self.readout == "average":
            weight = is_click / (last + 1)
        else:
            keyed = states
            if self.reverse_positions:
                shape = self.reverse_positions, d
                embedding = self.param("position_embedding", uniform_init(d), shape)
                place = embedding[jnp.clip(distance, 0, self.reverse_positions - 1)]
                both = jnp.concatenate([states, place], axis=-1)
                keyed = jnp.tanh(linear(d, name="linear_position")(both))
            query = linear(d, name="linear_one")(s_last)
            gate = jax.nn.sigmoid(query + linear(d, name="linear_two")(keyed))
            alpha = linear(1, use_bias=False, name="linear_three")(gate)[..., 0]
            if self.softmax_attention:
                weight = jax.nn.softmax(alpha, where=is_click)
            else:
                weight = alpha * is_click
        self.sow("intermediates", "click_weights", weight)
        session = jnp.sum(weight[..., None] * states, axis=1)
        if self.readout == "hybrid":
            both = jnp.concatenate([session, s_last[:, 0]], axis=-1)
            session = linear(d, name="linear_transform")(both)
        return session
