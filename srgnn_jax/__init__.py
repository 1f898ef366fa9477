"""SR-GNN, session-based recommendation with graph neural networks, in JAX and Flax."""

__version__ = "0.1.0"
