"""Several devices give the numbers of one."""

import functools

import jax
import numpy as np
import pytest

from srgnn_jax import parallel
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.evaluate import Evaluator
from srgnn_jax.model import SRGNN
from srgnn_jax.optimizer import adam_with_l2
from srgnn_jax.train import init_state, train_step

ITEMS = 40


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 24, 30)
    sessions = Sessions.from_lists([rng.integers(1, ITEMS, n) for n in lengths])
    return sessions.examples()


def train(devices, examples, loss_type="CE", batch_size=37):
    """Trains one epoch, whose last batch is partial; returns every step's mean loss."""
    model = SRGNN(ITEMS, 8)
    optimizer = adam_with_l2(0.01, 1e-3)
    step = devices.compile(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            seed=0,
            loss_type=loss_type,
            max_scores=devices.max_scores,
            axis_name=devices.axis_name,
        ),
        donate_state=True,
    )
    state = init_state(model, optimizer, 0)
    losses = []
    with_clicks = devices.hold_clicks(examples.items)
    for batch in batches.train_batches(
        examples, batch_size, 0, 0, 0, devices.shards, devices.max_positions
    ):
        before = float(state.loss)
        state = step(state, *with_clicks(batch))
        losses.append(float(state.loss) - before)
    return losses, state


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_pmap_trains_like_one_device(examples, loss_type):
    assert len(examples) % 37
    one, state_one = train(parallel.Devices(1), examples, loss_type)
    eight, state_eight = train(parallel.local_devices("pmap"), examples, loss_type)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert float(state_eight.examples) == len(examples)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        state_one.params,
        state_eight.params,
    )


@pytest.mark.parametrize(
    "limits", [{"max_positions": 50}, {"max_scores": 300}, {"max_clicks": 10}]
)
def test_a_device_that_holds_little_trains_and_evaluates_alike(examples, limits):
    large, small = parallel.Devices(1), parallel.Devices(1, **limits)
    one, state_one = train(large, examples)
    other, state_other = train(small, examples)
    np.testing.assert_allclose(other, one, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        state_one.params,
        state_other.params,
    )
    means = [
        Evaluator(SRGNN(ITEMS, 8), examples, (5, 20), 50, devices)(state_one.params)
        for devices in (large, small)
    ]
    assert means[1]["mrr@20"] == pytest.approx(means[0]["mrr@20"], rel=1e-6)


def test_limits_that_are_0_are_chosen_for_the_device():
    devices = parallel.local_devices("jit", max_positions=0, max_scores=7)
    assert devices.max_positions == parallel.CPU_POSITIONS
    assert devices.max_scores == 7


def test_pmap_evaluates_like_one_device(examples):
    model = SRGNN(ITEMS, 8)
    params = init_state(model, adam_with_l2(0.01, 0.0), 1).params
    means = []
    for devices in (parallel.Devices(1), parallel.local_devices("pmap")):
        evaluate = Evaluator(model, examples, (5, 20), 50, devices)
        mean = evaluate(params)
        del mean["examples_per_second"]
        means.append(mean)
    assert means[0].keys() == means[1].keys()
    for name in means[0]:
        assert means[1][name] == pytest.approx(means[0][name], rel=1e-6)


def test_auto_takes_what_is_there():
    assert parallel.local_devices("auto").shards == jax.local_device_count() == 8
    assert parallel.local_devices("jit").shards == 1
