"""Plans the memory of a training step, before any device is there.

    python -m srgnn_jax.plan --items=100_000_000 --embedding_size=64 \\
        --batch_size=4096 --device_memory=16GB --devices=64

Prints what one device holds, and what it sends in a step, for the smallest mesh
(data, items) that fits, and for each mesh of `--devices` devices, or of `--mesh_shape`.
The figures are computed: within a tenth of XLA's memory analysis of the compiled step,
with which a test compares them.
"""

import argparse
import dataclasses
import re
import sys
from typing import Any

import numpy as np

from srgnn_jax import tables
from srgnn_jax.data.batches import choose_layout, num_positions
from srgnn_jax.errors import UserError, nearest

FLOAT = 4
# Arrays [positions, D] that the gated network's gradient holds at a time, and arrays
# [rows of a block, D] that the softmax's gradient does; read off XLA's buffers.
POSITION_ARRAYS = 12
BLOCK_ARRAYS = 3
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes on one device, and bytes that it sends in a step.

    Attributes:
      mesh: (data, items).
      parameters: the device's rows of the item table, and the network.
      moments: Adam's two.
      gradient: of the parameters, once more where it is summed over devices or parts;
        with `normalize` also the normalised table, and the gradient of that.
      activations: what else a step holds at a time.
      communicated: what is sent in a step.
    """

    mesh: tuple[int, int]
    parameters: int
    moments: int
    gradient: int
    activations: int
    communicated: int

    @property
    def total(self) -> int:
        """All that is held at a time."""
        return self.parameters + self.moments + self.gradient + self.activations


def plan(
    items: int,
    embedding_size: int,
    batch_size: int,
    mesh: tuple[int, int],
    mean_length: float = 4.0,
    max_length: int = 70,
    max_scores: int = 2**23,
    max_positions: int = 2**30,
    normalize: bool = False,
) -> Plan:
    """Computes the memory of a training step.

    Args:
      items: V, the padding row included.
      embedding_size: D.
      batch_size: sessions in a batch, over all devices.
      mesh: (data, items).
      mean_length: clicks of a prefix, on average; their lengths are taken as geometric.
      max_length: clicks of the longest.
      max_scores: see configs/default.py.
      max_positions: see configs/default.py.
      normalize: see configs/default.py.
    """
    data, shards = mesh
    d = embedding_size
    lengths = np.random.default_rng(0).geometric(1 / mean_length, 100_000)
    layout, parts = choose_layout(
        np.minimum(lengths, max_length), batch_size, data, max_positions
    )
    sessions = sum(rows for rows, _ in layout)
    positions = num_positions(layout)
    held = -(-items // shards)
    parameters = FLOAT * (held * d + 15 * d * d + 12 * d)
    blocks = -(-held * sessions // max_scores)
    block = -(-held // blocks)
    softmax = FLOAT * block * sessions * (2 if blocks == 1 else 1)
    if blocks > 1:
        softmax += FLOAT * BLOCK_ARRAYS * block * d
    activations = softmax + FLOAT * POSITION_ARRAYS * positions * d
    gradient = parameters
    if parts > data:
        gradient *= 2
    # What comes when the activations are gone, in their room: the table's gradient from
    # that of the normalised one, or the sum over devices.
    later = 0
    if normalize:
        normalised = FLOAT * held * d
        later = gradient + 2 * normalised
        gradient += normalised
    elif data > 1:
        later = 2 * parameters
    gradient = max(later - activations, gradient)
    # An all-reduce of n bytes over k devices has each send 2 (k - 1) / k n.
    over_items = FLOAT * ((positions + sessions) * d + sessions * (d + 2))
    over_items *= parts // data
    communicated = 2 * (data - 1) / data * parameters
    communicated += 2 * (shards - 1) / shards * over_items
    return Plan(
        mesh, parameters, 2 * parameters, gradient, activations, round(communicated)
    )


def meshes(devices: int) -> list[tuple[int, int]]:
    """Returns every (data, items) of so many devices."""
    return [(devices // n, n) for n in range(1, devices + 1) if devices % n == 0]


def smallest(device_memory: int, most: int, **sizes: Any) -> Plan | None:
    """Returns the plan of the fewest devices that hold the table, None if none do.

    Args:
      device_memory: bytes of a device.
      most: devices to try, powers of two up to here.
      sizes: arguments of `plan`.
    """
    devices = 1
    while devices <= most:
        found = plan(mesh=(1, devices), **sizes)
        if found.total <= device_memory:
            return found
        devices *= 2
    return None


def parse_bytes(text: str) -> int:
    """Reads a size such as 16GB, 24GiB or 500000000."""
    match = re.fullmatch(r"([\d_.]+)\s*([A-Za-z]*)", text.strip())
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS:
        raise UserError(
            f"--device_memory is {text!r}; it must be a size such as 16GB or 24GiB"
            + nearest(unit or "", tuple(_UNITS))
        )
    return int(float(match[1]) * _UNITS[unit])


def _table(plans: list[Plan], device_memory: int | None) -> str:
    names = ("parameters", "moments", "gradient", "activations", "total")
    rows = [["data x items", *names, "sent a step"]]
    for p in plans:
        values = [getattr(p, name) for name in names] + [p.communicated]
        cells = [f"{value / 1e9:.3f} GB" for value in values]
        rows.append([f"{p.mesh[0]:>5} x {p.mesh[1]:<4}", *cells])
    fit = [device_memory is None or p.total <= device_memory for p in plans]
    return "\n".join(
        line if fits else f"{line}  too much"
        for line, fits in zip(tables.plain(rows, width=13), [True, *fit], strict=True)
    )


def main(argv: list[str] | None = None) -> None:
    """Plans what the arguments ask for, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])

    def number(name: str, **more: Any) -> None:
        parser.add_argument(name, type=int, metavar="N", **more)

    number("--items", required=True)
    number("--embedding_size", default=100)
    number("--batch_size", default=100)
    parser.add_argument("--device_memory", metavar="SIZE", help="such as 16GB")
    number("--devices", help="how many there are")
    number("--mesh_shape", nargs=2, help="data and items")
    parser.add_argument("--mean_length", type=float, default=4.0, metavar="CLICKS")
    number("--max_length", default=70)
    number("--max_scores", default=2**23)
    number("--max_positions", default=2**30)
    parser.add_argument("--normalize", action="store_true")
    arguments = vars(parser.parse_args(argv))
    memory, devices = arguments.pop("device_memory"), arguments.pop("devices")
    mesh_shape = arguments.pop("mesh_shape")
    try:
        for name, value in arguments.items():
            if value <= 0 and name != "normalize":
                raise UserError(f"--{name} is {value}; it must be positive")
        memory = parse_bytes(memory) if memory else None
        if mesh_shape:
            plans = [plan(mesh=(mesh_shape[0], mesh_shape[1]), **arguments)]
        else:
            plans = [plan(mesh=mesh, **arguments) for mesh in meshes(devices or 1)]
        if memory:
            found = smallest(memory, 2**16, **arguments)
            if found is None:
                raise UserError("no number of devices up to 65,536 of that memory fits")
            print(f"the smallest mesh that fits, {found.mesh[1]} devices:\n")
            print(_table([found], memory) + "\n")
        print(_table(plans, memory))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
