"""SR-GNN, session-based recommendation with graph neural networks, in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srgnn_jax.recommend import Recommender

__all__ = ["Recommender"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what needs JAX when it is asked for: importing the package is cheap."""
    if name in __all__:
        from srgnn_jax import recommend

        return getattr(recommend, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
