"""Your own clicks: any csv, tsv or parquet log of (session, item, time).

    python -m srgnn_jax.main --config=configs/click_log.py --config.data_dir=DIR

DIR holds one log file. Its columns are found by their usual names (SessionId, item_id,
timestamp, ...) or named by config.session_column, item_column and time_column. The last
day is the test split; see config.test_days, test_start and test_end.
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "click_log"
    c.dataset = "click_log"
    c.data_dir = "data"
    return c
