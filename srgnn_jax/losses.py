"""Losses, one value per example; whoever calls them weights, sums and divides.

Axes: B batch, V item rows (row 0 is the padding item), D embedding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# RecBole's BPRLoss adds it inside the logarithm.
BPR_GAMMA = 1e-10
# Scores that a softmax holds at a time: 64 Mi floats are 256 MiB.
MAX_SCORES = 2**26


def item_scores(
    session: Float[Array, "B D"], item_embedding: Float[Array, "V D"]
) -> Float[Array, "V B"]:
    """Returns the score of every item row for every session, items first.

    Items come first because the gradient of the table is then written row by row, and
    sums over items are sums over whole rows: on CPU a third of the time of [B, V].
    """
    return item_embedding @ session.T


def full_softmax(
    session: Float[Array, "B D"],
    item_embedding: Float[Array, "V D"],
    target: Int[Array | np.ndarray, " B"],
    score_padding: bool = False,
    max_scores: int = MAX_SCORES,
) -> Float[Array, " B"]:
    """Cross entropy of the softmax over items: log sum_v exp(s . e_v) - s . e_target.

    The gradient is written by hand. With p the softmax, it is
        d loss / d item_embedding = (p - onehot(target)) session
        d loss / d session        = (p - onehot(target))^T item_embedding
    where the one-hot part touches B rows only and the division by the softmax's sum
    moves to the [B, D] side, so that no pass over [V, B] is made beside the two
    products.

    Args:
      session: session embeddings s.
      item_embedding: the item table.
      target: row of the item that was clicked next, >= 1.
      score_padding: whether row 0 takes part in the softmax, as in RecBole; the paper's
        code leaves it out.
      max_scores: where V * B exceeds it, the table is worked through in blocks of rows,
        twice: at most so many scores are ever held, and the numbers are the same but
        for rounding.

    Source: Wu et al. 2019, equations 8 to 10.
    """
    return _full_softmax(session, item_embedding, target, score_padding, max_scores)


def _num_blocks(num_items: int, batch: int, max_scores: int) -> int:
    return min(num_items, -(-num_items * batch // max_scores))


def _block(session, item_embedding, score_padding, i, count):
    """Returns the first row of block i of `count`, its rows, and their scores."""
    num_items = item_embedding.shape[0]
    rows = -(-num_items // count)
    # The last block is as long as the others: it starts early, and its first rows,
    # which the block before holds too, are masked.
    first = jnp.minimum(i * rows, num_items - rows)
    block = jax.lax.dynamic_slice_in_dim(item_embedding, first, rows)
    row = first + jnp.arange(rows)
    counts = (row >= i * rows) & ((row > 0) | score_padding)
    scores = jnp.where(counts[:, None], item_scores(session, block), -jnp.inf)
    return first, block, scores


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _full_softmax(session, item_embedding, target, score_padding, max_scores):
    return _full_softmax_forward(
        session, item_embedding, target, score_padding, max_scores
    )[0]


def _full_softmax_forward(session, item_embedding, target, score_padding, max_scores):
    batch = session.shape[0]
    count = _num_blocks(item_embedding.shape[0], batch, max_scores)
    block = functools.partial(_block, session, item_embedding, score_padding)
    if count == 1:
        _, _, scores = block(0, 1)
        maximum = scores.max(axis=0)
        exponentials = jnp.exp(scores - maximum)
        total = exponentials.sum(axis=0)
    else:
        exponentials = None  # Too many to keep: the backward pass makes them again.

        def body(i, so_far):
            maximum, total = so_far
            _, _, scores = block(i, count)
            higher = jnp.maximum(maximum, scores.max(axis=0))
            total *= jnp.exp(maximum - higher)
            return higher, total + jnp.exp(scores - higher).sum(axis=0)

        lowest = jnp.full(batch, jnp.finfo(session.dtype).min, session.dtype)
        start = lowest, jnp.zeros(batch, session.dtype)
        maximum, total = jax.lax.fori_loop(0, count, body, start)
    target_score = jnp.sum(session * item_embedding[target], axis=-1)
    loss = jnp.log(total) + maximum - target_score
    return loss, (session, item_embedding, target, maximum, total, exponentials)


def _full_softmax_backward(score_padding, max_scores, residuals, cotangent):
    session, item_embedding, target, maximum, total, exponentials = residuals
    count = _num_blocks(item_embedding.shape[0], session.shape[0], max_scores)
    scale = (cotangent / total)[:, None]
    scaled_session = scale * session
    if count == 1:
        d_table = exponentials @ scaled_session
        d_session = exponentials.T @ item_embedding
    else:

        def body(i, so_far):
            d_table, d_session = so_far
            first, block, scores = _block(
                session, item_embedding, score_padding, i, count
            )
            exponentials = jnp.exp(scores - maximum)
            # Masked rows add nothing to what the block before has written.
            rows = jax.lax.dynamic_slice_in_dim(d_table, first, block.shape[0])
            d_table = jax.lax.dynamic_update_slice_in_dim(
                d_table, rows + exponentials @ scaled_session, first, axis=0
            )
            return d_table, d_session + exponentials.T @ block

        start = jnp.zeros_like(item_embedding), jnp.zeros_like(session)
        d_table, d_session = jax.lax.fori_loop(0, count, body, start)
    weight = cotangent[:, None]
    d_table = d_table.at[target].add(-weight * session)
    d_session = scale * d_session - weight * item_embedding[target]
    return d_session, d_table, None


_full_softmax.defvjp(_full_softmax_forward, _full_softmax_backward)


def bpr(
    session: Float[Array, "B D"],
    target_embedding: Float[Array, "B D"],
    negative_embedding: Float[Array, "B D"],
) -> Float[Array, " B"]:
    """Bayesian personalised ranking: -log(1e-10 + sigmoid(s . e_target - s . e_neg)).

    Source: Rendle et al. 2009; the constant is that of RecBole's `BPRLoss`.
    """
    difference = jnp.sum(session * (target_embedding - negative_embedding), axis=-1)
    return -jnp.log(BPR_GAMMA + jax.nn.sigmoid(difference))
