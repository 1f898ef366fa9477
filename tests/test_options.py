"""Readouts and options follow their equations, however a model is run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.configs import default, diginetica_plus, yoochoose_plus
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Sessions, Vocabulary
from srgnn_jax.devices import layouts
from srgnn_jax.devices.tiers import encode
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.workdir import evaluate_workdir
from srgnn_jax.model.layers import normalise
from srgnn_jax.model.losses import cross_entropy
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve.export import export_top_k
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.loop import train_and_evaluate
from tests.tiny import tiny_config, training_step

ITEMS, SIZE = 43, 8
ALL = {
    "normalize": True,
    "item_dropout": 0.3,
    "reverse_positions": 4,
    "softmax_attention": True,
}


def make(step=1, **options):
    model = SRGNN(ITEMS, SIZE, step, **options)
    return model, init_params(model, 0)


def run(model, params, *arguments, method=None, **kwargs):
    apply = jax.jit(functools.partial(model.apply, method=method))
    return apply({"params": params}, *arguments, **kwargs)


def random_batch(batch=12, length=9, seed=0):
    """Draws sessions with repeat clicks, their lengths, and targets."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, batch).astype(np.int32)
    lengths[:2] = 1, length
    item_seq = rng.integers(1, 7, (batch, length)).astype(np.int32)
    item_seq[np.arange(length) >= lengths[:, None]] = 0
    target = rng.integers(1, ITEMS, batch).astype(np.int32)
    return item_seq, lengths, target


@pytest.fixture(scope="module")
def examples():
    """Prefixes of 5 clicks, so that there is only one tier to compile."""
    lists = np.random.default_rng(0).integers(1, ITEMS, (100, 6))
    return Sessions.from_lists(list(lists), last_only=True).examples()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(params, items, readout, reverse_positions, softmax_attention, scale):
    """Computes the scores and weights of one session, without propagation.

    `scale` is 0 unless items and sessions are normalised.
    """
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table = params["item_embedding"]
    if scale:
        table = table / np.linalg.norm(table, axis=1, keepdims=True)
    p = params.get("readout", {})
    clicks = [table[item] for item in items]
    n = len(clicks)
    if readout == "local":
        weights = [0.0] * (n - 1) + [1.0]
    elif readout == "average":
        weights = [1 / n] * n
    else:
        query = clicks[-1] @ p["linear_one"]["kernel"] + p["linear_one"]["bias"]
        weights = []
        for i, state in enumerate(clicks):
            if reverse_positions:
                place = p["position_embedding"][min(n - 1 - i, reverse_positions - 1)]
                both = np.concatenate([state, place])
                linear = p["linear_position"]
                state = np.tanh(both @ linear["kernel"] + linear["bias"])
            key = state @ p["linear_two"]["kernel"] + p["linear_two"]["bias"]
            weights.append((sigmoid(query + key) @ p["linear_three"]["kernel"]).item())
        if softmax_attention:
            weights = list(np.exp(weights) / np.sum(np.exp(weights)))
    session = sum(w * state for w, state in zip(weights, clicks, strict=True))
    if readout == "hybrid":
        linear = p["linear_transform"]
        both = np.concatenate([session, clicks[-1]])
        session = both @ linear["kernel"] + linear["bias"]
    if scale:
        session = scale * session / np.linalg.norm(session)
    return table @ session, weights


@pytest.mark.parametrize(
    ("readout", "reverse_positions", "softmax_attention", "scale"),
    [
        # Every pair of choices occurs at least once.
        ("hybrid", 0, False, 0.0),
        ("hybrid", 3, True, 9.0),
        ("attention", 0, True, 0.0),
        ("attention", 3, False, 9.0),
        ("hybrid", 3, False, 0.0),
        ("attention", 0, True, 9.0),
        ("average", 0, False, 0.0),
        ("average", 0, False, 9.0),
        ("local", 0, False, 9.0),
    ],
)
def test_scores_and_weights_are_those_of_the_equations(
    readout, reverse_positions, softmax_attention, scale
):
    options = {
        "reverse_positions": reverse_positions,
        "softmax_attention": softmax_attention,
    }
    normalized = {"normalize": True, "scale": scale} if scale else {}
    model, params = make(0, readout=readout, **options, **normalized)
    item_seq, lengths, target = random_batch()

    def all_of(module):
        return (
            module.full_sort_predict(item_seq, lengths),
            module(item_seq, lengths),
            module.predict(item_seq, lengths, target),
        )

    (scores, _, one), sown = jax.jit(
        lambda params: model.apply(
            {"params": params}, method=all_of, mutable=["intermediates"]
        )
    )(params)
    weights = sown["intermediates"]["readout"]["click_weights"][-1]
    for b, n in enumerate(lengths):
        items = item_seq[b, :n].tolist()
        expected, of_clicks = reference(params, items, readout, **options, scale=scale)
        np.testing.assert_allclose(scores[b], expected, atol=2e-5)
        np.testing.assert_allclose(weights[b, :n], of_clicks, atol=1e-6)
        np.testing.assert_allclose(one[b], expected[target[b]], atol=2e-5)


