"""What a search chooses from: ranges by field, as plain data.

A config file defines them with `get_search`, next to `get_config`:

    from srgnn_jax.train.space import choice, log, uniform

    def get_search():
        return {
            "learning_rate": log(1e-4, 1e-2),
            "embedding_size": choice(64, 100, 200),
            "item_dropout": uniform(0.0, 0.5),
        }
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from srgnn_jax.errors import UserError

Value = bool | int | float | str


class Choice(NamedTuple):
    """Some values, unordered."""

    values: tuple[Value, ...]


class Range(NamedTuple):
    """All numbers from `low` to `high`; with `log`, evenly by their logarithm."""

    low: int | float
    high: int | float
    log: bool = False


Space = Mapping[str, Choice | Range]


def choice(*values: Value) -> Choice:
    """Returns the choice between some values.

    Raises:
      UserError: no values were given.
    """
    if not values:
        raise UserError(
            "choice() has nothing to choose from; name values: choice(64, 100)"
        )
    return Choice(values)


def uniform(low: int | float, high: int | float) -> Range:
    """Returns all numbers from `low` to `high`, equally likely; whole for int fields.

    Raises:
      UserError: `low` is not below `high`.
    """
    return _range("uniform", low, high)


def log(low: int | float, high: int | float) -> Range:
    """Returns all numbers from `low` to `high`; orders of magnitude are equally likely.

    Raises:
      UserError: `low` is not positive, or not below `high`.
    """
    if not low > 0:
        raise UserError(f"log({low}, {high}) must start above 0")
    return _range("log", low, high)


def _range(name: str, low: int | float, high: int | float) -> Range:
    if not -math.inf < low < high < math.inf:
        raise UserError(f"{name}({low}, {high}) must go from a lower to a higher value")
    return Range(low, high, name == "log")


def holds(of: Choice | Range, value: Value) -> bool:
    """Whether a choice or a range includes a value."""
    if isinstance(of, Choice):
        return value in of.values
    return of.low <= float(value) <= of.high


# What is searched if the config file has no `get_search`.
DEFAULT: Space = {
    "learning_rate": log(3e-4, 1e-2),
    "l2": log(1e-7, 1e-3),
    "embedding_size": choice(64, 100, 200),
    "batch_size": choice(50, 100, 200, 500),
    "step": choice(1, 2),
    "item_dropout": uniform(0.0, 0.5),
    "normalize": choice(False, True),
    "scale": log(8.0, 32.0),  # has no effect without `normalize`
    "reverse_positions": choice(0, 32),
    "readout": choice("hybrid", "attention", "local"),
    "lr_decay": choice(0.1, 0.3, 1.0),
}
