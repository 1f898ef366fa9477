"""Several devices give the same numbers as one."""

import contextlib
import functools
import math
import re

import jax
import numpy as np
import pytest

from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples
from srgnn_jax.devices import layouts, suits
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.progress import Progress
from tests.tiny import random_examples, training_step

ITEMS = 43  # Not a multiple of the devices: a split table is padded.
EXAMPLES = random_examples(ITEMS, 120)
MODEL = SRGNN(ITEMS, 8)
ONE = ("jit",)
PMAP, MESH = ("pmap", (0, 0)), ("mesh", (2, 4))
# Compiling for eight devices is slow: all layouts would take the quick tests minutes.
OTHER_MESHES = [
    pytest.param(("mesh", shape), marks=pytest.mark.slow) for shape in ((8, 1), (1, 8))
]

# Several tests share compiled steps and trained states.
find_devices = functools.cache(layouts.find_devices)


def setup(devices, loss_type="CE", num_items=ITEMS):
    """Returns a step function with parameter averaging, and its initial state."""
    step, start = training_step(devices, num_items, loss_type=loss_type, averaging=0.5)
    return devices.compile(step, updates_state=True), devices.make(start)


@functools.cache
def train(layout, loss_type="CE", **limits):
    """Trains one epoch, whose last batch is partial; returns step losses and state."""
    devices = find_devices(*layout, **limits)
    step, state = setup(devices, loss_type)
    losses = []
    with_clicks = devices.hold_clicks(EXAMPLES.items)
    assert len(EXAMPLES) % 37
    for batch in batches.train_batches(
        EXAMPLES, 37, 0, 0, 0, devices.shards, devices.max_positions
    ):
        before = float(state.loss)
        state = step(state, *with_clicks(batch))
        losses.append(float(state.loss) - before)
    return losses, state


@functools.cache
def evaluator(layout, **limits):
    return Evaluator(MODEL, EXAMPLES, (5, 20), 50, find_devices(*layout, **limits))


def assert_same_params(state, other):
    jax.tree.map(
        # A split table is padded with rows.
        lambda a, b: np.testing.assert_allclose(a, b[: len(a)], atol=2e-5),
        (state.params, state.latest),
        (other.params, other.latest),
    )


@pytest.mark.parametrize(
    ("loss_type", "layout"),
    [
        ("CE", PMAP),
        ("CE", MESH),
        pytest.param("BPR", PMAP, marks=pytest.mark.slow),
        pytest.param("BPR", MESH, marks=pytest.mark.slow),
        pytest.param("CE", ("mesh", (8, 1)), marks=pytest.mark.slow),
        pytest.param("CE", ("mesh", (1, 8)), marks=pytest.mark.slow),
        pytest.param("BPR", ("mesh", (1, 8)), marks=pytest.mark.slow),
    ],
)
def test_many_devices_train_like_one(layout, loss_type):
    one, state_one = train(ONE, loss_type)
    many, state_many = train(layout, loss_type)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    assert float(state_many.examples) == len(EXAMPLES)
    assert_same_params(state_one, state_many)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_positions": 50, "max_scores": 300, "max_clicks": 10},
        pytest.param({"max_positions": 50}, marks=pytest.mark.slow),
        pytest.param({"max_scores": 300}, marks=pytest.mark.slow),
        pytest.param({"max_clicks": 10}, marks=pytest.mark.slow),
    ],
)
def test_a_device_that_holds_little_trains_and_evaluates_alike(limits):
    one, state_one = train(ONE)
    other, state_other = train(ONE, **limits)
    np.testing.assert_allclose(other, one, rtol=1e-5)
    assert_same_params(state_one, state_other)
    means = [
        evaluator(ONE, **limited)(state_one.params)["mrr@20"]
        for limited in ({}, limits)
    ]
    assert means[1] == pytest.approx(means[0], rel=1e-6)


