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

    Source: Wu et al. 2019, equations 8 to 10.
    """
    return _full_softmax(session, item_embedding, target, score_padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _full_softmax(session, item_embedding, target, score_padding):
    return _full_softmax_forward(session, item_embedding, target, score_padding)[0]


def _full_softmax_forward(session, item_embedding, target, score_padding):
    scores = item_scores(session, item_embedding)
    if not score_padding:
        scores = scores.at[0].set(-jnp.inf)
    target_score = scores[target, jnp.arange(target.shape[0])]
    maximum = scores.max(axis=0)
    exponentials = jnp.exp(scores - maximum)
    total = exponentials.sum(axis=0)
    loss = jnp.log(total) + maximum - target_score
    return loss, (session, item_embedding, target, exponentials, total)


def _full_softmax_backward(score_padding, residuals, cotangent):
    del score_padding  # exp(-inf) = 0 already keeps row 0 out of both products.
    session, item_embedding, target, exponentials, total = residuals
    scale = (cotangent / total)[:, None]
    weight = cotangent[:, None]
    d_table = exponentials @ (scale * session)
    d_table = d_table.at[target].add(-weight * session)
    d_session = scale * (exponentials.T @ item_embedding)
    d_session -= weight * item_embedding[target]
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
