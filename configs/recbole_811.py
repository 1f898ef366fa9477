"""Sessions split 8:1:1 by time, in RecBole's ready-made files, as CORE and MiaSRec use.

    python -m srgnn_jax.main --config=configs/recbole_811.py:tmall --config.data_dir=DIR

Choose diginetica, lastfm, retailrocket, tmall or yoochoose. DIR holds NAME.train.inter,
NAME.valid.inter and NAME.test.inter. The epoch is chosen on the validation file, and
every row of a file is an example, duplicates included, as RecBole counts them. The
model is the paper's, not RecBole's.
"""

from srgnn_jax.configs import default

NAMES = ("diginetica", "lastfm", "retailrocket", "tmall", "yoochoose")


def get_config(name: str = "tmall"):
    """Returns the config of one of `NAMES`."""
    if name not in NAMES:
        names = ", ".join(NAMES)
        raise ValueError(f"configs/recbole_811.py:{name}: choose one of {names}")
    c = default.get_config()
    c.name = f"{name}_811"
    c.dataset = f"{name}_811"
    c.data_dir = f"data/{name}"
    c.epochs = 5  # the learning rate falls after the third
    return c
