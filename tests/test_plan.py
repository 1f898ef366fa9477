"""The planner counts what XLA's own memory analysis finds."""

import jax
import numpy as np
import pytest

from srgnn_jax import plan
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from tests.tiny import training_step


def analysed(items, d, batch_size, mesh, **options):
    """Returns arguments + temporaries + outputs - aliased of a compiled step."""
    devices = layouts.find_devices("mesh", mesh)
    step, start = training_step(devices, items, d, **options)
    state = devices.layout(jax.eval_shape(start))
    lengths = np.minimum(np.random.default_rng(1).geometric(1 / 4, 20_000), 70)
    ends = np.cumsum(lengths + 1)
    examples = Examples(
        np.ones(ends[-1], np.int32), ends - lengths - 1, lengths.astype(np.int32)
    )
    batch = next(
        batches.train_batches(
            examples, batch_size, 0, 0, 0, devices.shards, devices.max_positions
        )
    )
    arguments = state, *devices.hold_clicks(examples.items)(batch)
    lowered = devices.lower(step, arguments, updates_state=True)
    found = lowered.compile().memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("items", "d", "batch_size", "mesh"),
    [
        (43_098, 100, 100, (8, 1)),
        (43_098, 100, 100, (1, 8)),
        (1_000_000, 64, 512, (8, 1)),
        (1_000_000, 64, 512, (2, 4)),
        (1_000_000, 64, 512, (1, 8)),
        (1_000_000, 64, 4096, (1, 8)),
        (1_000_000, 64, 4096, (2, 4)),
        (4_000_000, 64, 512, (1, 8)),
    ],
)
def test_within_a_tenth_of_the_compiler(items, d, batch_size, mesh, normalize):
    planned = plan.plan(
        *(items, d, batch_size, mesh),
        max_positions=layouts.CPU_POSITIONS,
        normalize=normalize,
    )
    found = analysed(items, d, batch_size, mesh, normalize=normalize)
    assert planned.total == pytest.approx(found, rel=0.1)


def test_split_tables_take_their_share():
    one = plan.plan(8_000_000, 64, 512, (1, 1))
    eight = plan.plan(8_000_000, 64, 512, (1, 8))
    assert one.parameters / eight.parameters == pytest.approx(8, rel=0.01)
    assert one.moments == 2 * one.parameters
    assert one.communicated == 0
    # What is sent does not grow with the items, unless the batch is split too.
    more = plan.plan(80_000_000, 64, 512, (1, 8))
    assert more.communicated == eight.communicated > 0
    assert plan.plan(8_000_000, 64, 512, (2, 4)).communicated > eight.parameters


def test_the_smallest_mesh_fits_and_half_of_it_does_not():
    sizes = {"items": 100_000_000, "embedding_size": 64, "batch_size": 4096}
    found = plan.smallest(16 * 10**9, 64, **sizes)
    assert found.total <= 16 * 10**9
    half = plan.plan(mesh=(1, found.mesh[1] // 2), **sizes)
    assert half.total > 16 * 10**9
    assert plan.smallest(10**6, 64, **sizes) is None


def test_the_command_prints_each_mesh_of_the_devices(capsys):
    plan.main(
        [
            "--items=100_000_000",
            "--embedding_size=64",
            "--batch_size=4096",
            "--device_memory=16GB",
            "--devices=64",
        ]
    )
    printed = capsys.readouterr().out
    assert "smallest mesh that fits, 8 devices" in printed
    for data, items in plan.meshes(64):
        assert f"{data:>5} x {items:<4}" in printed
    assert printed.count("too much") == 4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--device_memory=16 GBB", "16 GBB.*such as 16GB"),
        ("--batch_size=0", "batch_size is 0"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(argument, message):
    with pytest.raises(SystemExit, match=message):
        plan.main(["--items=1000", argument])


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16e9), ("1.5 GiB", 1.5 * 2**30), ("2_000", 2000)]
)
def test_sizes(text, size):
    assert plan.parse_bytes(text) == size
    with pytest.raises(UserError, match="is 'much'; it must be a size"):
        plan.parse_bytes("much")