@pytest.mark.parametrize(
    ("readout", "loss_type"),
    [("hybrid", "CE"), ("attention", "BPR"), ("local", "CE")],
)
def test_losses_come_from_the_scores(readout, loss_type):
    options = {"normalize": True}
    if readout in ("hybrid", "attention"):
        options |= {"reverse_positions": 3, "softmax_attention": True}
    model, params = make(readout=readout, **options)
    item_seq, lengths, target = random_batch()
    rows = np.arange(len(target))
    negative = target % (ITEMS - 1) + 1
    batch = params, item_seq, lengths
    scores = run(model, *batch, method="full_sort_predict")

    def loss(params):
        return model.apply(
            {"params": params},
            *(item_seq, lengths, target, negative, loss_type),
            method="calculate_loss",
        )

    def expected_loss(params):
        scores = model.apply(
            {"params": params}, item_seq, lengths, method="full_sort_predict"
        )
        if loss_type == "BPR":
            difference = scores[rows, target] - scores[rows, negative]
            return -jnp.log(1e-10 + jax.nn.sigmoid(difference)).mean()
        return -jax.nn.log_softmax(scores[:, 1:])[rows, target - 1].mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(expected_loss))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6),
        gradient,
        expected_gradient,
    )
    assert scores.max() <= model.scale * (1 + 1e-5)


def test_without_options_the_parameters_are_the_papers():
    _, plain = make()
    _, same = make(normalize=True, item_dropout=0.5, softmax_attention=True)
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    _, more = make(reverse_positions=5)
    added = more["readout"].keys() - plain["readout"].keys()
    assert added == {"position_embedding", "linear_position"}
    assert more["readout"]["position_embedding"].shape == (5, SIZE)


def test_padding_and_tiers_change_nothing():
    model, params = make(2, **ALL)
    item_seq, lengths, target = random_batch()
    order = np.argsort(lengths)
    item_seq, lengths, target = item_seq[order], lengths[order], target[order]
    example = np.arange(len(target), dtype=np.int32)
    padded = np.pad(item_seq, ((0, 0), (0, 11)))
    n = int((lengths <= 4).sum())
    layouts = (
        [(item_seq, lengths)],
        [(padded, lengths)],
        [(item_seq[:n, :4], lengths[:n]), (item_seq[n:], lengths[n:])],
    )

    @jax.jit
    def losses_of(params, tiers, key=None):
        encoded = encode(
            *(model, params, tiers, target, target[:, None]),
            example=jnp.asarray(example),
            dropout_key=key,
        )
        return cross_entropy(*encoded)

    losses = [losses_of(params, tiers, jax.random.key(3)) for tiers in layouts]
    # Scores reach `scale` = 16, so their rounding is visible in a small loss.
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5, atol=5e-6)
    found = losses_of(params, layouts[0]), losses[0]
    # With the second key, items are dropped.
    assert abs(found[0] - found[1]).max() > 1e-3


def test_the_length_of_items_plays_no_part_where_they_are_normalised():
    model, params = make(normalize=True)
    batch = random_batch()[:2]
    factors = np.random.default_rng(0).uniform(0.1, 10, (ITEMS, 1)).astype(np.float32)
    other = dict(params, item_embedding=params["item_embedding"] * factors)
    scores, same = (
        run(model, p, *batch, method="full_sort_predict") for p in (params, other)
    )
    np.testing.assert_allclose(scores, same, atol=1e-4)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-22, 1e-12, 1.0])
def test_a_row_that_underflows_has_a_finite_gradient(length):
    rows = jnp.full((1, SIZE), length, jnp.float32)
    scaled, gradient = jax.value_and_grad(lambda x: normalise(x)[0, 0])(rows)
    assert np.isfinite(scaled)
    assert np.isfinite(gradient).all()
    if length == 1:
        assert scaled == pytest.approx(SIZE**-0.5)


@pytest.mark.parametrize("length", [1.0, 1e-22, 0.0])
def test_training_stays_finite_while_the_padding_row_vanishes(examples, length):
    """Without a gradient, Adam moves this row by full-size steps of decay alone."""
    step, start = training_step(layouts.Devices(1), ITEMS, normalize=True)
    batch = next(batches.train_batches(examples, 8, 0, 0))

    @jax.jit
    def train(state):
        return jax.lax.fori_loop(
            0, 600, lambda _, state: step(state, examples.items, batch), state
        )

    state = start()
    table = state.params["item_embedding"]
    params = dict(state.params, item_embedding=table.at[0].multiply(length))
    state = train(state._replace(params=params))
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(leaf).all()


