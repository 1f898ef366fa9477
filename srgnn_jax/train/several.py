"""Several seeds of one config, trained one after another."""

import pathlib
from collections.abc import Callable
from typing import TypeVar

from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.devices import processes
from srgnn_jax.evaluate.workdir import report_seeds
from srgnn_jax.runs.workdir import check_kind

T = TypeVar("T")


def train_several(
    config: ConfigDict, folder: pathlib.Path, train: Callable[[ConfigDict, str], T]
) -> T:
    """Trains `config.runs` seeds one after another, and joins their results."""
    check_kind(folder, several=True)
    seeds = [config.seed + n for n in range(config.runs)]
    for seed in seeds:
        processes.say(f"\nseed {seed}, of {seeds[0]} to {seeds[-1]}")
        one = config_lib.with_seed(config, seed)
        state = train(one, str(folder / f"seed_{seed}"))
    report_seeds(folder, seeds)
    return state
