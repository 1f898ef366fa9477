"""The softmax over all items, with a hand-written gradient.

Axes: B batch, V item rows, R rows of V that this device holds, D embedding.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srgnn_jax.model.layers import over_devices, product


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def log_sum_exp(
    session: Float[Array, "B D"], rows: Float[Array, "R D"], how: Any
) -> Float[Array, " B"]:
    """Returns the log of the softmax's denominator, log sum_v exp(s . e_v).

    With p the softmax, its gradient is
        d / d rows = p session,   d / d session = p^T rows
    The division by the softmax's sum is done on the [B, D] side, so that only the
    products pass over [V, B]. In blocks, scores are computed twice.

    Args:
      session: session embeddings.
      rows: rows of the item table.
      how: an `ItemTable` without rows, which says how to score them.

    Source: Wu et al. 2019, equations 8 to 10.
    """
    return forward(session, rows, how)[0]


def forward(session, rows, how):
    """Returns the value of `log_sum_exp`, and what its gradient needs."""
    table = dataclasses.replace(how, rows=rows)
    scored_from, batch = int(not how.score_padding), session.shape[0]
    count = table.num_blocks(batch)
    if count == 1:
        *_, scores = table.block(session, 0, 1, scored_from)
        maximum = scores.max(axis=0)
        if how.axis_name is not None:
            maximum = jax.lax.pmax(maximum, how.axis_name)
        exponentials = jnp.exp(scores - maximum)
        total, weighted = _sum_and_product(exponentials, rows, how.compute_dtype)
    else:
        exponentials = None  # Too many to keep: the backward pass recomputes them.

        def body(i, so_far):
            maximum, *sums = so_far
            _, block, _, scores = table.block(session, i, count, scored_from)
            higher = jnp.maximum(maximum, scores.max(axis=0))
            parts = _sum_and_product(jnp.exp(scores - higher), block, how.compute_dtype)
            shrunk = _scaled(sums, jnp.exp(maximum - higher))
            return higher, *(x + part for x, part in zip(shrunk, parts, strict=True))

        lowest = jnp.full(batch, jnp.finfo(session.dtype).min, session.dtype)
        start = lowest, jnp.zeros(batch, session.dtype), jnp.zeros_like(session)
        maximum, *sums = jax.lax.fori_loop(0, count, body, start)
        if how.axis_name is not None:
            own = maximum
            maximum = jax.lax.pmax(own, how.axis_name)
            sums = _scaled(sums, jnp.exp(own - maximum))
        total, weighted = sums
    total = over_devices(total, how.axis_name)
    residuals = session, rows, maximum, total, weighted, exponentials
    return jnp.log(total) + maximum, residuals


def _sum_and_product(exponentials, rows, compute_dtype):
    """Returns the sums over rows of the exponentials [B] and of exp * row [B, D]."""

    def apart(exponentials, rows):
        weighted = product(exponentials.T, rows, compute_dtype)
        return exponentials.sum(axis=0), weighted

    # On TPU, the sum is one more column of the product, which takes no time. A separate
    # pass over the scores would take a twelfth of a step's time.
    def in_one(exponentials, rows):
        rows = jnp.pad(rows, ((0, 0), (0, 1)), constant_values=1)
        both = product(exponentials.T, rows, compute_dtype)
        return both[:, -1], both[:, :-1]

    return jax.lax.platform_dependent(exponentials, rows, tpu=in_one, default=apart)


def _scaled(sums, by):
    total, weighted = sums
    return total * by, weighted * by[:, None]


def _backward(how, residuals, cotangent):
    session, rows, maximum, total, weighted, exponentials = residuals
    table = dataclasses.replace(how, rows=rows)
    scale = (cotangent / total)[:, None]
    scaled_session = scale * session
    if exponentials is not None:
        d_rows = product(exponentials, scaled_session, how.compute_dtype)
    else:
        scored_from = int(not how.score_padding)
        count = table.num_blocks(session.shape[0])

        def body(i, d_rows):
            first, block, _, scores = table.block(session, i, count, scored_from)
            exponentials = jnp.exp(scores - maximum)
            # Unscored rows add nothing to what the previous block wrote.
            added = jax.lax.dynamic_slice_in_dim(d_rows, first, block.shape[0])
            added += product(exponentials, scaled_session, how.compute_dtype)
            return jax.lax.dynamic_update_slice_in_dim(d_rows, added, first, axis=0)

        d_rows = jax.lax.fori_loop(0, count, body, jnp.zeros_like(rows))
    return scale * over_devices(weighted, how.axis_name), d_rows


log_sum_exp.defvjp(forward, _backward)
