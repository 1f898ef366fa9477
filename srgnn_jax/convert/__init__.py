"""Weights from and to the PyTorch SR-GNNs: RecBole, RecBole-GNN, the original."""

from srgnn_jax.convert.names import params_from_torch, params_to_torch
from srgnn_jax.convert.torch_file import TorchCheckpoint, load_torch_checkpoint

__all__ = [
    "TorchCheckpoint",
    "load_torch_checkpoint",
    "params_from_torch",
    "params_to_torch",
]
