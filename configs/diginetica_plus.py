"""Diginetica with what later works found, as configs/yoochoose_plus.py has it.

    python -m srgnn_jax.main --config=configs/diginetica_plus.py --config.data_dir=DIR

DIR holds what configs/diginetica.py reads.
"""

from srgnn_jax.configs import diginetica


def get_config():
    """Returns the config."""
    c = diginetica.get_config()
    c.name = "diginetica_plus"
    c.normalize = True
    c.item_dropout = 0.3
    c.reverse_positions = 32
    c.lr_decay_epochs = 2  # it overfits earlier than the paper's model
    c.epochs = 3
    return c
