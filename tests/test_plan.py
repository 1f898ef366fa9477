"""The planner compiles real steps and reads their costs from the compiled text."""

import importlib.util
import json
import os
import subprocess
import sys
from unittest import mock

import jax
import pytest

from srgnn_jax import plan
from srgnn_jax.devices import aot
from srgnn_jax.devices.compiled_text import GROUPS, OTHER_GROUPS, read_operations
from srgnn_jax.errors import UserError

SMALL = ["--items=200", "--embedding_size=8", "--batch_size=8", "--max_length=4"]

# In the compilers' format: a loop of 3 rounds with a fusion, a prefetch and a sum over
# devices. Before it, a table is copied in another order and in the same order.
TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/here/train/step.py"
2 "/site-packages/optax/_src/transform.py"
3 "/here/model/gnn.py"
4 "/here/model/layers.py"

FunctionNames
1 "train_step"
2 "scale_by_adam.<locals>.update_fn"
3 "gnn_cell"
4 "product"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=4 end_column=5}
2 {file_name_id=2 function_name_id=2 line=9 end_line=9 column=4 end_column=5}
3 {file_name_id=3 function_name_id=3 line=9 end_line=9 column=4 end_column=5}
4 {file_name_id=4 function_name_id=4 line=9 end_line=9 column=4 end_column=5}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}
4 {file_location_id=4 parent_frame_id=4}

%fused (a.1: f32[6,4]) -> f32[6,4] {
  %a.1 = f32[6,4]{1,0} parameter(0)
  ROOT %m = f32[6,4]{1,0} multiply(%a.1, %a.1), metadata={stack_frame_id=4}
}

%body (t.1: (s32[], f32[6,4])) -> (s32[], f32[6,4]) {
  %t.1 = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %x = f32[6,4]{1,0:T(8,128)} get-tuple-element(%t.1), index=1
  %next = s32[]{:T(128)} add(%i, %i)
  %f = f32[6,4]{1,0:T(8,128)S(1)} fusion(%x), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %s = f32[6,4]{1,0} all-reduce-start(%f), to_apply=%sum
  %d = f32[6,4]{1,0} all-reduce-done(%s)
  ROOT %r = (s32[]{:T(128)}, f32[6,4]{1,0}) tuple(%next, %d)
}

%condition (t.2: (s32[], f32[6,4])) -> pred[] {
  %most = s32[]{:T(128)} constant(3)
  %t.2 = (s32[]{:T(128)}, f32[6,4]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %most), direction=LT
}

ENTRY %main.1 (table.1: f32[6,4], clicks.1: s32[90]) -> f32[6,4] {
  %table.1 = f32[6,4]{1,0:T(8,128)} parameter(0)
  %clicks.1 = s32[90]{0} parameter(1)
  %same = f32[6,4]{1,0:T(8,128)S(1)} copy(%table.1), metadata={stack_frame_id=2}
  %other = f32[6,4]{0,1:T(8,128)} copy(%same), \
backend_config={"window_config":{"estimated_cycles":"7"}}
  %little = f32[4,2]{0,1} transpose(%same), dimensions={1,0}
  %zero = s32[] constant(0)
  %start = (s32[], f32[6,4]{1,0}) tuple(%zero, %other)
  %loop = (s32[], f32[6,4]{1,0}) while(%start), condition=%condition, body=%body{KNOWN}
  ROOT %end = f32[6,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def run(capsys, *arguments):
    plan.main([*SMALL, *arguments])
    return capsys.readouterr().out


def plans(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json"))


@pytest.mark.parametrize(
    ("known", "trips"),
    [("", 3), (', backend_config={"known_trip_count":{"n":"5"}}', 5)],
)
def test_what_a_loop_runs_counts_as_often_as_it_does(known, trips):
    found = read_operations(TEXT.replace("{KNOWN}", known))
    groups = found["groups"]
    assert list(groups) == [*GROUPS, *OTHER_GROUPS]
    assert groups["network"] == {
        "operations": trips,
        "estimated_cycles": 100 * trips,
        "unestimated": 0,
    }
    assert groups["collectives"]["operations"] == trips
    assert found["collectives"] == {
        "all-reduce": {"operations": trips, "bytes": 6 * 4 * 4 * trips}
    }
    assert found["operations"] == 3 + 2 * trips
    assert found["estimated_cycles"] == 7 + 100 * trips
    assert found["unestimated"] == 2 + trips


def test_copies_of_a_table_in_another_order_are_told_apart():
    found = read_operations(TEXT.replace("{KNOWN}", ""))
    assert found["groups"]["layout copies"]["operations"] == 2
    assert found["table_copies"] == {
        "operations": 1,
        "estimated_cycles": 7,
        "unestimated": 0,
    }
    # A copy in the same order counts for the group that it is in.
    assert found["groups"]["Adam"]["operations"] == 1


@pytest.mark.parametrize(
    ("kind", "count", "target"),
    [
        ("TPU v5 lite", 1, "v5e:1x1"),
        ("TPU v5 lite", 8, "v5e:2x4"),
        ("TPU v5", 4, "v5p:2x2x1"),
        ("TPU v6 lite", 1, "v6e:1x1"),
        ("NVIDIA H100 80GB HBM3", 8, "h100:8"),
        ("NVIDIA A100-SXM4-40GB", 1, "a100_40gb:1"),
        ("NVIDIA A100-SXM4-80GB", 1, "a100:1"),
        ("NVIDIA L4", 1, "l4:1"),
        ("NVIDIA L40S", 1, "cpu:1"),
        ("cpu", 2, "cpu:2"),
    ],
)
def test_devices_are_found_among_the_targets(kind, count, target):
    devices = [mock.Mock(jax.Device, device_kind=kind)] * count
    assert aot.find_target(devices) == target


def test_targets_name_devices_and_their_memory():
    assert aot.find_sizes("v5e:2x4") == ("v5e", {8: "2x4"})
    assert aot.find_sizes("h100:6") == ("h100", {6: "6"})
    assert min(aot.find_sizes("v5p")[1].items()) == (1, "1x1x1")
    assert aot.device_memory("v5e") == 15.75 * 2**30
    assert aot.device_memory("l4") == 24e9
    assert aot.device_memory("cpu") is None
    assert {"h100", "a100", "l4"} <= aot.GPUS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device_memory=16 GBB"], "16 GBB.*such as 16GB"),
        (["--batch_size=0"], "batch_size is 0"),
        (["--mesh_shape", "1", "0"], "mesh_shape is"),
        (["--mean_length=0.5"], "mean_length is 0.5"),
        (["--target=v7x"], "'v7x'; choose one of v5e"),
        (["--target=v5e:3x3"], "'v5e:3x3'; sizes are 1x1, 2x2"),
        (["--target=h100:two"], "'h100:two'"),
        (["--target=v5e:2x4", "--mesh_shape", "1", "4"], "has 8 devices, not 4"),
        (["--target=cpu:8", "--step=recommend", "--devices=8"], "one device only"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message) as ended:
        plan.main([*SMALL, *arguments])
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("v5e:2x4", r"pip install 'srgnn_jax\[tpu\]'"),
        ("h100:8", r"jax-cuda13-plugin==\S+ jax-cuda13-pjrt=="),
    ],
)
def test_a_missing_compiler_is_named(monkeypatch, target, what):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"compiler .* is missing; .*{what}"):
        plan.main([*SMALL, f"--target={target}"])


