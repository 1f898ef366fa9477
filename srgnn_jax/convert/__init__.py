"""Weights from and to the two PyTorch SR-GNNs: RecBole's and the original one."""

from srgnn_jax.convert.names import params_from_torch, params_to_torch
from srgnn_jax.convert.torch_file import TorchCheckpoint, load_torch_checkpoint

__all__ = [
    "TorchCheckpoint",
    "load_torch_checkpoint",
    "params_from_torch",
    "params_to_torch",
]
