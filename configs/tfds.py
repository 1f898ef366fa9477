"""Any TFDS data set of clicks or sessions that is prepared on disk.

    python -m srgnn_jax.main --config=configs/tfds.py \\
        --config.tfds_name=movielens/100k-ratings --config.item_column=movie_id

config.data_dir is TFDS's own data_dir. A record is one click, or one session with a
sequence of items. Its features are found by their usual names or set by
config.session_column, item_column and time_column, as a/b for nested features. Without
a session feature, each user is one session. TensorFlow is not needed.
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "tfds"
    c.dataset = "tfds"
    c.data_dir = "~/tensorflow_datasets"
    return c
