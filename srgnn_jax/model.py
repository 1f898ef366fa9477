"""SR-GNN as Flax modules: modules own the parameters, functions do the maths.

A batch comes as *tiers*, groups of its sessions that are padded to one length each (see
`data.batches`); what is done to every position alike is done to all tiers at once.

Axes: B batch, b sessions of a tier, L positions (and node slots), P positions of all
tiers, D embedding, V item rows (row 0 is padding), N any rows.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from srgnn_jax import graph, item_table, losses
from srgnn_jax.graph import AnyArray

Params = dict[str, Any]
# Some sessions of a batch, padded to one length: (item_seq [b, L], item_seq_len [b]).
Tier = tuple[Int[AnyArray, "_ _"], Int[AnyArray, " _"]]
# The incoming and the outgoing matrix of a tier's graphs.
Connections = tuple[Float[Array, "_ _ _"], Float[Array, "_ _ _"]]
# How a session is summed up: the paper's SR-GNN, and the SR-GNN-ATT, SR-GNN-AVG and
# SR-GNN-L of its ablation.
ATTENTION_READOUTS = ("hybrid", "attention")
READOUTS = (*ATTENTION_READOUTS, "average", "local")


def linear(
    params: Params, x: Float[Array, "*B I"], compute_dtype: str | None = None
) -> Float[Array, "*B O"]:
    """Applies kernel [I, O] and, where there is one, bias [O]."""
    y = item_table.product(x, params["kernel"], compute_dtype)
    return y + params["bias"] if "bias" in params else y


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


def normalise(rows: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Scales each row to the Euclidean length 1; a row of zeros stays one.

    The padding row shrinks under Adam's decay until its squares underflow, where a
    plain norm has a NaN gradient: hence the epsilon inside the root.
    """
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows * jax.lax.rsqrt(squares + 1e-12)


