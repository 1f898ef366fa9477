"""RetailRocket: item views in a web shop.

    python -m srgnn_jax.main --config=configs/retailrocket.py --config.data_dir=DIR

DIR holds events.csv, whose visitors are split into visits, or the all_train_seq.txt and
test.txt that papers share; docs/data_sets.md describes both.
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "retailrocket"
    c.dataset = "retailrocket"
    c.data_dir = "data/retailrocket"
    c.events = ("view",)
    c.session_gap_minutes = 30.0
    c.test_days = 7.0
    c.epochs = 5  # the learning rate falls after the third
    return c