@pytest.mark.parametrize("layout", [ONE, pytest.param(MESH, marks=pytest.mark.slow)])
def test_a_table_that_lies_in_another_order_trains_evaluates_and_is_restored_alike(
    layout, tmp_path
):
    one, state_one = train(ONE)
    other, state_other = train(layout, table_order=(1, 0))
    np.testing.assert_allclose(other, one, rtol=1e-5)
    assert_same_params(state_one, state_other)
    tables = [x for x in jax.tree.leaves(state_other) if x.shape[:1] >= (ITEMS,)]
    orders = [x.format.layout.major_to_minor for x in tables]
    # The table, its latest values and both moments, after many steps.
    assert orders == [(1, 0)] * 4
    means = [
        evaluator(each, **limits)(state.params)["mrr@20"]
        for each, limits, state in (
            (ONE, {}, state_one),
            (layout, {"table_order": (1, 0)}, state_other),
        )
    ]
    assert means[1] == pytest.approx(means[0], rel=1e-6)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state_other, Progress({}, "", "", ITEMS, step=1))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        restored = checkpoints.restore(layouts.layout_of(state_other), 1)
    for a, b in zip(*map(jax.tree.leaves, (state_other, restored)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert b.ndim < 2 or b.format.layout.major_to_minor == (0, 1)
    again = find_devices(*layout, table_order=(1, 0)).lay_out(restored)
    assert again.params["item_embedding"].format.layout.major_to_minor == (1, 0)


def test_limits_that_are_0_are_chosen_for_the_device():
    devices = layouts.find_devices("jit", max_positions=0, max_scores=7)
    assert devices.max_positions == suits.SUITS["cpu"].max_positions
    assert devices.max_scores == 7


@pytest.mark.parametrize("layout", [PMAP, MESH, *OTHER_MESHES])
def test_many_devices_evaluate_like_one(layout):
    means = []
    for each in (ONE, layout):
        params = find_devices(*each).make(lambda: init_params(MODEL, 1))
        mean = evaluator(each)(params)
        del mean["examples_per_second"]
        means.append(mean)
    assert means[0].keys() == means[1].keys()
    for name in means[0]:
        assert means[1][name] == pytest.approx(means[0][name], rel=1e-6)


def test_a_split_table_is_worked_through_in_blocks():
    one, _ = train(ONE)
    many, _ = train(("mesh", (2, 4)), max_scores=20)
    np.testing.assert_allclose(many, one, rtol=1e-5)


def test_each_device_holds_its_rows_of_the_table_and_its_moments():
    devices = layouts.find_devices("mesh", (1, 8))
    _, state = setup(devices, num_items=45)
    _, adam, _ = state.opt_state
    for tree in (state.params, state.latest, adam.mu, adam.nu):
        table = tree["item_embedding"]
        assert table.shape == (48, 8)
        assert {shard.data.shape for shard in table.addressable_shards} == {(6, 8)}
        assert {x.device for x in table.addressable_shards} == set(jax.devices())
    # Padding rows are zero; all others were drawn.
    table = np.asarray(state.params["item_embedding"])
    assert not table[45:].any()
    assert table[:45].any(axis=1).all()


def collectives(layout, num_items):
    """Returns the sizes of the arrays in a compiled step's collectives."""
    devices = find_devices(*layout)
    step, start = training_step(devices, num_items)
    # One length makes one tier.
    short = EXAMPLES.lengths == EXAMPLES.lengths.min()
    examples = Examples(EXAMPLES.items, EXAMPLES.starts[short], EXAMPLES.lengths[short])
    batch = next(batches.train_batches(examples, 16, 0, 0, 0, devices.shards))
    state = devices.layout(jax.eval_shape(start))
    arguments = state, *devices.hold_clicks(EXAMPLES.items)(batch)
    text = devices.lower(step, arguments, updates_state=True).compile().as_text()
    sizes = []
    for line in text.splitlines():
        if re.search(r"= .* (all-|reduce-scatter|collective-)[\w-]*\(", line):
            shapes = re.findall(r"[a-z]+\d+\[([\d,]*)\]", line.split("(metadata")[0])
            sizes += [math.prod(int(n) for n in s.split(",") if n) for s in shapes]
    return sorted(sizes)


def test_no_collective_grows_with_the_items():
    small, large = (collectives(("mesh", (1, 8)), n) for n in (8_000, 80_000))
    assert small
    assert small == large
    # If batches are also split, the table's gradient is summed over the data axis.
    assert max(collectives(("mesh", (2, 4)), 8_000)) >= 8_000 * 8 / 4


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        (MESH, ONE),
        (ONE, MESH),
        pytest.param(("mesh", (1, 8)), ("mesh", (4, 2)), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_serves_any_layout(saved, restored, tmp_path):
    _, state = train(saved)
    progress = Progress({}, "", "", ITEMS, step=len(EXAMPLES))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, progress)
    _, blank = setup(find_devices(*restored))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        found = checkpoints.restore(layouts.layout_of(blank), progress.step)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            np.asarray(a)[:ITEMS], np.asarray(b)[:ITEMS]
        ),
        (state.params, state.latest, state.opt_state[1].mu),
        (found.params, found.latest, found.opt_state[1].mu),
    )
    assert (
        found.params["item_embedding"].sharding
        == blank.params["item_embedding"].sharding
    )
    means = [
        evaluator(layout)(x.params)["mrr@20"]
        for layout, x in ((saved, state), (restored, found))
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
