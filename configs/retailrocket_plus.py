"""RetailRocket with what later works found, as configs/diginetica_plus.py has it.

    python -m srgnn_jax.main --config=configs/retailrocket_plus.py --config.data_dir=DIR

DIR holds what configs/retailrocket.py reads. The settings are those that were best on
Diginetica's validation; on RetailRocket none were compared.
"""

from srgnn_jax.configs import retailrocket


def get_config():
    """Returns the config."""
    c = retailrocket.get_config()
    c.name = "retailrocket_plus"
    c.normalize = True
    c.item_dropout = 0.3
    c.reverse_positions = 32
    c.lr_decay_epochs = 2
    c.epochs = 3
    return c