def test_a_split_table_takes_its_share(capsys, tmp_path):
    found = plans(
        capsys, "--target=cpu:2", "--items=20000", f"--text={tmp_path / 'made'}"
    )
    by_mesh = {tuple(one["mesh"]): one for one in found}
    split, whole = by_mesh[1, 2], by_mesh[2, 1]
    table = 4 * 20_000 * 8
    assert whole["bytes_arguments"] - split["bytes_arguments"] == pytest.approx(
        3 * table / 2, rel=0.01
    )
    assert split["bytes_saving"] - split["bytes_total"] == pytest.approx(
        3 * table / 2, rel=0.05
    )
    assert found[0] == split
    assert all(one["fits"] and one["operations"] > 100 for one in found)
    assert set(split["collectives"]) == {"all-reduce"}
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "1x2.txt",
        "2x1.txt",
    ]


@pytest.mark.slow  # another process compiles for several meshes
def test_the_smallest_number_of_cpu_devices_is_found_before_any_is_there():
    asked = "--target=cpu", "--items=20000", "--clicks=100", "--device_memory=4MB"
    command = [sys.executable, "-m", "srgnn_jax.plan", *SMALL, *asked]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "1 x 2" in done.stdout, done.stderr


def test_several_steps_a_call_are_planned_for_a_mesh(capsys):
    (found,) = plans(
        capsys, "--target=cpu:2", "--mesh_shape", "2", "1", "--steps_per_call=2"
    )
    assert found["groups"]["collectives"]["operations"] > 0


@pytest.mark.slow  # compiles for several meshes
def test_the_smallest_mesh_that_fits_comes_first(capsys):
    arguments = ["--target=cpu", "--items=20000", "--clicks=100"]
    found = plans(capsys, *arguments, "--device_memory=4MB")
    assert [one["mesh"] for one in found] == [[1, 2], [1, 1]]
    assert [one["fits"] for one in found] == [True, False]
    printed = run(capsys, *arguments, "--device_memory=1MB", "--devices=1")
    assert "does not fit: its state is too big" in printed


@pytest.mark.parametrize("step", ["evaluate", "recommend"])
def test_other_steps_hold_no_moments(capsys, step):
    options = ["--compute_dtype=bfloat16", "--normalize"]
    printed = run(capsys, f"--step={step}", "--devices=1", *options)
    assert "    1 x 1  " in printed
    assert "operations" in printed
    (found,) = plans(capsys, f"--step={step}", "--devices=1")
    assert found["bytes_saving"] is None
    assert found["groups"]["Adam"]["operations"] == 0


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16e9), ("1.5 GiB", 1.5 * 2**30), ("2_000", 2000)]
)
def test_sizes(text, size):
    assert plan.parse_bytes(text) == size
    with pytest.raises(UserError, match="is 'much'; it must be a size"):
        plan.parse_bytes("much")
