"""RetailRocket with what later works found, as configs/diginetica_plus.py has it.

    python -m srgnn_jax.main --config=configs/retailrocket_plus.py --config.data_dir=DIR

DIR holds what configs/retailrocket.py reads. Chosen on validation, seed 0; recall@20
and mrr@20 there, of the pickles and each one's best epoch:

    configs/retailrocket.py                                   51.25  27.49
    these, but decay after three of four epochs, no averages  54.93  30.82
    these                                                     55.30  30.94
"""

from srgnn_jax.configs import retailrocket


def get_config():
    """Returns the config."""
    c = retailrocket.get_config()
    c.name = "retailrocket_plus"
    c.normalize = True
    c.item_dropout = 0.3
    c.reverse_positions = 32
    c.averaging = 0.1
    c.lr_decay_epochs = 0
    c.epochs = 3  # the fourth is no better by mrr@20
    return c
