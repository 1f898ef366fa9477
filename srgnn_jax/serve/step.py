"""Compiled functions for recommending: the best items of a batch, click weights.

Axes: B sessions of a batch, L positions, M clicks, D embedding, N rows that this device
scores, R scored rows, K items of a list.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from srgnn_jax.devices import tiers
from srgnn_jax.devices.layouts import ITEM_AXIS
from srgnn_jax.evaluate.joined import add_up
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.layers import Params
from srgnn_jax.model.ranking import largest


def recommend_step(
    params: Params,
    table: Float[Array, "N D"],
    rows: Int[AnyArray, " R"] | None,
    count: Int[AnyArray, ""] | None,
    item_seq: Int[AnyArray, "B L"],
    seen: Int[AnyArray, "B M"] | None,
    shares: Float[AnyArray, "B N"] | None = None,
    *,
    model: nn.Module,
    k: int,
    max_scores: int,
    whole: int = 0,
    score_padding: bool,
    as_probabilities: bool,
    recall: float,
    item_axis: str | None = None,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Returns the K best items for a batch of sessions; the table has more rows.

    With an `item_axis`, the model's table and `table` are this device's rows of them.

    Args:
      table: rows of the items to choose from, after the padding row; of length 1 if the
        model normalises.
      rows: the item row of each row of the table; None: they are the same.
      count: number of rows that count, the rest is padding; None: all.
      item_seq: item rows in click order, 0 = padding at the end.
      seen: item rows to leave out, 0 = padding; None: none.
      shares: what to join, for the table's rows; see `joined.add_up`. None: the network
        alone.

    Returns:
      Scores or probabilities (joined scores always are), -inf where no item is left,
      and item rows.
    """
    item_seq_len = jnp.maximum(jnp.count_nonzero(jnp.asarray(item_seq), axis=1), 1)
    tier = item_seq, item_seq_len
    session, _ = tiers.encode(model, params, [tier], axis_name=item_axis)
    held = table.shape[0] * (jax.lax.axis_size(item_axis) if item_axis else 1)
    wanted = k if seen is None else min(k + seen.shape[1], held)
    scored = ItemTable(
        table,
        model.num_items if count is None else count,
        score_padding and rows is None,
        max(max_scores, held * len(item_seq)) if len(item_seq) <= whole else max_scores,
        item_axis,
        model.compute_dtype,
    )
    if shares is not None:
        _, _, _, scores = scored.block(session, 0, 1, 1)
        both = add_up(scores, jnp.asarray(shares).T)
        best, row = largest(both, wanted, recall)
    else:
        best, row = scored.top_k(session, wanted, recall)
    if as_probabilities and shares is None:
        total = scored.log_sum_exp(session)
        best = jnp.where(best > -jnp.inf, jnp.exp(best - total[:, None]), best)
    if rows is not None:
        row = jnp.asarray(rows)[row]
    if seen is not None:
        is_in = functools.partial(jnp.isin, method="binary_search")
        is_seen = jax.vmap(is_in)(row, jnp.asarray(seen))
        best, index = jax.lax.top_k(jnp.where(is_seen, -jnp.inf, best), k)
        row = jnp.take_along_axis(row, index, axis=1)
    return best, row


OPTIONS = ("k", "as_probabilities", "recall")


def of_table(
    others: Params,
    item_embedding: Array,
    table: Array,
    /,
    *arguments: Any,
    mesh: Mesh | None = None,
    **options: Any,
) -> Any:
    """Runs `recommend_step` with the item table apart from the other parameters.

    On a mesh, each device holds its rows of both tables, and all get the result.
    """
    item_axis = None if mesh is None else ITEM_AXIS

    def step(others, item_embedding, *arguments):
        params = {**others, "item_embedding": item_embedding}
        return recommend_step(params, *arguments, item_axis=item_axis, **options)

    if mesh is not None:
        whole, rows = PartitionSpec(), PartitionSpec(ITEM_AXIS)
        specs = whole, rows, rows, *[whole] * len(arguments)
        step = jax.shard_map(
            step, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False
        )
    return step(others, item_embedding, table, *arguments)


STATIC = (*OPTIONS, "model", "max_scores", "whole", "score_padding", "mesh")
shared = jax.jit(of_table, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames="model")
def click_weights(
    params: Params,
    item_seq: Int[AnyArray, "B L"],
    item_seq_len: Int[AnyArray, " B"],
    *,
    model: nn.Module,
) -> list[Array]:
    """Returns the click weights that the readout reports; [] if it reports none."""
    # Only the rows that are looked up: the table may be split over devices.
    table = ItemTable(params["item_embedding"], model.num_items)
    (embedded,), _ = table.lookup(jnp.asarray(item_seq), normalize=model.normalize)

    def encode(model):
        return model.encode(item_seq, item_seq_len, embedded)

    run = nn.apply(encode, model, mutable=["intermediates"])
    _, sown = run({"params": params})
    flat = traverse_util.flatten_dict(dict(sown))
    return [v[0] for path, v in flat.items() if path[-1] == "click_weights"]
