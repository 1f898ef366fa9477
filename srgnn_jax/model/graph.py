"""Session graphs as padded arrays, built on the device from `item_seq` alone.

A session is a walk over items. Its distinct items are the nodes of a directed graph,
and each pair of consecutive clicks is an edge. Repeated edges count once (Wu et al.
2019, section "Constructing Session Graphs").

An item's node is the *position of its first click*, so a graph over L positions has L
node slots. The slots of repeat clicks and of padding stay empty. This needs no sorting,
no data-dependent shape and no work on the host.

Axes: B batch, L positions (and node slots).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Ids may be NumPy arrays.
AnyArray = Array | np.ndarray


def check_sessions(
    item_seq: Any, item_seq_len: Any, num_items: int, **items: Any
) -> None:
    """Checks the inputs of a model; under jit, only their shapes and types.

    On the device, an id that is out of range would read another item's row.

    Args:
      item_seq: item ids [B, L] in click order, with padding (0) only at the end.
      item_seq_len: number of clicks [B], from 1 to L.
      num_items: V; ids are 1 to V - 1.
      **items: more ids [B] ("negative" may be [B, K]), or None.

    Raises:
      ValueError: a shape, a type or a value is wrong.
    """
    arrays = {"item_seq": item_seq, "item_seq_len": item_seq_len, **items}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    for name, array in arrays.items():
        expected = np.shape(item_seq)[: 2 if name == "item_seq" else 1]
        shape = np.shape(array)[: 1 if name == "negative" else None]
        if shape != expected or np.ndim(item_seq) != 2:
            raise ValueError(
                f"{name} has shape {np.shape(array)}; item_seq is [B, L], the rest [B]"
            )
        if not jnp.issubdtype(jnp.result_type(array), jnp.integer):
            raise ValueError(f"{name} holds {jnp.result_type(array)}, not integers")
    try:
        known = {name: np.asarray(array) for name, array in arrays.items()}
    except jax.errors.TracerArrayConversionError:
        return
    length = known.pop("item_seq_len")
    seq = known.pop("item_seq")
    if ((length < 1) | (length > seq.shape[1])).any():
        raise ValueError(
            f"item_seq_len holds {length.min()} to {length.max()}, not 1 to "
            f"{seq.shape[1]}, the length of item_seq"
        )
    is_click = np.arange(seq.shape[1]) < length[:, None]
    known["item_seq"] = seq[is_click]
    for name, array in known.items():
        if array.size and not (array.min() >= 1 and array.max() < num_items):
            raise ValueError(
                f"{name} holds {array.min()} to {array.max()} outside the padding, "
                f"not 1 to {num_items - 1}"
            )
    if seq[~is_click].any():
        raise ValueError("item_seq holds items beyond item_seq_len; it must be 0 there")


def node_alias(item_seq: Int[AnyArray, "B L"]) -> Int[Array, "B L"]:
    """Returns the node slot of each position: where its item was first clicked."""
    same_item = item_seq[:, :, None] == item_seq[:, None, :]
    return jnp.argmax(same_item, axis=-1).astype(jnp.int32)


def adjacency(
    item_seq: Int[AnyArray, "B L"], alias: Int[Array, "B L"], dtype=jnp.float32
) -> Float[Array, "B L L"]:
    """Returns [b, u, v] = 1 if session b clicks v right after u, else 0."""
    batch, length = item_seq.shape
    session = jnp.arange(batch)[:, None]
    is_edge = (item_seq[:, 1:] > 0).astype(dtype)
    empty = jnp.zeros((batch, length, length), dtype)
    return empty.at[session, alias[:, :-1], alias[:, 1:]].max(is_edge)


def normalised_connections(
    edges: Float[Array, "B L L"],
) -> tuple[Float[Array, "B L L"], Float[Array, "B L L"]]:
    """Returns the incoming and outgoing connection matrices of `adjacency`.

    Row v of the incoming matrix weights each node before v by 1 / (number of them). Row
    u of the outgoing one does the same for the nodes after u. Nodes without neighbours
    have rows of zeros.
    """
    incoming = jnp.swapaxes(edges, 1, 2)

    def normalise(rows):
        return rows / jnp.maximum(rows.sum(axis=-1, keepdims=True), 1)

    return normalise(incoming), normalise(edges)


def connection_matrix(
    item_seq: Int[AnyArray, "B L"], dtype=jnp.float32
) -> tuple[Int[Array, "B L"], Int[Array, "B L"], Float[Array, "B L L2"]]:
    """Builds the nodes, the alias and the connection matrix A of each session.

    Args:
      item_seq: item ids in click order, with padding (0) only at the end.
      dtype: of A.

    Returns:
      nodes [B, L]: the item of each node slot, 0 if the slot is empty.
      alias [B, L]: the node slot of each position, so that
        `nodes[b, alias[b, p]] == item_seq[b, p]`.
      A [B, L, 2L]: the input of RecBole's `GNNCell(A, hidden)`: incoming connections
        in `A[:, :, :L]`, outgoing ones in `A[:, :, L:]`; each row sums to 1 or 0.

    Source: Wu et al. 2019, figure 2 and equation 1.
    """
    alias = node_alias(item_seq)
    is_first_click = alias == jnp.arange(item_seq.shape[1])
    incoming, outgoing = normalised_connections(adjacency(item_seq, alias, dtype))
    nodes = jnp.where(is_first_click, item_seq, 0)
    return nodes, alias, jnp.concatenate([incoming, outgoing], axis=-1)
