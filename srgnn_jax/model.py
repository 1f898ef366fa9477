"""SR-GNN as Flax modules: modules own the parameters, functions do the maths.

A batch comes as *tiers*, groups of its sessions that are padded to one length each (see
`data.batches`); what is done to every position alike is done to all tiers at once.

Axes: B batch, b sessions of a tier, L positions (and node slots), P positions of all
tiers, D embedding, V item rows (row 0 is padding).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from srgnn_jax import graph, item_table, losses
from srgnn_jax.graph import AnyArray

Params = dict[str, Any]
# Some sessions of a batch, padded to one length: (item_seq [b, L], item_seq_len [b]).
Tier = tuple[Int[AnyArray, "_ _"], Int[AnyArray, " _"]]
# The incoming and the outgoing matrix of a tier's graphs.
Connections = tuple[Float[Array, "_ _ _"], Float[Array, "_ _ _"]]


def linear(
    params: Params, x: Float[Array, "*B I"], compute_dtype: str | None = None
) -> Float[Array, "*B O"]:
    """Applies kernel [I, O] and, where there is one, bias [O]."""
    y = dot(x, params["kernel"], compute_dtype)
    return y + params["bias"] if "bias" in params else y


def dot(a: Array, b: Array, compute_dtype: str | None) -> Array:
    """Multiplies matrices in `compute_dtype`, the result in the type of `a`."""
    if compute_dtype is None:
        return a @ b
    return (a.astype(compute_dtype) @ b.astype(compute_dtype)).astype(a.dtype)


def split_tiers(flat: Float[Array, "P *D"], shapes: Sequence[tuple]) -> list[Array]:
    """Cuts the positions of all tiers into arrays [b, L, ...], one for each (b, L)."""
    ends = np.cumsum([b * length for b, length in shapes])[:-1]
    return [
        part.reshape(*shape, *flat.shape[1:])
        for part, shape in zip(jnp.split(flat, ends), shapes, strict=True)
    ]


def join_tiers(tiers: Sequence[Array]) -> Array:
    """Puts the positions of all tiers, [b, L, ...] each, into one array [P, ...]."""
    return jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in tiers])


def gnn_cell(
    params: Params,
    connections: Sequence[Connections],
    hidden: Float[Array, "P D"],
    compute_dtype: str | None = None,
) -> Float[Array, "P D"]:
    """Propagates once along the edges and updates every node by its gates.

        a  = [A_in (H W_in + b_in) + b_iah ; A_out (H W_out + b_out) + b_oah]
        z, r, n = gates of (a W_ih + b_ih) and (H W_hh + b_hh)
        H' = (1 - z) H + z n,   n = tanh(i_n + r * h_n)

    As products associate, A_in H is multiplied by W_in W_ih at once, and each row of
    A_in sums to 1 or 0, which says whether b_in W_ih joins; A_out likewise. The gates
    are computed apart: cutting one product into three costs more on the way back.

    Source: Wu et al. 2019, equations 1 to 5; the gates lie in PyTorch's GRU order r, z,
    n.
    """
    shapes = [incoming.shape[:2] for incoming, _ in connections]
    tiers = split_tiers(hidden, shapes)

    def gates(x):
        return jnp.split(x, 3, axis=-1)

    def along(direction, linear_edge, w_ih):
        matrices = [pair[direction] for pair in connections]
        neighbours = join_tiers(
            [dot(a, h, compute_dtype) for a, h in zip(matrices, tiers, strict=True)]
        )
        has_any = join_tiers([a.sum(axis=-1, keepdims=True) for a in matrices])
        return [
            dot(neighbours, kernel, compute_dtype) + has_any * bias
            for kernel, bias in zip(
                gates(linear_edge["kernel"] @ w_ih),
                gates(linear_edge["bias"] @ w_ih),
                strict=True,
            )
        ]

    w_in, w_out = jnp.split(params["w_ih"], 2)
    constant = params["b_iah"] @ w_in + params["b_oah"] @ w_out + params["b_ih"]
    i_r, i_z, i_n = (
        before + after + bias
        for before, after, bias in zip(
            along(0, params["linear_edge_in"], w_in),
            along(1, params["linear_edge_out"], w_out),
            gates(constant),
            strict=True,
        )
    )
    h_r, h_z, h_n = (
        dot(hidden, kernel, compute_dtype) + bias
        for kernel, bias in zip(
            gates(params["w_hh"]), gates(params["b_hh"]), strict=True
        )
    )
    reset = jax.nn.sigmoid(i_r + h_r)
    update = jax.nn.sigmoid(i_z + h_z)
    new = jnp.tanh(i_n + reset * h_n)
    return hidden + update * (new - hidden)


def propagate(
    params: Params,
    connections: Sequence[Connections],
    hidden: Float[Array, "P D"],
    step: int,
    compute_dtype: str | None = None,
) -> Float[Array, "P D"]:
    """Applies `gnn_cell` `step` times with the same parameters."""

    def body(_, hidden):
        return gnn_cell(params, connections, hidden, compute_dtype)

    return jax.lax.fori_loop(0, step, body, hidden)


def attention(
    params: Params,
    query: Float[Array, "B 1 D"],
    key: Float[Array, "B L D"],
    compute_dtype: str | None = None,
) -> Float[Array, "B L"]:
    """Weighs each key for its session's query: q . sigmoid(query + key)."""
    gate = jax.nn.sigmoid(query + key)
    return linear(params["linear_three"], gate, compute_dtype)[..., 0]