def test_dropout_zeroes_its_share_and_scales_up_the_rest():
    item_seq = np.arange(1, ITEMS, dtype=np.int32)[None]
    lengths = np.array([ITEMS - 1], np.int32)
    rate = 0.3
    plain, params = make(0, readout="average")
    model = plain.clone(item_dropout=rate)
    tiers = [(np.tile(item_seq, (200, 1)), np.tile(lengths, 200))]
    ones = dict(params, item_embedding=jnp.ones((ITEMS, SIZE)))
    example = jnp.arange(200)

    def sessions(key, example=example):
        found = encode(model, ones, tiers, example=example, dropout_key=key)
        return np.asarray(found[0])

    session = sessions(jax.random.key(0))
    # Each number is a mean of ones after dropout, scaled up to be 1 on average: of
    # ITEMS - 1 draws with variance rate / (1 - rate).
    variance = rate / (1 - rate) / (ITEMS - 1)
    assert session.mean() == pytest.approx(1, abs=4 * (variance / session.size) ** 0.5)
    assert session.var() == pytest.approx(variance, rel=0.2)
    # Sessions do not share a mask, nor do the numbers of a click.
    assert len(np.unique(np.asarray(session), axis=0)) == 200
    # Without a key, as in evaluation, nothing is dropped.
    np.testing.assert_allclose(sessions(None), 1, rtol=1e-6)
    # The draw depends only on the key and the example's number.
    again = sessions(jax.random.key(0), example[::-1])
    np.testing.assert_array_equal(again, session[::-1])
    assert (sessions(jax.random.key(1)) != session).any(axis=1).all()


def train(devices, examples, loss_type="CE", **options):
    """Trains one epoch; its last batch is partial."""
    step, start = training_step(devices, ITEMS, SIZE, loss_type, **options)
    step, state = devices.compile(step, updates_state=True), devices.make(start)
    with_clicks = devices.hold_clicks(examples.items)
    for batch in batches.train_batches(
        examples, 37, 0, 0, 0, devices.shards, devices.max_positions
    ):
        state = step(state, *with_clicks(batch))
    return state


@pytest.mark.parametrize(
    ("loss_type", "many"),
    [
        pytest.param("CE", [("jit", (0, 0), 50, 300)], marks=pytest.mark.slow),
        # Compiling for eight devices is slow.
        pytest.param("CE", [("mesh", (2, 4), 0, 20)], marks=pytest.mark.slow),
        pytest.param("CE", [("pmap", (0, 0), 0, 0)], marks=pytest.mark.slow),
        pytest.param("BPR", [("mesh", (2, 4), 0, 0)], marks=pytest.mark.slow),
    ],
)
def test_many_devices_and_parts_train_and_evaluate_like_one(examples, loss_type, many):
    one = train(layouts.Devices(1), examples, loss_type, **ALL)
    model = SRGNN(ITEMS, SIZE, **ALL)
    expected = Evaluator(model, examples, (20,), 50, layouts.Devices(1))(one.params)
    for how, shape, positions, scores in many:
        devices = layouts.find_devices(
            how, shape, max_positions=positions, max_scores=scores
        )
        state = train(devices, examples, loss_type, **ALL)
        assert float(state.loss) == pytest.approx(float(one.loss), rel=1e-5)
        jax.tree.map(
            # A split table is padded with rows.
            lambda a, b: np.testing.assert_allclose(a, b[: len(a)], atol=5e-5),
            one.params,
            state.params,
        )
        means = Evaluator(model, examples, (20,), 50, devices)(state.params)
        assert means["mrr@20"] == pytest.approx(expected["mrr@20"], rel=1e-3)


def test_dropout_is_drawn_anew_in_every_step(examples):
    step, start = training_step(layouts.Devices(1), ITEMS, item_dropout=0.3)
    batch = next(batches.train_batches(examples, 8, 0, 0))
    take_step = jax.jit(lambda state: step(state, examples.items, batch))
    first, second, again = (
        float(take_step(start()._replace(step=jnp.int32(n))).loss) for n in (0, 1, 0)
    )
    assert first == again != second


