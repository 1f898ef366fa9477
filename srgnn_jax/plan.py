"""Plans steps for devices you do not have: their memory, cycles and operations.

    python -m srgnn_jax.plan --items=100_000_000 --embedding_size=64 \\
        --batch_size=4096 --target=v5e

The step is compiled with the target's own compiler, for each mesh (data, items). If
neither the target's size, `--devices` nor `--mesh_shape` is given, the smallest target
that fits is planned. Prefix lengths are drawn from a geometric distribution. Nothing is
run.
"""

import argparse
import functools
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from srgnn_jax import tables
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples
from srgnn_jax.devices import aot, layouts, suits
from srgnn_jax.devices.compiled_text import GROUPS, OTHER_GROUPS, read_operations
from srgnn_jax.errors import UserError, nearest
from srgnn_jax.evaluate.evaluator import rank_step, rows_at_a_time
from srgnn_jax.model.layers import COMPUTE_DTYPES
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve.exported import power_of_two
from srgnn_jax.serve.step import recommend_step
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state, train_step

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# Fields of every plan, even if it was not compiled.
FIELDS = tuple(f"bytes_{size}" for size in ("arguments", "temporaries", "total"))
FIELDS += ("bytes_saving", "estimated_cycles", "operations")


def plan_all(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Plans what the command's arguments ask for.

    Returns:
      The result of `plan` for each mesh, those that fit first.
    """
    kind, sizes = aot.find_sizes(asked.target)
    given, mesh = asked.device_memory, asked.mesh_shape
    memory = parse_bytes(given) if given else aot.device_memory(kind)
    devices = math.prod(mesh) if mesh else asked.devices
    if asked.step == "recommend":
        if devices not in (None, 1):
            raise UserError("--step=recommend runs on one device only")
        mesh, devices = (1, 1), min(sizes)
    if len(sizes) == 1:
        devices = devices or min(sizes)
    if devices and devices not in sizes:
        counts = ", ".join(map(str, sizes))
        raise UserError(f"{asked.target} has {counts} devices, not {devices}")
    if not devices:
        plans: list[dict[str, Any]] = []
        for devices, size in sizes.items():
            found = plan(aot.find_topology(kind, size), (1, devices), memory, asked)
            plans.insert(0, found)
            if found["fits"]:
                return plans
        raise UserError(f"no {kind} fits: {devices} devices have too little memory")
    topology = aot.find_topology(kind, sizes[devices])
    if mesh == (1, 1):
        topology = topology[:1]
    parts = [n for n in range(1, devices + 1) if devices % n == 0]
    meshes = [mesh] if mesh else [(devices // n, n) for n in parts]
    plans = [plan(topology, tuple(mesh), memory, asked) for mesh in meshes]
    return sorted(plans, key=lambda p: (not p["fits"], p["bytes_total"] or math.inf))


def plan(
    topology: list[jax.Device],
    mesh: tuple[int, int],
    memory: int | None,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Compiles a step for a mesh.

    Args:
      topology: see `aot.find_topology`.
      mesh: (data, items).
      memory: bytes of a device, or None if unknown.
      asked: the arguments of the command.

    Returns:
      `mesh`; whether it `fits`; the fields of `aot.read_memory` and `read_operations`
      if the step was compiled; `bytes_saving`, the memory of training while a
      checkpoint is written; `refused`, the compiler's message if it refuses.
    """
    devices = aot.find_devices(
        topology,
        mesh,
        asked.embedding_size,
        max_scores=asked.max_scores,
        max_positions=asked.max_positions,
    )
    step, arguments = abstract_step(devices, asked)
    state = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(devices.layout(arguments[0]))
    )
    training = asked.step == "train"
    found: dict[str, Any] = {"mesh": list(mesh), "fits": False} | dict.fromkeys(FIELDS)
    if memory and state > memory:
        return {**found, "bytes_arguments": state, "refused": "its state is too big"}
    try:
        compiled = aot.compile_step(devices, topology, step, arguments, training)
    except jax.errors.JaxRuntimeError as error:
        code, _, words = str(error).splitlines()[0].partition(": ")
        if code != "RESOURCE_EXHAUSTED":
            raise UserError(
                f"the compiler of {asked.target} fails: {code}: {words}"
            ) from error
        return {**found, "refused": words}
    text = compiled.as_text() or ""
    if asked.text:
        folder = pathlib.Path(asked.text)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{mesh[0]}x{mesh[1]}.txt").write_text(text)
    found |= aot.read_memory(compiled) | read_operations(text)
    # On CPU, the saved state is a copy. From an accelerator, it goes to the host first.
    copied = training and topology[0].platform == "cpu"
    held = found["bytes_total"] + state * copied
    found["bytes_saving"] = held if training else None
    return {**found, "fits": memory is None or held <= memory}


