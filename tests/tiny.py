"""A click log and a config small enough to train on within a second."""

import numpy as np

from configs import click_log

ITEMS = 20


def write_log(path, sessions=150, seed=0):
    """Writes a log in which item i is mostly followed by i + 1 or i + 2."""
    rng = np.random.default_rng(seed)
    lines = ["session_id,item_id,timestamp"]
    for session in range(sessions):
        item = int(rng.integers(0, ITEMS))
        start = session * 1_000
        for click in range(int(rng.integers(2, 9))):
            lines.append(f"{session},item{item},{start + click}")
            item = (item + int(rng.choice([1, 1, 1, 2, 7]))) % ITEMS
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def tiny_config(folder):
    """Returns a config whose raw and prepared data lie in `folder`."""
    write_log(folder / "data" / "log.csv")
    config = click_log.get_config()
    config.data_dir = str(folder / "data")
    config.prepared_dir = str(folder / "prepared")
    config.test_days = 0.35
    config.embedding_size = 8
    config.batch_size = 32
    config.learning_rate = 0.01
    config.epochs = 2
    config.log_every_steps = 5
    config.parallel = "jit"
    return config
