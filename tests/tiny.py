"""A small click log, config, examples and training step, all fast."""

import functools
import pathlib
import tarfile

import numpy as np

from srgnn_jax.configs import click_log_paper
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.model.losses import LOSSES
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state, train_step

ITEMS = 20


def write_log(path, sessions=270, seed=0, again=0.0):
    """Writes a log in which item i is mostly followed by i + 1 or i + 2.

    Sessions have 2 to 4 clicks: a step is compiled once for each prefix length. A share
    `again` of the clicks returns to the session's first item.
    """
    rng = np.random.default_rng(seed)
    lines = ["session_id,item_id,timestamp"]
    for session in range(sessions):
        first = item = int(rng.integers(0, ITEMS))
        start = session * 1_000
        for click in range(int(rng.integers(2, 5))):
            lines.append(f"{session},item{item},{start + click}")
            item = (item + int(rng.choice([1, 1, 1, 2, 7]))) % ITEMS
            if again and rng.random() < again:
                item = first
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def tiny_config(folder):
    """Returns a config whose raw and prepared data are in `folder`."""
    write_log(folder / "data" / "log.csv")
    config = click_log_paper.get_config()
    config.name = "click_log"
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


def old_run(folder):
    """Unpacks a run on a log like that of `write_log`, trained by version 0.1.0."""
    golden = pathlib.Path(__file__).parent / "golden" / "run_0.1.0.tar.gz"
    with tarfile.open(golden) as archive:
        archive.extractall(folder, filter="data")
    write_log(folder / "data" / "log.csv")
    return folder / "run"


def training_step(
    devices, num_items, embedding_size=8, loss_type="CE", averaging=0.0, **options
):
    """Returns a step function for devices, and a function to make its first state."""
    model = SRGNN(num_items, embedding_size, **options)
    optimizer = adam_with_l2(0.01, 1e-3)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        seed=0,
        averaging=averaging,
        loss=LOSSES[loss_type],
        **devices.step_options,
    )
    return step, lambda: init_state(model, optimizer, 0, averaging > 0)


def random_examples(num_items, count):
    """Draws examples with prefixes of 1 or 6 clicks, which make two tiers."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([2, 7], count)
    return Sessions.from_lists(
        [rng.integers(1, num_items, n) for n in lengths], last_only=True
    ).examples()


def spelled_out(examples):
    """Returns the examples as (prefix, target)."""
    return [
        (examples.items[start : start + length].tolist(), int(target))
        for start, length, target in zip(
            examples.starts, examples.lengths, examples.targets, strict=True
        )
    ]