def attention_readout(
    params: Params,
    hidden: Float[Array, "P D"],
    aliases: Sequence[Int[Array, "_ _"]],
    item_seq_lens: Sequence[Int[AnyArray, " _"]],
    compute_dtype: str | None = None,
) -> Float[Array, "B D"]:
    """Sums up a session from its last click and the attention over all of its clicks.

        alpha_i  = q . sigmoid(W1 s_last + b1 + W2 s_i + b2)      (no softmax)
        s_global = sum_i alpha_i s_i over positions: a revisited item counts again
        s        = W3 [s_global ; s_last] + b3, or s_global alone without W3

    Source: Wu et al. 2019, equations 6 and 7.
    """
    shapes = [alias.shape for alias in aliases]
    states = split_tiers(hidden, shapes)
    lasts = []
    for state, alias, item_seq_len in zip(states, aliases, item_seq_lens, strict=True):
        last = jnp.take_along_axis(alias, item_seq_len[:, None] - 1, axis=1)
        lasts.append(jnp.take_along_axis(state, last[:, :, None], axis=1)[:, 0])
    s_last = jnp.concatenate(lasts)
    queries = jnp.split(
        linear(params["linear_one"], s_last, compute_dtype),
        np.cumsum([b for b, _ in shapes])[:-1],
    )
    keys = split_tiers(linear(params["linear_two"], hidden, compute_dtype), shapes)
    s_globals = []
    for state, key, query, alias, item_seq_len in zip(
        states, keys, queries, aliases, item_seq_lens, strict=True
    ):
        alpha = attention(params, query[:, None], key, compute_dtype)
        # alpha depends on the node alone: a node's clicks are counted, not gathered.
        position = jnp.arange(alias.shape[1])
        is_click = position < item_seq_len[:, None]
        is_node = alias[:, :, None] == position
        clicks = jnp.sum(is_node & is_click[:, :, None], axis=1)
        s_globals.append(jnp.sum((alpha * clicks)[..., None] * state, axis=1))
    s_global = jnp.concatenate(s_globals)
    if "linear_transform" not in params:
        return s_global
    both = jnp.concatenate([s_global, s_last], axis=-1)
    return linear(params["linear_transform"], both, compute_dtype)


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
      compute_dtype: of the matrix products; None: that of the parameters.
    """

    embedding_size: int
    step: int = 1
    compute_dtype: str | None = None

    @nn.compact
    def __call__(
        self, item_seqs: Sequence[Int[AnyArray, "_ _"]], hidden: Float[Array, "P D"]
    ) -> tuple[Float[Array, "P D"], list[Int[Array, "_ _"]]]:
        """Returns the hidden state of each node slot and the alias of each position.

        Args:
          item_seqs: the item ids of each tier [b, L].
          hidden: the state of each node slot to start from, of all tiers.
        """
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
        aliases = [graph.node_alias(item_seq) for item_seq in item_seqs]
        connections = [
            graph.normalised_connections(graph.adjacency(item_seq, alias, hidden.dtype))
            for item_seq, alias in zip(item_seqs, aliases, strict=True)
        ]
        hidden = propagate(params, connections, hidden, self.step, self.compute_dtype)
        return hidden, aliases


class AttentionReadout(nn.Module):
    """Turns the nodes' hidden states into one embedding per session.

    Attributes:
      embedding_size: D.
      hybrid: whether the last click's own state joins the attention's sum.
      compute_dtype: of the matrix products; None: that of the parameters.
    """

    embedding_size: int
    hybrid: bool = True
    compute_dtype: str | None = None

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "P D"],
        aliases: Sequence[Int[Array, "_ _"]],
        item_seq_lens: Sequence[Int[AnyArray, " _"]],
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
        return attention_readout(
            params, hidden, aliases, item_seq_lens, self.compute_dtype
        )


class SRGNN(nn.Module):
    """Session-based recommendation with graph neural networks (Wu et al., AAAI 2019).

    Every method takes `item_seq` [B, L], item ids in click order with 0 as padding at
    the end, and `item_seq_len` [B], the number of clicks, at least 1.

    Attributes:
      num_items: V, the rows of the item table; row 0, the padding, is counted.
      embedding_size: D.
      step: propagation steps of the GNN.
      hybrid: whether the last click's own state joins the readout.
      compute_dtype: of the matrix products, such as "bfloat16"; parameters, sums,
        activations and the softmax stay in float32. None: as the parameters are.
      item_axis: mesh axis that the item table is split over by rows, or None; see
        `item_table`. Only `encode`, the losses and the ranks know split tables.
      item_shards: the number of devices along it.
    """

    num_items: int
    embedding_size: int
    step: int = 1
    hybrid: bool = True
    compute_dtype: str | None = None
    item_axis: str | None = None
    item_shards: int = 1

    def setup(self):
        self.item_embedding = self.param(
            "item_embedding",
            uniform_init(self.embedding_size),
            (-(-self.num_items // self.item_shards), self.embedding_size),
        )
        self.gnn = GNN(self.embedding_size, self.step, self.compute_dtype)
        self.readout = AttentionReadout(
            self.embedding_size, self.hybrid, self.compute_dtype
        )

    def encode(
        self, tiers: Sequence[Tier], *others: Int[AnyArray, " B"]
    ) -> tuple[Array, ...]:
        """Embeds sessions that come padded to several lengths, in the order given.

        Args:
          tiers: the sessions.
          others: items whose embeddings are wanted too.

        Returns:
          The session embeddings [B, D], the item table [V, D] to score them with (see
          `item_table.lookup`), and the embeddings [B, D] of each of `others`.
        """
        item_seqs = [item_seq for item_seq, _ in tiers]
        item_seq_lens = [item_seq_len for _, item_seq_len in tiers]
        # One lookup for all: each would make a pass over the table's gradient.
        rows = [*(item_seq.reshape(-1) for item_seq in item_seqs), *others]
        ends = np.cumsum([len(part) for part in rows])[:-1]
        found, table = item_table.lookup(
            self.item_embedding, jnp.concatenate(rows), self.item_axis
        )
        embedded = jnp.split(found, ends[len(tiers) - 1 :])
        hidden, aliases = self.gnn(item_seqs, embedded[0])
        session = self.readout(hidden, aliases, item_seq_lens)
        return session, table, *embedded[1:]

    def __call__(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings."""
        return self.encode([(item_seq, item_seq_len)])[0]

    def full_sort_predict(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B V"]:
        """Returns the score of every item row, the padding row included."""
        session = self(item_seq, item_seq_len)
        return item_table.item_scores(
            session, self.item_embedding, self.compute_dtype
        ).T

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
        max_scores: int = item_table.MAX_SCORES,
    ) -> Float[Array, " B"]:
        """Returns each session's loss.

        See `calculate_loss` for the arguments, and `item_table.full_softmax` for
        `max_scores`.
        """
        if loss_type == "CE":
            session, table, target_embedding = self.encode(tiers, target)
            return item_table.full_softmax(
                session,
                table,
                target_embedding,
                score_padding,
                max_scores,
                num_items=self.num_items,
                axis_name=self.item_axis,
                compute_dtype=self.compute_dtype,
            )
        if loss_type != "BPR":
            raise ValueError(f"loss_type is {loss_type!r}, not 'CE' or 'BPR'")
        if negative is None:
            raise ValueError("loss_type 'BPR' needs `negative`, an item per example")
        session, _, *pair = self.encode(tiers, target, negative)
        return losses.bpr(session, *pair)

    def target_rank(
        self,
        tiers: Sequence[Tier],
        target: Int[AnyArray, " B"],
        max_scores: int = item_table.MAX_SCORES,
    ) -> Int[Array, " B"]:
        """Returns the rank of each session's target among all items, 1 = best.

        See `item_table.target_rank`.
        """
        session, table = self.encode(tiers)
        return item_table.target_rank(
            session,
            table,
            target,
            max_scores,
            num_items=self.num_items,
            axis_name=self.item_axis,
            compute_dtype=self.compute_dtype,
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
