"""Converts weights from and to PyTorch: RecBole, RecBole-GNN, the original SR-GNN."""

from srgnn_jax.convert.names import params_from_torch, params_to_torch
from srgnn_jax.convert.torch_file import TorchCheckpoint, load_torch_checkpoint

__all__ = [
    "TorchCheckpoint",
    "load_torch_checkpoint",
    "params_from_torch",
    "params_to_torch",
]
