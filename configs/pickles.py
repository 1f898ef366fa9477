"""Data sets that papers share as pickles in the format of the published SR-GNN code.

    python -m srgnn_jax.main --config=configs/pickles.py:tmall --config.data_dir=DIR

Choose tmall, nowplaying, gowalla or lastfm. DIR holds its all_train_seq.txt, or
train.txt, and test.txt. Diginetica, Yoochoose and RetailRocket have their own configs,
which also read pickles.
"""

from srgnn_jax.configs import default

NAMES = ("gowalla", "lastfm", "nowplaying", "tmall")


def get_config(name: str = "tmall"):
    """Returns the config of one of `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"configs/pickles.py:{name}: choose one of {', '.join(NAMES)}")
    c = default.get_config()
    c.name = name
    c.dataset = name
    c.data_dir = f"data/{name}"
    c.epochs = 5  # the learning rate falls after the third
    return c