@pytest.mark.slow  # The tests of training check the same without options.
def test_a_stopped_run_goes_on_exactly(tmp_path):
    config = tiny_config(tmp_path)
    # One click each, so that there is only one tier to compile.
    config.update(normalize=True, item_dropout=0.3, max_session_length=1, epochs=1)
    whole = train_and_evaluate(config, str(tmp_path / "whole")).state
    config.max_steps = 3
    train_and_evaluate(config, str(tmp_path / "parts"))
    config.max_steps = 0
    parts = train_and_evaluate(config, str(tmp_path / "parts")).state
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    config.normalize = False
    with pytest.raises(UserError, match=r"config\.normalize: True -> False"):
        evaluate_workdir(str(tmp_path / "parts"), config)


@pytest.mark.parametrize("options", [ALL, {"readout": "local"}])
def test_recommendations_and_exports_are_by_the_same_scores(options):
    model, params = make(**options)
    vocabulary = Vocabulary([f"i{row}" for row in range(1, ITEMS)])
    recommender = Recommender(model, params, vocabulary)
    session = [f"i{row}" for row in (3, 9, 3, 40, 12)]
    item_seq = vocabulary.rows(session)[None].astype(np.int32)
    length = np.array([5], np.int32)
    scores = np.asarray(
        run(model, params, item_seq, length, method="full_sort_predict")
    )[0]
    rows = np.argsort(-scores[1:])[:6] + 1
    (found,) = recommender.recommend([session], 6)
    assert found.items == [f"i{row}" for row in rows]
    np.testing.assert_allclose(found.scores, scores[rows], rtol=1e-5)
    (found,) = recommender.recommend([session], 6, as_probabilities=True)
    shares = np.asarray(jax.nn.softmax(scores[1:]))
    np.testing.assert_allclose(found.scores, shares[rows - 1], rtol=1e-5)
    chosen = [f"i{row}" for row in rows[[4, 2]]]
    (found,) = recommender.recommend([session], 6, candidates=chosen)
    assert found.items == chosen[::-1]
    np.testing.assert_allclose(found.scores, scores[rows[[2, 4]]], rtol=1e-5)
    exported = export_top_k(model, params, 5, 6)
    allowed, seen = np.ones(len(scores), bool), np.zeros((1, 1), np.int32)
    best, row = exported.call(params, item_seq, length, allowed, seen)
    np.testing.assert_array_equal(row[0], rows)
    np.testing.assert_allclose(best[0], scores[rows], rtol=1e-5)
    weights = recommender.explain(session).attention
    if options != {"readout": "local"}:
        assert sum(weights) == pytest.approx(1, rel=1e-5)
        assert min(weights) > 0
    else:
        assert weights == [0, 0, 0, 0, 1]
    if options == ALL:
        # Two clicks on one item differ by position.
        assert weights[0] != weights[2]


def test_bfloat16_products_cost_little_accuracy():
    model, params = make(**ALL)
    batch = random_batch()
    exact, rounded = (
        run(model.clone(compute_dtype=dtype), params, *batch, method="calculate_loss")
        for dtype in (None, "bfloat16")
    )
    assert rounded.dtype == jnp.float32
    # Scores reach `scale` = 16; bfloat16 has 8 bits.
    assert 0 < abs(exact - rounded) < 16 * 2**-8


def test_configs_build_the_model_that_they_name():
    for config in (diginetica_plus.get_config(), yoochoose_plus.get_config("1_4")):
        config_lib.validate(config)
        model = config_lib.make_model(config, ITEMS)
        assert model.normalize
        assert model.item_dropout == config.item_dropout > 0
        assert model.reverse_positions == config.reverse_positions > 0
    config = default.get_config()
    assert config_lib.make_model(config, ITEMS) == SRGNN(ITEMS, 100)
    config.update(readout="attention", scale=9.0, softmax_attention=True, step=3)
    expected = SRGNN(
        *(ITEMS, 100, 3), readout="attention", scale=9.0, softmax_attention=True
    )
    assert config_lib.make_model(config, ITEMS) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"readout": "mean"}, "hybrid, attention, average, local"),
        ({"readout": "local", "reverse_positions": 3}, "reverse_positions.*no attent"),
        ({"readout": "average", "softmax_attention": True}, "softmax_attention.*no at"),
        ({"scale": 0.0}, "scale"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 2**32 - 1, "runs": 2}, "seeds reach"),
        ({"item_dropout": 1.0}, "item_dropout is 1.0.*below 1"),
        ({"item_dropout": float("nan")}, "item_dropout"),
        ({"item_dropout": -0.1}, "item_dropout"),
        ({"reverse_positions": -1}, "reverse_positions"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, message):
    config = default.get_config()
    config.update(fields)
    with pytest.raises(UserError, match=message):
        config_lib.validate(config)


def test_an_unknown_readout_is_named():
    with pytest.raises(ValueError, match="'mean', not one of hybrid"):
        make(readout="mean")
