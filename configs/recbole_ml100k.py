"""RecBole's SRGNN on ml-100k, under RecBole's protocol, to compare with its numbers.

    python -m srgnn_jax.main --config=configs/recbole_ml100k.py --config.data_dir=DIR

DIR holds ml-100k.inter, which is in recbole/dataset_example/ml-100k of the recbole
package. For another of RecBole's data sets set config.data_dir, and config.recbole_time
to "float32" unless its settings have `normalize_all`.
"""

from srgnn_jax.configs import default


def get_config():
    """Returns the config."""
    c = default.get_config()
    c.name = "recbole_ml100k"
    c.dataset = "recbole_inter"
    c.data_dir = "data/ml-100k"
    c.recbole_time = "normalized"
    c.max_session_length = 50
    c.embedding_size = 64
    c.epochs = 300
    c.batch_size = 2048
    c.score_padding = True
    c.l2 = 0.0
    c.lr_decay_epochs = 0
    c.select_by = "mrr@10"
    c.ks = (10,)
    c.eval_batch_size = 4096
    return c
