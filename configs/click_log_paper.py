"""Your own clicks with the paper's settings; configs/click_log.py has better ones.

srgnn --config=click_log_paper --config.data_dir=DIR
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "click_log_paper"
    c.dataset = "click_log"
    c.data_dir = "data"
    return c
