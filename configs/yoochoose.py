"""Yoochoose clicks (RecSys Challenge 2015), the last 1/64 or 1/4.

    python -m srgnn_jax.main --config=configs/yoochoose.py:1_64 --config.data_dir=DIR
    python -m srgnn_jax.main --config=configs/yoochoose.py:1_4 --config.data_dir=DIR

DIR holds yoochoose-clicks.dat, or the published all_train_seq.txt and test.txt.

With --config.select_on=test, 1_64 reaches recall@20 70.53, mrr@20 30.79 (mean of three
seeds) in epoch 5. A seed takes about 20 minutes on one CPU core.
"""

from srgnn_jax.configs import default

FRACTIONS = {"1_64": 1 / 64, "1_4": 1 / 4}


def get_config(fraction: str = "1_64"):
    """Returns the config of one fraction, "1_64" or "1_4"."""
    if fraction not in FRACTIONS:
        raise ValueError(
            f"configs/yoochoose.py:{fraction}: choose one of {', '.join(FRACTIONS)}"
        )
    c = default.get_config()
    c.name = f"yoochoose_{fraction}"
    c.dataset = "yoochoose"
    c.data_dir = f"data/yoochoose{fraction}"
    c.train_fraction = FRACTIONS[fraction]
    c.date_resolution_seconds = 1
    c.epochs = 5  # the learning rate falls after the third; little changes later
    return c
