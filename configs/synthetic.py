"""Made clicks: tries everything out without any data to fetch.

    python -m srgnn_jax.main --config=configs/synthetic.py

Reaches recall@20 82.6, mrr@20 50.7 on test (popularity: 22.7, 5.4) within a minute on 2
CPU cores.
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "synthetic"
    c.dataset = "synthetic"
    c.embedding_size = 64
    c.epochs = 6
    return c
