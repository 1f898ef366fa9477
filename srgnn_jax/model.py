"""SR-GNN as Flax modules: modules own the parameters, functions do the maths.

Axes: B batch, L positions (and node slots), D embedding, V item rows (row 0 is
padding).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from srgnn_jax import graph, losses
from srgnn_jax.graph import AnyArray

Params = dict[str, Any]
# Some sessions of a batch, padded to one length: (item_seq [b, L], item_seq_len [b]).
Tier = tuple[Int[AnyArray, "_ _"], Int[AnyArray, " _"]]


def linear(params: Params, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """Applies kernel [I, O] and, where there is one, bias [O]."""
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def gnn_cell(
    params: Params,
    incoming: Float[Array, "B L L"],
    outgoing: Float[Array, "B L L"],
    hidden: Float[Array, "B L D"],
) -> Float[Array, "B L D"]:
    """Propagates once along the edges and updates every node by its gates.

        a  = [A_in (H W_in + b_in) + b_iah ; A_out (H W_out + b_out) + b_oah]
        z, r, n = gates of (a W_ih + b_ih) and (H W_hh + b_hh)
        H' = (1 - z) H + z n,   n = tanh(i_n + r * h_n)

    Source: Wu et al. 2019, equations 1 to 5; the gates lie in PyTorch's GRU order r, z,
    n.
    """
    input_in = incoming @ linear(params["linear_edge_in"], hidden) + params["b_iah"]
    input_out = outgoing @ linear(params["linear_edge_out"], hidden) + params["b_oah"]
    inputs = jnp.concatenate([input_in, input_out], axis=-1)
    i_r, i_z, i_n = jnp.split(inputs @ params["w_ih"] + params["b_ih"], 3, axis=-1)
    h_r, h_z, h_n = jnp.split(hidden @ params["w_hh"] + params["b_hh"], 3, axis=-1)
    reset = jax.nn.sigmoid(i_r + h_r)
    update = jax.nn.sigmoid(i_z + h_z)
    new = jnp.tanh(i_n + reset * h_n)
    return hidden + update * (new - hidden)


def propagate(
    params: Params,
    incoming: Float[Array, "B L L"],
    outgoing: Float[Array, "B L L"],
    hidden: Float[Array, "B L D"],
    step: int,
) -> Float[Array, "B L D"]:
    """Applies `gnn_cell` `step` times with the same parameters."""

    def body(_, hidden):
        return gnn_cell(params, incoming, outgoing, hidden)

    return jax.lax.fori_loop(0, step, body, hidden)


def attention_readout(
    params: Params,
    hidden: Float[Array, "B L D"],
    alias: Int[Array, "B L"],
    item_seq_len: Int[AnyArray, " B"],
) -> Float[Array, "B D"]:
    """Sums up a session from its last click and the attention over all of its clicks.

        alpha_i  = q . sigmoid(W1 s_last + b1 + W2 s_i + b2)      (no softmax)
        s_global = sum_i alpha_i s_i over positions: a revisited item counts again
        s        = W3 [s_global ; s_last] + b3, or s_global alone without W3

    Source: Wu et al. 2019, equations 6 and 7.
    """
    position = jnp.arange(alias.shape[1])
    last = jnp.take_along_axis(alias, item_seq_len[:, None] - 1, axis=1)
    s_last = jnp.take_along_axis(hidden, last[:, :, None], axis=1)[:, 0]
    query = linear(params["linear_one"], s_last)[:, None]
    key = linear(params["linear_two"], hidden)
    alpha = linear(params["linear_three"], jax.nn.sigmoid(query + key))[..., 0]
    # alpha depends on the node alone, so a node's clicks are counted, not gathered.
    is_click = position < item_seq_len[:, None]
    is_node = alias[:, :, None] == position
    clicks = jnp.sum(is_node & is_click[:, :, None], axis=1)
    s_global = jnp.sum((alpha * clicks)[..., None] * hidden, axis=1)
    if "linear_transform" not in params:
        return s_global
    both = jnp.concatenate([s_global, s_last], axis=-1)
    return linear(params["linear_transform"], both)


def uniform_init(embedding_size: int) -> nn.initializers.Initializer:
    """Uniform in +-1 / sqrt(D), what both PyTorch codes start every parameter from."""
    bound = embedding_size**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """Owns the kernel [I, O] and the bias [O] of `linear`."""

    in_features: int
    out_features: int
    initializer: nn.initializers.Initializer
    use_bias: bool = True

    @nn.compact
    def __call__(self) -> Params:
        i, o = self.in_features, self.out_features
        params = {"kernel": self.param("kernel", self.initializer, (i, o))}
        if self.use_bias:
            params["bias"] = self.param("bias", self.initializer, (o,))
        return params


class GNN(nn.Module):
    """Gated graph network over the session graphs.

    Attributes:
      embedding_size: D.
      step: how often the nodes propagate along the edges.
    """

    embedding_size: int
    step: int = 1

    @nn.compact
    def __call__(
        self, item_seq: Int[AnyArray, "B L"], hidden: Float[Array, "B L D"]
    ) -> tuple[Float[Array, "B L D"], Int[Array, "B L"]]:
        """Returns the hidden state of each node slot and the alias of each position."""
        d = self.embedding_size
        init = uniform_init(d)
        params = {
            "linear_edge_in": Linear(d, d, init, name="linear_edge_in")(),
            "linear_edge_out": Linear(d, d, init, name="linear_edge_out")(),
            "b_iah": self.param("b_iah", init, (d,)),
            "b_oah": self.param("b_oah", init, (d,)),
            "w_ih": self.param("w_ih", init, (2 * d, 3 * d)),
            "w_hh": self.param("w_hh", init, (d, 3 * d)),
            "b_ih": self.param("b_ih", init, (3 * d,)),
            "b_hh": self.param("b_hh", init, (3 * d,)),
        }
        alias = graph.node_alias(item_seq)
        edges = graph.adjacency(item_seq, alias, hidden.dtype)
        incoming, outgoing = graph.normalised_connections(edges)
        return propagate(params, incoming, outgoing, hidden, self.step), alias


class AttentionReadout(nn.Module):
    """Turns the nodes' hidden states into one embedding per session.

    Attributes:
      embedding_size: D.
      hybrid: whether the last click's own state joins the attention's sum.
    """

    embedding_size: int
    hybrid: bool = True

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B L D"],
        alias: Int[Array, "B L"],
        item_seq_len: Int[AnyArray, " B"],
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings."""
        d = self.embedding_size
        init = uniform_init(d)
        params = {
            "linear_one": Linear(d, d, init, name="linear_one")(),
            "linear_two": Linear(d, d, init, name="linear_two")(),
            "linear_three": Linear(d, 1, init, use_bias=False, name="linear_three")(),
        }
        if self.hybrid:
            transform = Linear(2 * d, d, init, name="linear_transform")
            params["linear_transform"] = transform()
        return attention_readout(params, hidden, alias, item_seq_len)


