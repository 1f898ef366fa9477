"""Prints the parity table of docs/pytorch.md, measured here: `make parity-table`.

Every row is the largest difference between this model and the PyTorch model of
torch_srgnn.py. It covers models of random sizes with both codes' conventions, steps 1
to 4, both readouts and both losses, and 50 steps of Adam with L2 and step decay.
"""

import jax
import torch

from tests import parity, torch_srgnn

ROUNDS = 3


def largest_differences(dtype: str) -> dict[str, float]:
    """Returns the largest difference of each quantity, in "float32" or "float64"."""
    largest = dict.fromkeys(parity.FLOAT32_BOUNDS, 0.0)
    for number, case in enumerate(torch_srgnn.CASES * ROUNDS):
        recording = torch_srgnn.record(**case, dtype=getattr(torch, dtype), seed=number)
        with jax.enable_x64(dtype == "float64"):
            found = parity.differences(recording)
        for name, value in found.items():
            largest[name] = max(largest[name], value)
    return largest


def show(value: float) -> str:
    """Returns a difference as the table prints it."""
    return f"{value:.1e}" if value else "0"


def main() -> None:
    """Prints the table."""
    float32, float64 = map(largest_differences, ("float32", "float64"))
    print("| largest difference | float32 | float64 |")
    print("|---|---|---|")
    for name in parity.FLOAT32_BOUNDS:
        print(f"| {name} | {show(float32[name])} | {show(float64[name])} |")


if __name__ == "__main__":
    main()