def dropout(
    embedded: Float[Array, "P D"],
    shapes: Sequence[tuple],
    keys: Key[Array, " B"],
    rate: float,
) -> Float[Array, "P D"]:
    """Zeroes a share of the numbers at random, and scales up what is left.

    What befalls a click depends on its session's key and its position alone: neither on
    the padding nor on the sessions beside it.

    Args:
      embedded: the clicks of all tiers.
      shapes: (b, L) of each tier.
      keys: of the sessions of all tiers.
      rate: the share.
    """
    lengths = [length for b, length in shapes for _ in range(b)]
    session = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])

    def draw(key, position):
        own = jax.random.fold_in(key, position)
        return jax.random.bernoulli(own, 1 - rate, embedded.shape[1:])

    kept = jax.vmap(draw)(keys[session], position)
    return jnp.where(kept, embedded / (1 - rate), 0)


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
            [
                item_table.product(a, h, compute_dtype)
                for a, h in zip(matrices, tiers, strict=True)
            ]
        )
        has_any = join_tiers([a.sum(axis=-1, keepdims=True) for a in matrices])
        return [
            item_table.product(neighbours, kernel, compute_dtype) + has_any * bias
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
        item_table.product(hidden, kernel, compute_dtype) + bias
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


def by_click(
    hidden: Float[Array, "P D"], aliases: Sequence[Int[Array, "_ _"]]
) -> tuple[Float[Array, "P D"], list[Int[Array, "_ _"]]]:
    """Gives every click a slot of its own, as if no item were clicked twice."""
    states = split_tiers(hidden, [alias.shape for alias in aliases])
    of_clicks = [
        jnp.take_along_axis(state, alias[:, :, None], axis=1)
        for state, alias in zip(states, aliases, strict=True)
    ]
    own = [
        jnp.broadcast_to(jnp.arange(alias.shape[1]), alias.shape) for alias in aliases
    ]
    return join_tiers(of_clicks), own


def add_reverse_positions(
    params: Params,
    hidden: Float[Array, "P D"],
    item_seq_lens: Sequence[Int[AnyArray, " _"]],
    shapes: Sequence[tuple],
    compute_dtype: str | None = None,
) -> Float[Array, "P D"]:
    """Joins each click's state with its distance from the end of the session.

        z_i = tanh(W4 [s_i ; p_(n - i)] + b4)

    of n clicks, counted from 1; clicks that are further away than there are embeddings
    p share the last one.

    Source: Wang et al. 2020 (GCE-GNN), section "Session Representation Layer".
    """
    distances = [
        jnp.asarray(item_seq_len)[:, None] - 1 - jnp.arange(length)
        for item_seq_len, (_, length) in zip(item_seq_lens, shapes, strict=True)
    ]
    w_state, w_position = jnp.split(params["linear_position"]["kernel"], 2)
    positions = item_table.product(
        params["position_embedding"], w_position, compute_dtype
    )
    positions = positions + params["linear_position"]["bias"]
    index = jnp.clip(join_tiers(distances), 0, len(positions) - 1)
    return jnp.tanh(
        item_table.product(hidden, w_state, compute_dtype) + positions[index]
    )


def read_out(
    params: Params,
    hidden: Float[Array, "P D"],
    aliases: Sequence[Int[Array, "_ _"]],
    item_seq_lens: Sequence[Int[AnyArray, " _"]],
    readout: str = "hybrid",
    softmax_attention: bool = False,
    compute_dtype: str | None = None,
) -> tuple[Float[Array, "B D"], list[Float[Array, "_ _"]]]:
    """Sums up each session from the states of its clicks.

        alpha_i  = q . sigmoid(W1 s_last + b1 + W2 s_i + b2)      (no softmax)
        s_global = sum_i alpha_i s_i over positions: a revisited item counts again
        s        = W3 [s_global ; s_last] + b3

    is the paper's "hybrid"; "attention" is s_global alone, "average" the mean of the
    s_i, "local" s_last. Where there are `position_embedding`s, W2 is applied to
    `add_reverse_positions`' z_i.

    Args:
      params: of `Readout`.
      hidden: the state of each node slot.
      aliases: the node slot of each position.
      item_seq_lens: number of clicks.
      readout: one of `READOUTS`.
      softmax_attention: whether the alpha_i go through a softmax over the clicks.
      compute_dtype: of the matrix products.

    Returns:
      The session embeddings, and the weight of each node slot [b, L] in the sum, all of
      its clicks together; of each click's slot after `by_click`.

    Source: Wu et al. 2019, equations 6 and 7, and section "Comparison with Variants of
    Session Embeddings".
    """
    shapes = [alias.shape for alias in aliases]
    if "position_embedding" in params:
        # The weights of two clicks on one item differ.
        hidden, aliases = by_click(hidden, aliases)
    states = split_tiers(hidden, shapes)
    slots, lasts = [], []
    for state, alias, item_seq_len in zip(states, aliases, item_seq_lens, strict=True):
        last = jnp.take_along_axis(alias, item_seq_len[:, None] - 1, axis=1)
        slots.append(last)
        lasts.append(jnp.take_along_axis(state, last[:, :, None], axis=1)[:, 0])
    s_last = jnp.concatenate(lasts)
    has_attention = readout in ATTENTION_READOUTS
    if has_attention:
        queries = jnp.split(
            linear(params["linear_one"], s_last, compute_dtype),
            np.cumsum([b for b, _ in shapes])[:-1],
        )
        if "position_embedding" in params:
            hidden = add_reverse_positions(
                params, hidden, item_seq_lens, shapes, compute_dtype
            )
        keys = split_tiers(linear(params["linear_two"], hidden, compute_dtype), shapes)
    weights, s_globals = [], []
    for n, (state, alias, item_seq_len) in enumerate(
        zip(states, aliases, item_seq_lens, strict=True)
    ):
        if has_attention:
            alpha = attention(params, queries[n][:, None], keys[n], compute_dtype)
        # alpha depends on the node alone: a node's clicks are counted, not gathered.
        position = jnp.arange(alias.shape[1])
        is_click = position < item_seq_len[:, None]
        is_node = alias[:, :, None] == position
        clicks = jnp.sum(is_node & is_click[:, :, None], axis=1)
        if readout == "local":
            weight = (position == slots[n]).astype(state.dtype)
        elif readout == "average":
            weight = clicks / item_seq_len[:, None]
        elif softmax_attention:
            weight = jax.nn.softmax(alpha + jnp.log(clicks))
        else:
            weight = alpha * clicks
        weights.append(weight)
        s_globals.append(jnp.sum(weight[..., None] * state, axis=1))
    s_global = jnp.concatenate(s_globals)
    if readout == "hybrid":
        both = jnp.concatenate([s_global, s_last], axis=-1)
        return linear(params["linear_transform"], both, compute_dtype), weights
    return s_global, weights


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


class Readout(nn.Module):
    """Turns the nodes' hidden states into one embedding per session.

    Attributes:
      embedding_size: D.
      readout: one of `READOUTS`; see `read_out`.
      reverse_positions: how many positions have an embedding; 0: they play no part.
      softmax_attention: whether the attention goes through a softmax.
      compute_dtype: of the matrix products; None: that of the parameters.
    """

    embedding_size: int
    readout: str = "hybrid"
    reverse_positions: int = 0
    softmax_attention: bool = False
    compute_dtype: str | None = None

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "P D"],
        aliases: Sequence[Int[Array, "_ _"]],
        item_seq_lens: Sequence[Int[AnyArray, " _"]],
    ) -> tuple[Float[Array, "B D"], list[Float[Array, "_ _"]]]:
        """Returns what `read_out` does, by the parameters that its readout uses."""
        if self.readout not in READOUTS:
            names = ", ".join(READOUTS)
            raise ValueError(f"readout is {self.readout!r}, not one of {names}")
        d = self.embedding_size
        init = uniform_init(d)
        params: Params = {}
        if self.readout in ATTENTION_READOUTS:
            three = Linear(d, 1, init, use_bias=False, name="linear_three")
            params = {
                "linear_one": Linear(d, d, init, name="linear_one")(),
                "linear_two": Linear(d, d, init, name="linear_two")(),
                "linear_three": three(),
            }
            if self.reverse_positions:
                position = Linear(2 * d, d, init, name="linear_position")
                params["linear_position"] = position()
                params["position_embedding"] = self.param(
                    "position_embedding", init, (self.reverse_positions, d)
                )
        if self.readout == "hybrid":
            transform = Linear(2 * d, d, init, name="linear_transform")
            params["linear_transform"] = transform()
        return read_out(
            params,
            hidden,
            aliases,
            item_seq_lens,
            self.readout,
            self.softmax_attention,
            self.compute_dtype,
        )


