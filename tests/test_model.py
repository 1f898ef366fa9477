"""The model handles padding, tiers and repeat clicks exactly."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax.devices.tiers import encode
from srgnn_jax.model.layers import dense, product
from srgnn_jax.model.readout import READOUTS
from srgnn_jax.model.srgnn import SRGNN, init_params

ITEMS, SIZE = 30, 8


def random_sessions(batch=16, length=9, seed=0):
    rng = np.random.default_rng(seed)
    item_seq_len = rng.integers(1, length + 1, batch)
    item_seq_len[:2] = 1, length
    item_seq = rng.integers(1, 7, (batch, length))
    item_seq[np.arange(length) >= item_seq_len[:, None]] = 0
    target = rng.integers(1, ITEMS, batch)
    as_int32 = (jnp.array(x, jnp.int32) for x in (item_seq, item_seq_len, target))
    return tuple(as_int32)


def make(step=1, readout="hybrid"):
    model = SRGNN(ITEMS, SIZE, step, readout)
    return model, init_params(model, 0)


@functools.cache
def compiled(model, method):
    return jax.jit(functools.partial(model.apply, method=method))


def run(model, params, *batch, method=None):
    return compiled(model, method)({"params": params}, *batch)


@functools.cache
def compiled_loss(model, **kwargs):
    def loss(params, *batch):
        return model.apply(
            {"params": params}, *batch, **kwargs, method="calculate_loss"
        )

    return jax.jit(jax.value_and_grad(loss))


def loss_and_gradient(model, params, *batch, **kwargs):
    return compiled_loss(model, **kwargs)(params, *batch)


def assert_trees_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize(
    ("step", "readout"), [(3, "hybrid"), *((1, name) for name in READOUTS[1:])]
)
def test_padding_changes_nothing(step, readout):
    model, params = make(step, readout)
    item_seq, item_seq_len, target = random_sessions()
    padded = jnp.pad(item_seq, ((0, 0), (0, 2 * item_seq.shape[1])))

    @jax.jit
    def loss_gradient_and_scores(params, item_seq):
        def loss(params):
            batch = {"params": params}, item_seq, item_seq_len, target
            return model.apply(*batch, method="calculate_loss")

        session = {"params": params}, item_seq, item_seq_len
        scores = model.apply(*session, method="full_sort_predict")
        return jax.value_and_grad(loss)(params), scores

    assert_trees_close(
        loss_gradient_and_scores(params, padded),
        loss_gradient_and_scores(params, item_seq),
    )


def test_row_0_of_the_table_touches_no_session():
    model, params = make()
    item_seq, item_seq_len, _ = random_sessions()
    other = dict(params, item_embedding=params["item_embedding"].at[0].set(99.0))
    np.testing.assert_array_equal(
        run(model, params, item_seq, item_seq_len),
        run(model, other, item_seq, item_seq_len),
    )


def test_tiers_give_the_sessions_of_one_batch():
    model, params = make(step=2)
    item_seq, item_seq_len, _ = random_sessions()
    order = jnp.argsort(item_seq_len)
    item_seq, item_seq_len = item_seq[order], item_seq_len[order]
    n = int((item_seq_len <= 4).sum())
    tiers = [(item_seq[:n, :4], item_seq_len[:n]), (item_seq[n:], item_seq_len[n:])]
    np.testing.assert_allclose(
        jax.jit(lambda params: encode(model, params, tiers)[0])(params),
        run(model, params, item_seq, item_seq_len),
        atol=1e-6,
    )


def test_methods_agree_with_each_other():
    model, params = make()
    item_seq, item_seq_len, target = random_sessions()
    session = run(model, params, item_seq, item_seq_len)
    scores = run(model, params, item_seq, item_seq_len, method="full_sort_predict")
    one = run(model, params, item_seq, item_seq_len, target, method="predict")
    assert session.shape == (16, SIZE)
    assert scores.shape == (16, ITEMS)
    np.testing.assert_allclose(scores, session @ params["item_embedding"].T, atol=1e-6)
    np.testing.assert_allclose(one, scores[jnp.arange(16), target], atol=1e-6)
    log_p = jax.nn.log_softmax(scores[:, 1:])[jnp.arange(16), target - 1]
    loss, _ = loss_and_gradient(model, params, item_seq, item_seq_len, target)
    np.testing.assert_allclose(loss, -log_p.mean(), rtol=1e-5)
    log_p = jax.nn.log_softmax(scores)[jnp.arange(16), target]
    loss, _ = loss_and_gradient(
        model, params, item_seq, item_seq_len, target, score_padding=True
    )
    np.testing.assert_allclose(loss, -log_p.mean(), rtol=1e-5)


def test_bpr_compares_target_and_negative():
    model, params = make()
    item_seq, item_seq_len, target = random_sessions()
    negative = (target % (ITEMS - 1)) + 1
    scores = run(model, params, item_seq, item_seq_len, method="full_sort_predict")
    rows = jnp.arange(16)
    difference = scores[rows, target] - scores[rows, negative]
    loss, _ = loss_and_gradient(
        model, params, item_seq, item_seq_len, target, negative, loss_type="BPR"
    )
    expected = -jnp.log(jax.nn.sigmoid(difference)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"loss_type": "BPR"}, "negative"), ({"loss_type": "hinge"}, "hinge")],
)
def test_wrong_loss_arguments_are_named(arguments, message):
    model, params = make()
    with pytest.raises(ValueError, match=message):
        loss_and_gradient(model, params, *random_sessions(), **arguments)


def test_parameters_start_uniform_within_their_bound():
    _, params = make()
    bound = SIZE**-0.5
    for leaf in jax.tree.leaves(params):
        assert abs(leaf).max() <= bound
    table = params["item_embedding"]
    assert abs(table).max() > 0.95 * bound
    assert abs(table.mean()) < 0.1 * bound


def test_a_readout_has_the_parameters_that_it_uses():
    attention = {"linear_one", "linear_two", "linear_three"}
    expected = {
        "hybrid": attention | {"linear_transform"},
        "attention": attention,
        "average": set(),
        "local": set(),
    }
    for readout in READOUTS:
        _, params = make(readout=readout)
        assert params.get("readout", {}).keys() == expected[readout]
        assert params.keys() - {"readout"} == {"item_embedding", "gnn"}


def test_every_step_propagates_once_more():
    item_seq, item_seq_len, _ = random_sessions()
    params = make()[1]
    sessions = [
        run(SRGNN(ITEMS, SIZE, step), params, item_seq, item_seq_len)
        for step in (0, 1, 2, 3)
    ]
    for before, after in itertools.pairwise(sessions):
        assert abs(before - after).max() > 1e-4


def test_a_revisited_item_counts_again():
    model, params = make(step=0, readout="attention")
    item_seq = jnp.array([[3, 5, 5, 5], [3, 5, 0, 0]])
    session = run(model, params, item_seq, jnp.array([4, 2]))
    # Without propagation, a node is its embedding: two more clicks on item 5 add twice
    # its attended embedding. Both sessions end on item 5, so it is the same in both.
    alone = run(model, params, jnp.array([[5]]), jnp.array([1]))
    np.testing.assert_allclose(session[0] - session[1], 2 * alone[0], atol=1e-6)


def test_bfloat16_products_are_summed_in_float32():
    # 257 lies between two numbers of bfloat16.
    assert product(jnp.ones((1, 257)), jnp.ones((257, 1)), "bfloat16") == 257
    layer = dense(1, 4, "bfloat16", use_bias=False)
    kernel = {"params": {"kernel": jnp.ones((257, 1))}}
    assert layer.apply(kernel, jnp.ones((1, 257))) == 257


def test_bfloat16_products_cost_little_accuracy():
    item_seq, item_seq_len, target = random_sessions()
    params = make(step=2)[1]
    exact, rounded = (
        loss_and_gradient(
            SRGNN(ITEMS, SIZE, 2, compute_dtype=dtype),
            *(params, item_seq, item_seq_len, target),
        )
        for dtype in (None, "bfloat16")
    )
    # The encoder's products are also rounded, not only those of the softmax.
    sessions = [
        run(SRGNN(ITEMS, SIZE, 2, compute_dtype=dtype), params, item_seq, item_seq_len)
        for dtype in (None, "bfloat16")
    ]
    assert sessions[1].dtype == jnp.float32
    assert 0 < abs(sessions[0] - sessions[1]).max() < 2**-6
    # bfloat16 has 8 bits, so a product's relative error is up to 2^-8.
    assert 0 < abs(exact[0] - rounded[0]) < 2**-8 * exact[0]
    for a, b in zip(
        jax.tree.leaves(exact[1]), jax.tree.leaves(rounded[1]), strict=True
    ):
        assert a.dtype == b.dtype == jnp.float32
        assert abs(a - b).max() < 0.05 * max(abs(a).max(), 0.01)
