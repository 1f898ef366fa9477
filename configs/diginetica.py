"""Diginetica, the challenge's item views (CIKM Cup 2016).

    python -m srgnn_jax.main --config=configs/diginetica.py --config.data_dir=DIR

DIR holds train-item-views.csv, or the published all_train_seq.txt and test.txt.
"""

from configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "diginetica"
    c.dataset = "diginetica"
    c.data_dir = "data/diginetica"
    c.test_days = 7.0
    c.epochs = 6  # the learning rate has then fallen twice, and nothing gets better
    return c
