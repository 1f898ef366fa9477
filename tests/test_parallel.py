"""Several devices give the numbers of one."""

import contextlib
import math
import re

import jax
import numpy as np
import pytest

from srgnn_jax.data import batches
from srgnn_jax.devices import layouts, suits
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.progress import Progress
from tests.tiny import random_examples, training_step

ITEMS = 43  # No multiple of the devices: a split table is filled up.


@pytest.fixture(scope="module")
def examples():
    return random_examples(ITEMS, 30)


def setup(devices, loss_type="CE", num_items=ITEMS):
    """Returns a step function and the state to start from."""
    step, start = training_step(devices, num_items, loss_type=loss_type)
    return devices.compile(step, updates_state=True), devices.make(start)


def train(devices, examples, loss_type="CE", batch_size=37):
    """Trains one epoch, whose last batch is partial; returns every step's mean loss."""
    step, state = setup(devices, loss_type)
    losses = []
    with_clicks = devices.hold_clicks(examples.items)
    for batch in batches.train_batches(
        examples, batch_size, 0, 0, 0, devices.shards, devices.max_positions
    ):
        before = float(state.loss)
        state = step(state, *with_clicks(batch))
        losses.append(float(state.loss) - before)
    return losses, state


def assert_same_params(state, other):
    jax.tree.map(
        # A split table is filled up with rows.
        lambda a, b: np.testing.assert_allclose(a, b[: len(a)], atol=2e-5),
        state.params,
        other.params,
    )


LAYOUTS = [("pmap", (0, 0)), ("mesh", (8, 1)), ("mesh", (2, 4)), ("mesh", (1, 8))]


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_devices_train_like_one(examples, layout, loss_type):
    assert len(examples) % 37
    one, state_one = train(layouts.Devices(1), examples, loss_type)
    many, state_many = train(layouts.find_devices(*layout), examples, loss_type)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    assert float(state_many.examples) == len(examples)
    assert_same_params(state_one, state_many)


@pytest.mark.parametrize(
    "limits", [{"max_positions": 50}, {"max_scores": 300}, {"max_clicks": 10}]
)
def test_a_device_that_holds_little_trains_and_evaluates_alike(examples, limits):
    large, small = layouts.Devices(1), layouts.Devices(1, **limits)
    one, state_one = train(large, examples)
    other, state_other = train(small, examples)
    np.testing.assert_allclose(other, one, rtol=1e-5)
    assert_same_params(state_one, state_other)
    means = [
        Evaluator(SRGNN(ITEMS, 8), examples, (5, 20), 50, devices)(state_one.params)
        for devices in (large, small)
    ]
    assert means[1]["mrr@20"] == pytest.approx(means[0]["mrr@20"], rel=1e-6)


def test_limits_that_are_0_are_chosen_for_the_device():
    devices = layouts.find_devices("jit", max_positions=0, max_scores=7)
    assert devices.max_positions == suits.SUITS["cpu"].max_positions
    assert devices.max_scores == 7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_devices_evaluate_like_one(examples, layout):
    model = SRGNN(ITEMS, 8)
    means = []
    for devices in (layouts.Devices(1), layouts.find_devices(*layout)):
        params = devices.make(lambda: init_params(model, 1))
        mean = Evaluator(model, examples, (5, 20), 50, devices)(params)
        del mean["examples_per_second"]
        means.append(mean)
    assert means[0].keys() == means[1].keys()
    for name in means[0]:
        assert means[1][name] == pytest.approx(means[0][name], rel=1e-6)


@pytest.mark.parametrize("max_scores", [10**6, 20])
def test_a_split_table_is_worked_through_in_blocks(examples, max_scores):
    one, _ = train(layouts.Devices(1), examples)
    devices = layouts.find_devices("mesh", (2, 4), max_scores=max_scores)
    many, _ = train(devices, examples)
    np.testing.assert_allclose(many, one, rtol=1e-5)


def test_each_device_holds_its_rows_of_the_table_and_its_moments():
    devices = layouts.find_devices("mesh", (1, 8))
    _, state = setup(devices, num_items=45)
    _, adam, _ = state.opt_state
    for tree in (state.params, adam.mu, adam.nu):
        table = tree["item_embedding"]
        assert table.shape == (48, 8)
        assert {shard.data.shape for shard in table.addressable_shards} == {(6, 8)}
        assert {x.device for x in table.addressable_shards} == set(jax.devices())
    # What fills up is zero, whatever the rows before were drawn.
    table = np.asarray(state.params["item_embedding"])
    assert not table[45:].any()
    assert table[:45].any(axis=1).all()


def collectives(layout, num_items, examples):
    """Returns the sizes of what a compiled step's collectives carry."""
    devices = layouts.find_devices(*layout)
    step, start = training_step(devices, num_items)
    batch = next(batches.train_batches(examples, 32, 0, 0, 0, devices.shards))
    arguments = devices.make(start), *devices.hold_clicks(examples.items)(batch)
    text = devices.lower(step, arguments, updates_state=True).compile().as_text()
    sizes = []
    for line in text.splitlines():
        if re.search(r"= .* (all-|reduce-scatter|collective-)[\w-]*\(", line):
            shapes = re.findall(r"[a-z]+\d+\[([\d,]*)\]", line.split("(metadata")[0])
            sizes += [math.prod(int(n) for n in s.split(",") if n) for s in shapes]
    return sorted(sizes)


def test_no_collective_grows_with_the_items(examples):
    small, large = (collectives(("mesh", (1, 8)), n, examples) for n in (8_000, 80_000))
    assert small
    assert small == large
    # Where a batch is split too, the table's gradient is summed over the data axis.
    assert max(collectives(("mesh", (2, 4)), 8_000, examples)) >= 8_000 * 8 / 4


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        (("mesh", (2, 4)), ("jit",)),
        (("jit",), ("mesh", (2, 4))),
        (("mesh", (1, 8)), ("mesh", (4, 2))),
    ],
)
def test_a_checkpoint_serves_any_layout(examples, saved, restored, tmp_path):
    _, state = train(layouts.find_devices(*saved), examples)
    progress = Progress({}, "", "", ITEMS, step=len(examples))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, progress)
    devices = layouts.find_devices(*restored)
    _, blank = setup(devices)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        found = checkpoints.restore(layouts.layout_of(blank), progress.step)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            np.asarray(a)[:ITEMS], np.asarray(b)[:ITEMS]
        ),
        (state.params, state.opt_state[1].mu),
        (found.params, found.opt_state[1].mu),
    )
    assert (
        found.params["item_embedding"].sharding
        == blank.params["item_embedding"].sharding
    )
    model = SRGNN(ITEMS, 8)
    means = [
        Evaluator(model, examples, (5, 20), 50, on)(x.params)["mrr@20"]
        for on, x in ((layouts.find_devices(*saved), state), (devices, found))
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 2), (16, 1), (5, 0)])
def test_a_mesh_must_take_all_devices(shape):
    with pytest.raises(UserError, match="multiply to the 8 devices"):
        layouts.find_devices("mesh", shape)


@pytest.mark.parametrize(
    ("asked", "shape"), [((0, 0), (8, 1)), ((2, 0), (2, 4)), ((0, 8), (1, 8))]
)
def test_a_mesh_fills_in_what_is_left_open(asked, shape):
    devices = layouts.find_devices("mesh", asked)
    assert (devices.shards, devices.item_shards) == shape


def test_auto_takes_what_is_there():
    assert layouts.find_devices("auto").shards == jax.local_device_count() == 8
    assert layouts.find_devices("jit").shards == 1
    assert layouts.find_devices("auto", (2, 4)).item_shards == 4
