"""The hand-written softmax gradient against automatic differentiation, and BPR."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srgnn_jax import losses


def random_problem(batch=6, items=23, size=5, scale=1.0):
    rng = np.random.default_rng(0)
    session = jnp.array(rng.normal(size=(batch, size)) * scale, jnp.float32)
    table = jnp.array(rng.normal(size=(items, size)), jnp.float32)
    # Two examples share a target: their gradients must add up.
    target = jnp.array(rng.integers(1, items, batch)).at[1].set(4).at[2].set(4)
    return session, table, target


def reference(session, table, target, score_padding):
    scores = session @ table.T
    if not score_padding:
        scores, target = scores[:, 1:], target - 1
    return optax.softmax_cross_entropy_with_integer_labels(scores, target)


# 23 items of 6 sessions: whole, in halves, in blocks of 5 rows, row by row.
@pytest.mark.parametrize("max_scores", [10_000, 100, 30, 1])
@pytest.mark.parametrize("score_padding", [False, True])
def test_full_softmax_matches_reference(score_padding, max_scores):
    session, table, target = random_problem()
    weight = jnp.array([0.3, 1.0, 2.0, 0.0, 0.7, 0.1])

    def full_softmax(*arguments):
        return losses.full_softmax(*arguments, max_scores)

    def weighted(loss):
        return lambda s, t: jnp.sum(weight * loss(s, t, target, score_padding))

    ours = full_softmax(session, table, target, score_padding)
    np.testing.assert_allclose(
        ours, reference(session, table, target, score_padding), rtol=1e-5
    )
    grad = jax.jit(jax.grad(weighted(full_softmax), (0, 1)))(session, table)
    expected = jax.grad(weighted(reference), (0, 1))(session, table)
    for a, b in zip(grad, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_row_0_gets_a_gradient_only_where_it_is_scored():
    session, table, target = random_problem()

    def row_0(score_padding):
        return jax.grad(
            lambda t: losses.full_softmax(session, t, target, score_padding).sum()
        )(table)[0]

    assert not row_0(False).any()
    assert row_0(True).any()


def largest_array(jaxpr):
    """Returns the most numbers that an array has in a traced computation."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [
        largest_array(getattr(value, "jaxpr", value))
        for eqn in jaxpr.eqns
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        )
        if hasattr(value, "jaxpr") or hasattr(value, "eqns")
    ]
    return max(sizes + inner)


@pytest.mark.parametrize(("max_scores", "bounded"), [(2_000, True), (10**6, False)])
def test_blocks_never_hold_all_scores(max_scores, bounded):
    session, table = jnp.zeros((64, 2)), jnp.zeros((500, 2))
    target = jnp.ones(64, jnp.int32)

    def loss(session, table):
        return losses.full_softmax(session, table, target, max_scores=max_scores).sum()

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(session, table)
    assert (largest_array(traced.jaxpr) <= 2_100) == bounded


def test_full_softmax_of_huge_scores_is_finite():
    session, table, target = random_problem(scale=1e4)
    loss, grad = jax.value_and_grad(
        lambda s: losses.full_softmax(s, table, target).sum()
    )(session)
    expected = reference(session, table, target, False).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert jnp.isfinite(grad).all()


def test_bpr_is_minus_log_sigmoid_of_the_difference():
    session = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    target = jnp.array([[0.5, 0.5], [1.0, 1.0]])
    negative = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    difference = np.array([1.5 - 2.0, -0.5 - 1.0])
    expected = -np.log(1e-10 + 1 / (1 + np.exp(-difference)))
    np.testing.assert_allclose(
        losses.bpr(session, target, negative), expected, rtol=1e-6
    )
