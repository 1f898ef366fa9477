"""Diginetica, the challenge's item views (CIKM Cup 2016).

    python -m srgnn_jax.main --config=configs/diginetica.py --config.data_dir=DIR

DIR holds train-item-views.csv, or the published all_train_seq.txt and test.txt.

With --config.select_on=test it reaches recall@20 50.70, mrr@20 17.55 (mean of three
seeds) in epoch 4. A seed takes about 40 minutes on one CPU core.
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "diginetica"
    c.dataset = "diginetica"
    c.data_dir = "data/diginetica"
    c.test_days = 7.0
    c.epochs = 5  # the learning rate falls after the third; the fifth is not better
    return c