class SRGNN(nn.Module):
    """Session-based recommendation with graph neural networks (Wu et al., AAAI 2019).

    Every method takes `item_seq` [B, L], item ids in click order with 0 as padding at
    the end, and `item_seq_len` [B], the number of clicks, at least 1.

    Attributes:
      num_items: V, the rows of the item table; row 0, the padding, is counted.
      embedding_size: D.
      step: propagation steps of the GNN.
      hybrid: whether the last click's own state joins the readout.
    """

    num_items: int
    embedding_size: int
    step: int = 1
    hybrid: bool = True

    def setup(self):
        self.item_embedding = self.param(
            "item_embedding",
            uniform_init(self.embedding_size),
            (self.num_items, self.embedding_size),
        )
        self.gnn = GNN(self.embedding_size, self.step)
        self.readout = AttentionReadout(self.embedding_size, self.hybrid)

    def encode(self, tiers: Sequence[Tier]) -> Float[Array, "B D"]:
        """Embeds sessions that come padded to several lengths, in the order given."""
        # One lookup for all tiers: each would scatter its gradient over a whole table.
        flat = jnp.concatenate([item_seq.reshape(-1) for item_seq, _ in tiers])
        embedded = self.item_embedding[flat]
        sessions = []
        offset = 0
        for item_seq, item_seq_len in tiers:
            hidden = embedded[offset : offset + item_seq.size]
            offset += item_seq.size
            hidden, alias = self.gnn(item_seq, hidden.reshape(*item_seq.shape, -1))
            sessions.append(self.readout(hidden, alias, item_seq_len))
        return jnp.concatenate(sessions)

    def __call__(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings."""
        return self.encode([(item_seq, item_seq_len)])

    def full_sort_predict(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B V"]:
        """Returns the score of every item row, the padding row included."""
        session = self(item_seq, item_seq_len)
        return losses.item_scores(session, self.item_embedding).T

    def predict(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        item: Int[AnyArray, " B"],
    ) -> Float[Array, " B"]:
        """Returns the score of one item for each session."""
        session = self(item_seq, item_seq_len)
        return jnp.sum(session * self.item_embedding[item], axis=-1)

    def loss_per_example(
        self,
        tiers: Sequence[Tier],
        target: Int[AnyArray, " B"],
        negative: Int[AnyArray, " B"] | None = None,
        loss_type: str = "CE",
        score_padding: bool = False,
        max_scores: int = losses.MAX_SCORES,
    ) -> Float[Array, " B"]:
        """Returns each session's loss.

        See `calculate_loss` for the arguments, and `losses.full_softmax` for the last.
        """
        session = self.encode(tiers)
        if loss_type == "CE":
            return losses.full_softmax(
                session, self.item_embedding, target, score_padding, max_scores
            )
        if loss_type != "BPR":
            raise ValueError(f"loss_type is {loss_type!r}, not 'CE' or 'BPR'")
        if negative is None:
            raise ValueError("loss_type 'BPR' needs `negative`, an item per example")
        return losses.bpr(
            session, self.item_embedding[target], self.item_embedding[negative]
        )

    def calculate_loss(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        target: Int[AnyArray, " B"],
        negative: Int[AnyArray, " B"] | None = None,
        loss_type: str = "CE",
        score_padding: bool = False,
    ) -> Float[Array, ""]:
        """Returns the mean loss over the batch.

        Args:
          item_seq: item ids in click order, 0 = padding at the end.
          item_seq_len: number of clicks.
          target: the item that was clicked next.
          negative: an item that was not; only "BPR" needs it.
          loss_type: "CE", cross entropy of the softmax over all items, or "BPR".
          score_padding: whether row 0 takes part in the softmax (RecBole: yes).
        """
        tiers = [(item_seq, item_seq_len)]
        return self.loss_per_example(
            tiers, target, negative, loss_type, score_padding
        ).mean()


def init_params(model: SRGNN, seed: int) -> Params:
    """Draws the parameters of a model from a seed."""
    item_seq, item_seq_len = jnp.zeros((1, 2), jnp.int32), jnp.ones(1, jnp.int32)
    # Compiled as a whole: one by one, the draws take seconds to compile.
    variables = jax.jit(model.init)(jax.random.key(seed), item_seq, item_seq_len)
    return variables["params"]
