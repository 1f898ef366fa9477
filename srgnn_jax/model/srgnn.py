"""SR-GNN: item embeddings, a layer over the session graphs, and a readout.

Axes: B batch, L positions (and node slots), K negatives, D embedding, V item rows (row
0 is padding).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from srgnn_jax.model import graph
from srgnn_jax.model.gnn import GNN
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.layers import Params, normalise, uniform_init
from srgnn_jax.model.losses import LOSSES
from srgnn_jax.model.readout import Readout


class SRGNN(nn.Module):
    """Session-based recommendation with graph neural networks (Wu et al., AAAI 2019).

    A batch of sessions is `item_seq` [B, L], item ids in click order with padding (0)
    at the end, and `item_seq_len` [B], the number of clicks, at least 1. Outside of
    jit, values out of range raise ValueError.

    Attributes:
      num_items: V, the rows of the item table, including row 0, the padding.
      embedding_size: D.
      step: propagation steps of the GNN.
      readout: how a session is summed up, one of `READOUTS`; see `Readout`.
      normalize: whether item embeddings are scaled to length 1, as inputs and for
        scoring, and sessions to length `scale` (Gupta et al. 2019, NISER).
      scale: factor of the cosine of session and item; only used with `normalize`.
      item_dropout: share of the numbers in the input embeddings to drop in training
        (NISER+); see `dropout`.
      reverse_positions: positions from the last click back that have an embedding of
        their own in the attention; 0: none. See `Readout`.
      softmax_attention: whether the attention goes through a softmax over the clicks.
      compute_dtype: of matrix products, see `layers.product`; all else is float32.
      gnn: a layer to use instead of `GNN`, with the same call: (A [B, L, 2L], hidden
        [B, L, D], is_node [B, L]) -> [B, L, D]. `step` is then unused.
      pooling: a module to use instead of `Readout`, with the same call: (states
        [B, L, D], is_click [B, L], item_seq [B, L]) -> [B, D].
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
    gnn: nn.Module | None = None
    pooling: nn.Module | None = None

    def setup(self):
        self.propagate: Any = self.gnn or GNN(
            self.embedding_size, self.step, self.compute_dtype, name="gnn"
        )
        self.pool: Any = self.pooling or Readout(
            self.embedding_size,
            self.readout,
            self.reverse_positions,
            self.softmax_attention,
            self.compute_dtype,
            name="readout",
        )
        # Drawn once, so that every call of `encode` drops clicks with the same key.
        draws = self.item_dropout and self.has_rng("dropout")
        self.dropout_key = self.make_rng("dropout") if draws else None

    @nn.compact
    def item_embedding(self) -> Float[Array, "V D"]:
        """Returns the embedding of every item row."""
        shape = self.num_items, self.embedding_size
        init = uniform_init(self.embedding_size)
        return self.param("item_embedding", init, shape)

    def encode(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        embedded: Float[Array, "B L D"],
        example: Int[AnyArray, " B"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings, without reading the item table.

        Args:
          item_seq: item ids in click order, 0 = padding at the end.
          item_seq_len: number of clicks.
          embedded: the table rows of `item_seq`, of length 1 if `normalize`.
          example: the numbers of the examples, which `item_dropout` depends on.
          deterministic: whether to drop nothing. If False, an RNG named "dropout" is
            required.
        """
        item_seq = jnp.asarray(item_seq)
        nodes, alias, A = graph.connection_matrix(item_seq, embedded.dtype)
        if self.item_dropout and not deterministic:
            if example is None:
                raise ValueError("item_dropout needs `example`, a number per session")
            if self.dropout_key is None:
                raise ValueError('item_dropout needs an RNG named "dropout"')
            embedded = dropout(embedded, self.dropout_key, example, self.item_dropout)
        hidden = self.propagate(A, embedded, nodes > 0)
        states = jnp.take_along_axis(hidden, alias[:, :, None], axis=1)
        position = jnp.arange(item_seq.shape[1])
        is_click = position < jnp.asarray(item_seq_len)[:, None]
        session = self.pool(states, is_click, item_seq)
        return self.scale * normalise(session) if self.normalize else session

    def __call__(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B D"]:
        """Returns the session embeddings."""
        return self._embed(item_seq, item_seq_len)[0]

    def full_sort_predict(
        self, item_seq: Int[AnyArray, "B L"], item_seq_len: Int[AnyArray, " B"]
    ) -> Float[Array, "B V"]:
        """Returns the score of every item row, including the padding row."""
        session, table = self._embed(item_seq, item_seq_len)
        return table.scores(session).T

    def predict(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        item: Int[AnyArray, " B"],
    ) -> Float[Array, " B"]:
        """Returns the score of one item for each session."""
        session, _, rows = self._embed(item_seq, item_seq_len, item=item)
        return jnp.sum(session * rows, axis=-1)

    def calculate_loss(
        self,
        item_seq: Int[AnyArray, "B L"],
        item_seq_len: Int[AnyArray, " B"],
        target: Int[AnyArray, " B"],
        negative: Int[AnyArray, "B *K"] | None = None,
        loss_type: str = "CE",
        score_padding: bool = False,
        example: Int[AnyArray, " B"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, ""]:
        """Returns the mean loss over the batch.

        Args:
          item_seq: item ids in click order, 0 = padding at the end.
          item_seq_len: number of clicks.
          target: the item clicked next.
          negative: one or K items that were not clicked next; "CE" needs none.
          loss_type: "CE", cross entropy of the softmax over all items, or "BPR".
          score_padding: whether row 0 takes part in the softmax (RecBole: yes).
          example: see `encode`.
          deterministic: see `encode`.

        Raises:
          ValueError: the loss is unknown, or `negative` is missing.
        """
        if loss_type not in LOSSES:
            names = " or ".join(map(repr, LOSSES))
            raise ValueError(f"loss_type is {loss_type!r}, not {names}")
        loss = LOSSES[loss_type]
        if loss.negatives and negative is None:
            raise ValueError(
                f"loss_type {loss_type!r} needs `negative` for each example"
            )
        if negative is None:
            negative = jnp.zeros((len(target), 0), jnp.int32)
        elif jnp.ndim(negative) == 1:
            negative = jnp.asarray(negative)[:, None]
        session, table, target_rows, negative_rows = self._embed(
            item_seq,
            item_seq_len,
            example,
            deterministic,
            score_padding,
            target=target,
            negative=negative,
        )
        return loss.function(session, table, target_rows, negative_rows).mean()

    def _embed(
        self,
        item_seq,
        item_seq_len,
        example=None,
        deterministic=True,
        score_padding=False,
        **items,
    ):
        """Returns sessions, the table to score them with, and the rows of `items`."""
        # For initialization only shapes matter, so inputs may be all zeros.
        if not self.is_initializing():
            graph.check_sessions(item_seq, item_seq_len, self.num_items, **items)
        table = ItemTable(
            self.item_embedding(),
            self.num_items,
            score_padding,
            compute_dtype=self.compute_dtype,
        )
        (embedded, *rows), table = table.lookup(
            item_seq, *items.values(), normalize=self.normalize
        )
        session = self.encode(item_seq, item_seq_len, embedded, example, deterministic)
        return session, table, *rows


def dropout(
    embedded: Float[Array, "B L D"],
    key: Key[Array, ""],
    example: Int[AnyArray, " B"],
    rate: float,
) -> Float[Array, "B L D"]:
    """Zeroes a random share of the numbers and scales up the rest.

    A click's mask depends only on the key, the example's number and the position, not
    on the padding or on other sessions.
    """

    def of_click(key, position):
        own = jax.random.fold_in(key, position)
        return jax.random.bernoulli(own, 1 - rate, embedded.shape[2:])

    def of_session(number):
        own = jax.random.fold_in(key, number)
        positions = jnp.arange(embedded.shape[1])
        return jax.vmap(of_click, (None, 0))(own, positions)

    kept = jax.vmap(of_session)(jnp.asarray(example))
    return jnp.where(kept, embedded / (1 - rate), 0)


def init_params(model: nn.Module, seed: int) -> Params:
    """Initializes the parameters of a model from a seed."""
    item_seq, item_seq_len = jnp.zeros((1, 2), jnp.int32), jnp.ones(1, jnp.int32)
    # Compiled as a whole: one by one, the initializers take seconds to compile.
    variables = jax.jit(model.init)(jax.random.key(seed), item_seq, item_seq_len)
    return variables["params"]
