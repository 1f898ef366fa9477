"""SR-GNN, session-based recommendation with graph neural networks, in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgnn_jax.data.frames import Clicks
    from srgnn_jax.model.gnn import GNN
    from srgnn_jax.model.graph import connection_matrix
    from srgnn_jax.model.losses import Loss
    from srgnn_jax.model.srgnn import SRGNN
    from srgnn_jax.serve.recommend import Recommender
    from srgnn_jax.train.loop import train_and_evaluate

__all__ = [
    "GNN",
    "SRGNN",
    "Clicks",
    "Loss",
    "Recommender",
    "connection_matrix",
    "train_and_evaluate",
]
__version__ = "0.2.0"

_MODULES = {
    "Clicks": "data.frames",
    "GNN": "model.gnn",
    "SRGNN": "model.srgnn",
    "Loss": "model.losses",
    "Recommender": "serve.recommend",
    "connection_matrix": "model.graph",
    "train_and_evaluate": "train.loop",
}


def __getattr__(name: str) -> Any:
    """Imports modules that need JAX on first use: importing the package is cheap."""
    if name in _MODULES:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
