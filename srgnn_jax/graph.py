"""Session graphs as padded arrays, built on the device from `item_seq` alone.

A session is a walk over items: its distinct items are the nodes of a directed graph,
and every pair of consecutive clicks is an edge, counted once however often it is walked
(Wu et al. 2019, section "Constructing Session Graphs").

The node of an item is the *position of its first click*, so a graph over L positions
has L node slots, of which those of repeated clicks and of padding stay empty. This
needs no sorting, no data-dependent shape and no work on the host.

Axes: B batch, L positions (and node slots).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Ids may come from the host as they are.
AnyArray = Array | np.ndarray


def node_alias(item_seq: Int[AnyArray, "B L"]) -> Int[Array, "B L"]:
    """Returns the node slot of every position: where its item was first clicked."""
    same_item = item_seq[:, :, None] == item_seq[:, None, :]
    return jnp.argmax(same_item, axis=-1).astype(jnp.int32)


def adjacency(
    item_seq: Int[AnyArray, "B L"], alias: Int[Array, "B L"], dtype=jnp.float32
) -> Float[Array, "B L L"]:
    """Returns [b, u, v] = 1 where session b clicks v right after u, else 0."""
    batch, length = item_seq.shape
    session = jnp.arange(batch)[:, None]
    is_edge = (item_seq[:, 1:] > 0).astype(dtype)
    empty = jnp.zeros((batch, length, length), dtype)
    return empty.at[session, alias[:, :-1], alias[:, 1:]].max(is_edge)


def normalised_connections(
    edges: Float[Array, "B L L"],
) -> tuple[Float[Array, "B L L"], Float[Array, "B L L"]]:
    """Returns the incoming and the outgoing connection matrix of `adjacency`.

    Row v of the incoming matrix weighs the nodes before v by 1 / (number of them); row
    u of the outgoing one weighs the nodes after u likewise. Nodes without any have
    zeros.
    """
    incoming = jnp.swapaxes(edges, 1, 2)

    def normalise(rows):
        return rows / jnp.maximum(rows.sum(axis=-1, keepdims=True), 1)

    return normalise(incoming), normalise(edges)


def connection_matrix(
    item_seq: Int[AnyArray, "B L"],
) -> tuple[Int[Array, "B L"], Int[Array, "B L"], Float[Array, "B L L2"]]:
    """Builds the nodes, the alias and the connection matrix A of each session.

    Args:
      item_seq: item ids in click order, 0 = padding, only at the end.

    Returns:
      nodes [B, L]: the item of each node slot, 0 where the slot is empty.
      alias [B, L]: the node slot of each position, so that
        `nodes[b, alias[b, p]] == item_seq[b, p]`.
      A [B, L, 2L]: what RecBole's `GNNCell(A, hidden)` takes, `A[:, :, :L]` the
        incoming and `A[:, :, L:]` the outgoing connections, each row summing to 1 or 0.

    Source: Wu et al. 2019, figure 2 and equation 1.
    """
    alias = node_alias(item_seq)
    is_first_click = alias == jnp.arange(item_seq.shape[1])
    incoming, outgoing = normalised_connections(adjacency(item_seq, alias))
    nodes = jnp.where(is_first_click, item_seq, 0)
    return nodes, alias, jnp.concatenate([incoming, outgoing], axis=-1)
