"""The gated graph network: equations 1 to 5 of Wu et al. 2019.

Axes: B batch, L positions (and node slots), D embedding.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.layers import product, uniform_init


def gnn_cell(
    params: Mapping[str, Any],
    A: Float[AnyArray, "B L L2"],
    hidden: Float[AnyArray, "B L D"],
    compute_dtype: str | None = None,
) -> Float[Array, "B L D"]:
    """Propagates once along the edges and updates every node with a GRU.

        a  = [A_in (H W_in + b_in) + b_iah ; A_out (H W_out + b_out) + b_oah]
        z, r, n = gates of (a W_ih + b_ih) and (H W_hh + b_hh)
        H' = (1 - z) H + z n,   n = tanh(i_n + r * h_n)

    Args:
      params: the parameters of `GNN`.
      A: [A_in ; A_out], with any values: rows need not sum to 1.
      hidden: H, the state of each node slot.
      compute_dtype: see `layers.product`.

    Source: Wu et al. 2019, equations 1 to 5; gates in PyTorch's GRU order r, z, n.
    """
    return _cell(_joined(params), A, jnp.asarray(hidden), compute_dtype)


def _joined(params: Mapping[str, Any]) -> dict[str, Array]:
    """Multiplies consecutive weights: W_in and W_out with W_ih."""
    D = len(params["w_hh"])
    edges = params["linear_edge_in"], params["linear_edge_out"]
    biases = [edge["bias"] for edge in edges], [params["b_iah"], params["b_oah"]]
    kernels = jnp.stack([edge["kernel"] for edge in edges])
    rows = [kernels, *(jnp.stack(pair)[:, None] for pair in biases)]
    w_ih = jnp.asarray(params["w_ih"]).reshape(2, D, 3 * D)
    w_a, b, b_a = jnp.split(product(jnp.hstack(rows), w_ih), [D, D + 1], axis=1)
    return {
        "w_a": w_a.reshape(2 * D, 3 * D),
        "b_edge": b,
        "b_a": b_a.sum(axis=0) + params["b_ih"],
        "w_h": jnp.asarray(params["w_hh"]),
        "b_h": jnp.asarray(params["b_hh"]),
    }


def _cell(
    joined: Mapping[str, Array],
    A: Float[AnyArray, "B L L2"],
    hidden: Float[Array, "B L D"],
    compute_dtype: str | None,
) -> Float[Array, "B L D"]:
    """Computes `gnn_cell`, with A_in (H W_in) W_ih as (A_in H) (W_in W_ih)."""
    B, L, D = hidden.shape
    A = jnp.asarray(A).reshape(B, 2 * L, L)
    neighbours = product(A, hidden, compute_dtype).reshape(B, L, 2 * D)
    # A bias that is added before A counts once per connection.
    sum_in, sum_out = jnp.split(A.sum(axis=-1).reshape(B, L, 2), 2, axis=-1)
    i = product(neighbours, joined["w_a"], compute_dtype)
    i += sum_in * joined["b_edge"][0] + sum_out * joined["b_edge"][1] + joined["b_a"]
    h = product(hidden, joined["w_h"], compute_dtype) + joined["b_h"]
    i_r, i_z, i_n = jnp.split(i, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h, 3, axis=-1)
    reset = jax.nn.sigmoid(i_r + h_r)
    update = jax.nn.sigmoid(i_z + h_z)
    new = jnp.tanh(i_n + reset * h_n)
    return hidden + update * (new - hidden)


class GNN(nn.Module):
    """Gated graph network over session graphs.

        GNN(embedding_size=D, step=2).apply(variables, A, hidden)

    Attributes:
      embedding_size: D.
      step: number of propagation steps.
      compute_dtype: of the matrix products, see `layers.product`.
    """

    embedding_size: int
    step: int = 1
    compute_dtype: str | None = None

    def setup(self):
        d = self.embedding_size
        init = uniform_init(d)

        def linear(key):
            kernel_key, bias_key = jax.random.split(key)
            return {"kernel": init(kernel_key, (d, d)), "bias": init(bias_key, (d,))}

        self.weights = {
            "linear_edge_in": self.param("linear_edge_in", linear),
            "linear_edge_out": self.param("linear_edge_out", linear),
            "b_iah": self.param("b_iah", init, (d,)),
            "b_oah": self.param("b_oah", init, (d,)),
            "w_ih": self.param("w_ih", init, (2 * d, 3 * d)),
            "w_hh": self.param("w_hh", init, (d, 3 * d)),
            "b_ih": self.param("b_ih", init, (3 * d,)),
            "b_hh": self.param("b_hh", init, (3 * d,)),
        }
        self.joined = _joined(self.weights)

    def GNNCell(
        self, A: Float[AnyArray, "B L L2"], hidden: Float[AnyArray, "B L D"]
    ) -> Float[Array, "B L D"]:
        """Propagates once, like RecBole's method of this name; see `gnn_cell`."""
        return _cell(self.joined, A, jnp.asarray(hidden), self.compute_dtype)

    def __call__(
        self,
        A: Float[AnyArray, "B L L2"],
        hidden: Float[AnyArray, "B L D"],
        is_node: Bool[AnyArray, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Propagates `step` times with the same parameters.

        Args:
          A: the connection matrix, [incoming ; outgoing]; see
            `graph.connection_matrix`.
          hidden: the initial state of each node slot.
          is_node: which slots hold a node. Unused here: the rows of all others are
            zero in A.
        """
        del is_node
        joined = self.joined

        def body(_, hidden):
            return _cell(joined, A, hidden, self.compute_dtype)

        return jax.lax.fori_loop(0, self.step, body, jnp.asarray(hidden))