class SRGNN(nn.Module):
    """Session-based recommendation with graph neural networks (Wu et al., AAAI 2019).

    Every method takes `item_seq` [B, L], item ids in click order with 0 as padding at
    the end, and `item_seq_len` [B], the number of clicks, at least 1. Outside of jit
    these are checked, and what is out of range raises ValueError.

    Attributes:
      num_items: V, the rows of the item table; row 0, the padding, is counted.
      embedding_size: D.
      step: propagation steps of the GNN.
      readout: what sums up a session, one of `READOUTS`; see `read_out`.
      normalize: whether items, where they enter the network and where they are scored,
        have the length 1, and sessions the length `scale` (Gupta et al. 2019, NISER).
      scale: what the cosine of session and item is multiplied by; unless `normalize`,
        it plays no part.
      item_dropout: share of the numbers of the items that enter the network to be
        dropped in training (NISER+); see `dropout`.
      reverse_positions: how many positions, counted from the last click, the attention
        tells apart; 0: none. See `add_reverse_positions`.
      softmax_attention: whether the attention goes through a softmax over the clicks.
      compute_dtype: of the matrix products, such as "bfloat16"; parameters, sums,
        activations and the softmax stay in float32. None: as the parameters are.
      item_axis: mesh axis that the item table is split over by rows, or None; see
        `item_table`. Only `encode`, the losses and the ranks know split tables.
      item_shards: the number of devices along it.
    """

    num_items: int
    embedding_size: int
    step: int = 1
    readout: str = "hybrid"
    normalize: bool = False
    scale: float = 16.0
    item_dropout: float = 0.0
    reverse_positions: int = 0
    softmax_attention: bool = False
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
        self.read_out = Readout(
            self.embedding_size,
            self.readout,
            self.reverse_positions,
            self.softmax_attention,
            self.compute_dtype,
            name="readout",
        )

    def encode(
        self,
        tiers: Sequence[Tier],
        *others: Int[AnyArray, " B"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> tuple[Array, ...]:
        """Embeds sessions that come padded to several lengths, in the order given.

        Args:
          tiers: the sessions.
          others: items whose embeddings are wanted too.
          dropout_keys: of the sessions, in training; None: nothing is dropped.

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
        if self.normalize:
            found, table = normalise(found), normalise(table)
        hidden, *embedded = jnp.split(found, ends[len(tiers) - 1 :])
        if dropout_keys is not None:
            shapes = [item_seq.shape for item_seq in item_seqs]
            hidden = dropout(hidden, shapes, dropout_keys, self.item_dropout)
        hidden, aliases = self.gnn(item_seqs, hidden)
        session, _ = self.read_out(hidden, aliases, item_seq_lens)
        if self.normalize:
            session = self.scale * normalise(session)
        return session, table, *embedded

    def __call__(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings."""
        self._check(item_seq, item_seq_len)
        return self.encode([(item_seq, item_seq_len)])[0]

    def _check(self, item_seq: Any, item_seq_len: Any, **items: Any) -> None:
        # What parameters are drawn for may be zeros, of which only the shape matters.
        if not self.is_initializing():
            graph.check_sessions(item_seq, item_seq_len, self.num_items, **items)

    def full_sort_predict(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B V"]:
        """Returns the score of every item row, the padding row included."""
        self._check(item_seq, item_seq_len)
        session, table = self.encode([(item_seq, item_seq_len)])
        return item_table.item_scores(session, table, self.compute_dtype).T

    def predict(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        item: Int[AnyArray, " B"],
    ) -> Float[Array, " B"]:
        """Returns the score of one item for each session."""
        self._check(item_seq, item_seq_len, item=item)
        session, _, embedding = self.encode([(item_seq, item_seq_len)], item)
        return jnp.sum(session * embedding, axis=-1)

    def scored_items(self) -> Float[Array, "V D"]:
        """Returns the item table that sessions are scored with."""
        table = self.item_embedding
        return normalise(table) if self.normalize else table

    def click_weights(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B L"]:
        """Returns the weight of each click in the sum that `read_out` makes."""
        hidden, _ = item_table.lookup(self.item_embedding, item_seq.reshape(-1))
        if self.normalize:
            hidden = normalise(hidden)
        hidden, aliases = self.gnn([item_seq], hidden)
        _, (weight,) = self.read_out(*by_click(hidden, aliases), [item_seq_len])
        return weight

    def loss_per_example(
        self,
        tiers: Sequence[Tier],
        target: Int[AnyArray, " B"],
        negative: Int[AnyArray, " B"] | None = None,
        loss_type: str = "CE",
        score_padding: bool = False,
        max_scores: int = item_table.MAX_SCORES,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, " B"]:
        """Returns each session's loss.

        See `calculate_loss` for the arguments, and `item_table.full_softmax` for
        `max_scores`.
        """
        if loss_type == "CE":
            session, table, target_embedding = self.encode(
                tiers, target, dropout_keys=dropout_keys
            )
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
        session, _, *pair = self.encode(
            tiers, target, negative, dropout_keys=dropout_keys
        )
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

    def top_k(
        self,
        tiers: Sequence[Tier],
        k: int,
        max_scores: int = item_table.MAX_SCORES,
    ) -> Int[Array, "B K"]:
        """Returns the rows of the items with each session's highest scores, best first.

        See `item_table.top_k`.
        """
        session, table = self.encode(tiers)
        return item_table.top_k(
            session,
            table,
            k,
            max_scores,
            num_items=self.num_items,
            axis_name=self.item_axis,
            compute_dtype=self.compute_dtype,
        )[1]

    def calculate_loss(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        target: Int[AnyArray, " B"],
        negative: Int[AnyArray, " B"] | None = None,
        loss_type: str = "CE",
        score_padding: bool = False,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, ""]:
        """Returns the mean loss over the batch.

        Args:
          item_seq: item ids in click order, 0 = padding at the end.
          item_seq_len: number of clicks.
          target: the item that was clicked next.
          negative: an item that was not; only "BPR" needs it.
          loss_type: "CE", cross entropy of the softmax over all items, or "BPR".
          score_padding: whether row 0 takes part in the softmax (RecBole: yes).
          dropout_keys: of the sessions, for `item_dropout`; None: nothing is dropped.
        """
        self._check(item_seq, item_seq_len, target=target, negative=negative)
        tiers = [(item_seq, item_seq_len)]
        return self.loss_per_example(
            tiers,
            target,
            negative,
            loss_type,
            score_padding,
            dropout_keys=dropout_keys,
        ).mean()


@jax.jit
def _finite(tree: Any) -> Any:
    """Returns for each array whether it holds no NaN and no infinity."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_finite(params: Any) -> None:
    """Raises ValueError, naming an array of the tree, unless all are finite."""
    for path, is_finite in jax.tree_util.tree_leaves_with_path(_finite(params)):
        if not is_finite:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"the parameter {name} holds NaN or infinity")


def init_params(model: SRGNN, seed: int) -> Params:
    """Draws the parameters of a model from a seed."""
    item_seq, item_seq_len = jnp.zeros((1, 2), jnp.int32), jnp.ones(1, jnp.int32)
    # Compiled as a whole: one by one, the draws take seconds to compile.
    variables = jax.jit(model.init)(jax.random.key(seed), item_seq, item_seq_len)
    return variables["params"]