def abstract_step(
    devices: layouts.Devices, asked: argparse.Namespace
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Returns a step, and the shapes of its state, clicks and batch."""
    model = SRGNN(
        asked.items,
        asked.embedding_size,
        normalize=asked.normalize,
        compute_dtype=asked.compute_dtype or None,
    )
    params = jax.eval_shape(lambda: init_params(model, 0))
    options = {"model": model, **devices.step_options}
    if asked.step == "recommend":
        # A normalised table is made beforehand, in addition to the one for lookups.
        state = params, params["item_embedding"] if asked.normalize else None
        run = functools.partial(
            recommend_step,
            model=model,
            k=20,
            max_scores=suits.scores_to_rank(devices.max_scores),
            score_padding=False,
            as_probabilities=False,
            recall=1.0,
        )

        def recommend(state, clicks, item_seq):
            params, normalised = state
            table = params["item_embedding"] if normalised is None else normalised
            return run(params, table, None, None, item_seq, None)

        length = power_of_two(asked.max_length)
        item_seq = jax.ShapeDtypeStruct((asked.batch_size, length), np.int32)
        return recommend, (state, None, item_seq)
    lengths = np.random.default_rng(0).geometric(1 / asked.mean_length, 10**5)
    lengths = np.minimum(lengths, asked.max_length).astype(np.int32)
    lengths[0] = asked.max_length
    ends = np.cumsum(lengths + 1)
    examples = Examples(np.ones(ends[-1], np.int32), ends - lengths - 1, lengths)
    clicks = jax.ShapeDtypeStruct((asked.clicks,), np.int32)
    cut = devices.shards, devices.max_positions
    tiering = devices.tiering
    if asked.step == "evaluate":
        rows = rows_at_a_time(devices, asked.items)
        made = batches.eval_batches(examples, asked.batch_size, *cut, rows, tiering)
        return functools.partial(rank_step, **options), (params, clicks, next(made))
    optimizer = adam_with_l2(0.001, 1e-5)
    step: Callable = functools.partial(
        train_step, optimizer=optimizer, seed=0, **options
    )
    state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
    made = batches.train_batches(examples, asked.batch_size, 0, 0, 0, *cut, tiering)
    batch = next(made)
    if asked.steps_per_call:
        batch = batches.stack([batch], asked.steps_per_call)
        step = layouts.one_after_another(step)
    return step, (state, clicks, batch)


def parse_bytes(text: str) -> int:
    """Reads a size such as 16GB, 24GiB or 500000000."""
    match = re.fullmatch(r"(\d+(?:_\d+)*(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS:
        raise UserError(
            f"--device_memory is {text!r}; it must be a size such as 16GB or 24GiB"
            + nearest(unit or "", tuple(_UNITS))
        )
    return int(float(match[1]) * _UNITS[unit])


def table(plans: list[dict[str, Any]]) -> str:
    """Renders plans: the bytes per device, and the operations by group."""
    sizes = [field.removeprefix("bytes_") for field in FIELDS[:4]]
    rows = [["data x items", *sizes, "operations"]]
    key = "operations"
    if any(one["estimated_cycles"] for one in plans):
        key = "estimated_cycles"
        rows[0].append("cycles")
    groups = [[key.replace("_", " "), *GROUPS, *OTHER_GROUPS]]
    for one in plans:
        name = "{:>5} x {:<4}".format(*one["mesh"])
        held = (one[field] for field in FIELDS[:4])
        counted = [one[field] for field in dict.fromkeys(["operations", key])]
        cells = ["" if n is None else f"{n / 1e9:.3f} GB" for n in held]
        cells += ["" if n is None else f"{n:,}" for n in counted]
        rows.append([name, *cells])
        if "groups" in one:
            cells = [f"{group[key]:,}" for group in one["groups"].values()]
            groups.append([name, *cells])
    lines = tables.plain(rows, width=13)
    for n, one in enumerate(plans):
        if not one["fits"]:
            why = f": {one['refused']}" if "refused" in one else ""
            lines[n + 1] += f"  does not fit{why}"
    return "\n".join([*lines, "", *tables.plain(groups)])


def main(argv: list[str] | None = None) -> None:
    """Plans what the arguments ask for, and prints the plans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def number(name: str, **more: Any) -> None:
        parser.add_argument(name, type=int, metavar="N", **more)

    number("--items", required=True)
    number("--embedding_size", default=100)
    number("--batch_size", default=100)
    parser.add_argument("--target", default="cpu", help="v5e:2x4, v5e, h100:8, ...")
    steps = ("train", "evaluate", "recommend")
    parser.add_argument("--step", default="train", choices=steps)
    number("--steps_per_call", help="steps to compile; results are for one step")
    parser.add_argument("--device_memory", metavar="SIZE", help="such as 16GB")
    number("--devices", help="number of devices")
    number("--mesh_shape", nargs=2, help="data and items")
    parser.add_argument("--mean_length", type=float, default=4.0, metavar="CLICKS")
    number("--max_length", default=70)
    number("--max_scores", help="scores to hold at a time; default: by device")
    number("--max_positions", help="positions to process at a time; default: by device")
    number("--clicks", default=10**6, help="clicks of the split; each device holds all")
    parser.add_argument("--normalize", action="store_true")
    parser.add_argument(
        "--compute_dtype", default="", choices=[name or "" for name in COMPUTE_DTYPES]
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--text", metavar="DIR", help="write the compiled texts here")
    asked = parser.parse_args(argv)
    try:
        for name, value in vars(asked).items():
            numbers = value if isinstance(value, list) else [value]
            numbers = [x for x in numbers if type(x) in (int, float)]
            if not all(1 <= x < math.inf for x in numbers):
                raise UserError(f"--{name} is {value}; it must be at least 1")
        if asked.items >= 2**31:
            raise UserError(f"--items is {asked.items}; item rows are 32-bit numbers")
        plans = plan_all(asked)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write to --text={asked.text}: {error.strerror}")
    print(json.dumps(plans, indent=1) if asked.json else table(plans))


if __name__ == "__main__":
    main()
