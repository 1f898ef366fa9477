"""Your own clicks: a log of (session, item, time) in csv, parquet or JSON lines.

    srgnn --config=click_log --config.data_dir=DIR

DIR holds one log, in one file or in parts. Its columns are found by their usual names
(SessionId, item_id, timestamp, ...) or set by config.session_column, item_column and
time_column. The last day is the test split; see config.test_days, test_start and
test_end. The settings are those of yoochoose_plus, which were chosen on validation and
also win on a week of Yoochoose (docs/own_data.md); click_log_paper has the paper's.
"""

from srgnn_jax.configs import click_log_paper


def get_config():
    """Returns the config."""
    c = click_log_paper.get_config()
    c.name = "click_log"
    c.normalize = True
    c.item_dropout = 0.3
    c.reverse_positions = 32
    c.epochs = 10
    c.patience = 3
    return c
