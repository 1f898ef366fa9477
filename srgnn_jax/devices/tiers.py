"""Encodes a batch that is cut into tiers; the model sees one tier at a time.

*Tiers* are groups of sessions, each padded to one length (see `data.batches`). The
items of all tiers are looked up at once, the model encodes tier by tier, and all
sessions are scored together.

Axes: B batch, b sessions of a tier, L positions, D embedding.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from srgnn_jax.data.batches import Tier
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.layers import Params


def encode(
    model: nn.Module,
    params: Params,
    tiers: Sequence[Tier],
    *ids: Int[AnyArray, "B ..."],
    example: Int[Array, " B"] | None = None,
    dropout_key: Key[Array, ""] | None = None,
    **table_options: Any,
) -> tuple[Any, ...]:
    """Encodes the sessions of all tiers, in the order given.

    Args:
      model: the model.
      params: its parameters, with the whole item table or this device's rows of it.
      tiers: for each tier, item ids [b, L], 0 = padding at the end, and lengths [b],
        at least 1.
      *ids: more items whose rows to return.
      example: the numbers of the examples; needed with a `dropout_key`.
      dropout_key: key for dropout in training; None: nothing is dropped.
      **table_options: fields of `ItemTable`.

    Returns:
      The session embeddings [B, D], the `ItemTable` to score them with, and the rows of
      each of `ids` [B, ..., D].
    """
    table = ItemTable(
        params["item_embedding"],
        model.num_items,
        compute_dtype=model.compute_dtype,
        **table_options,
    )
    found, table = table.lookup(
        *(item_seq for item_seq, _ in tiers), *ids, normalize=model.normalize
    )

    def encode_tiers(model):
        sessions, first = [], 0
        for (item_seq, item_seq_len), embedded in zip(tiers, found, strict=False):
            last = first + len(item_seq)
            number = None if example is None else example[first:last]
            sessions.append(
                model.encode(
                    item_seq, item_seq_len, embedded, number, dropout_key is None
                )
            )
            first = last
        return jnp.concatenate(sessions)

    # One `apply`: what depends only on the weights is computed once for all tiers.
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    session = nn.apply(encode_tiers, model)({"params": params}, rngs=rngs)
    return session, table, *found[len(tiers) :]
