"""Compiles steps ahead of time for devices that this machine does not have.

On any machine, XLA compiles for a named TPU topology, or for GPUs described in
`targets/`. A compiled step reports its memory, and its text lists its operations (see
`compiled_text`). Nothing is run.
"""

import contextlib
import importlib.util
import math
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError

# The GiB of a device's 16, 95 or 32 GB that libtpu 0.0.42 lets programs use, according
# to its error message, and the available sizes (cloud.google.com/tpu/docs).
_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
TPUS = {
    "v5e": (15.75, _FLAT),
    "v5p": (95.74, "1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"),
    "v6e": (31.25, _FLAT),
}
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Otherwise libtpu's lock file stops a second process.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Descriptions, including the memory, with their sources.
GPUS = {
    path.stem: path.read_text()
    for path in sorted(pathlib.Path(__file__).parent.glob("targets/*.txtpb"))
}
KINDS = (*TPUS, *GPUS, "cpu")
# Numbers of GPUs or CPU devices to try if none is given.
COUNTS = [2**n for n in range(9)]


def find_sizes(target: str) -> tuple[str, dict[int, str]]:
    """Returns the kind of a target such as v5e:2x4, and its size by number of devices.

    Without a size, returns all sizes, smallest first.
    """
    kind, _, size = target.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"--target is {target!r}; choose one of {', '.join(KINDS)}, alone or "
            "with a size, as in v5e:2x4 and h100:8"
        )
    sizes = TPUS[kind][1].split() if kind in TPUS else list(map(str, COUNTS))
    if size:
        if size not in sizes and (kind in TPUS or not re.fullmatch(r"[1-9]\d*", size)):
            raise UserError(f"--target is {target!r}; sizes are {', '.join(sizes)}")
        sizes = [size]
    return kind, {math.prod(map(int, size.split("x"))): size for size in sizes}


def find_target(devices: Sequence[jax.Device]) -> str:
    """Returns the target of devices, such as v5e:1x1, or cpu:2 for two of unknown kind.

    If several TPU sizes have this many devices, returns the first.
    """
    name, count = devices[0].device_kind.lower(), len(devices)
    marks = {"v5 lite": "v5e", "v5e": "v5e", "v5p?": "v5p", "v6": "v6e"}
    marks |= {"a100.*40gb": "a100_40gb", **{kind: kind for kind in GPUS}}
    found = (kind for mark, kind in marks.items() if re.search(rf"\b{mark}\b", name))
    kind = next(found, "cpu")
    return f"{kind}:{find_sizes(kind)[1].get(count, count)}"


def device_memory(kind: str) -> int | None:
    """Returns the memory in bytes of a device of this kind, or None if unknown."""
    if kind in TPUS:
        return int(TPUS[kind][0] * 2**30)
    found = re.search(r"device_memory_size: (\d+)", GPUS.get(kind, ""))
    return int(found[1]) if found else None


def find_topology(kind: str, size: str) -> list[jax.Device]:
    """Returns the devices of a kind and size, to compile for.

    Raises:
      UserError: the compiler for them is not installed.
    """
    # Otherwise JAX would look for the real devices.
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        with contextlib.suppress(RuntimeError):  # The devices already exist.
            # Enough for all sizes that are tried after this one.
            jax.config.update("jax_num_cpu_devices", max(int(size), COUNTS[-1]))
        if jax.device_count() < int(size):
            raise UserError(f"this process has only {jax.device_count()} CPU devices")
        return jax.devices()[: int(size)]
    module = "libtpu" if kind in TPUS else "jax_cuda13_plugin"
    if importlib.util.find_spec(module) is None:
        version, wheels = jax.__version__, "'srgnn_jax[tpu]'"
        if kind in GPUS:
            pjrt = f"jax-cuda13-pjrt=={version}"
            wheels = f"--no-deps jax-cuda13-plugin=={version} {pjrt}"
        raise UserError(f"the compiler for {kind} is missing; pip install {wheels}")
    if kind in TPUS:
        os.environ.update(TPU_ENVIRONMENT)
        alone = {"chips_per_host_bounds": [1] * 3} if set(size) == {"1", "x"} else {}
        name = f"{kind}:{size}"
        return topologies.get_topology_desc(name, "tpu", **alone).devices
    count = int(size)
    hosts = count // 8 if count % 8 == 0 else 1
    return topologies.get_topology_desc(
        platform="cuda",
        topology=f"1x{hosts}x{count // hosts}",
        target_config=GPUS[kind],
    ).devices


def find_devices(
    topology: list[jax.Device],
    mesh: tuple[int, int],
    embedding_size: int,
    **limits: Any,
) -> layouts.Devices:
    """Returns how steps run on a mesh (data, items), or with jit on one device.

    Args:
      topology: see `find_topology`.
      mesh: the mesh's shape, for as many devices as `topology` has.
      embedding_size: D, which tiers depend on.
      **limits: fields of `layouts.Devices`; 0 means the default for the device.
    """
    parallel = "jit" if mesh == (1, 1) else "mesh"
    return layouts.find_devices(parallel, mesh, embedding_size, topology, **limits)


def compile_step(
    devices: layouts.Devices,
    topology: list[jax.Device],
    step: Callable,
    arguments: tuple[Any, Any, Any],
    updates_state: bool,
) -> jax.stages.Compiled:
    """Compiles a step; see `layouts.Devices.compile`.

    Args:
      devices: see `find_devices`.
      topology: see `find_topology`.
      step: the step function.
      arguments: shapes of the state, clicks and batch, with the whole table.
      updates_state: whether the step returns the state.
    """
    whole, (state, clicks, batch) = PartitionSpec(), arguments

    def on(x, spec=whole):
        sharding: Any = SingleDeviceSharding(topology[0])
        if devices.mesh is not None:
            sharding = NamedSharding(devices.mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    placed = (
        jax.tree.map(on, state) if devices.mesh is None else devices.layout(state),
        jax.tree.map(on, clicks),
        jax.tree.map(lambda x: on(x, layouts.part_spec(x)), batch),
    )
    # Autotuning would need the GPU.
    options = {"xla_gpu_autotune_level": 0} if topology[0].platform == "gpu" else None
    lowered = devices.lower(step, placed, updates_state)
    with warnings.catch_warnings():
        # JAX's cache cannot load programs for other machines.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        return lowered.compile(compiler_options=options)


def read_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that a compiled step takes on each device, by purpose."""
    found: Any = compiled.memory_analysis()
    parts = {
        "bytes_arguments": found.argument_size_in_bytes,
        "bytes_temporaries": found.temp_size_in_bytes,
        "bytes_outputs": found.output_size_in_bytes,
        "bytes_aliased": found.alias_size_in_bytes,
        "bytes_code": found.generated_code_size_in_bytes,
    }
    return {**parts, "bytes_total": sum(parts.values()) - 2 * parts["bytes_aliased"]}
