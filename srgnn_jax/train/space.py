"""What a search chooses from: ranges by field, as plain data.

A config file says so by its `get_search`, beside `get_config`:

    from srgnn_jax.train.space import choice, log, uniform

    def get_search():
        return {
            "learning_rate": log(1e-4, 1e-2),
            "embedding_size": choice(64, 100, 200),
            "item_dropout": uniform(0.0, 0.5),
        }
"""

from collections.abc import Mapping
from typing import NamedTuple

from srgnn_jax.errors import UserError

Value = bool | int | float | str


class Choice(NamedTuple):
    """Some values, in no order."""

    values: tuple[Value, ...]


class Range(NamedTuple):
    """All numbers from `low` to `high`; where `log`, evenly by their logarithm."""

    low: int | float
    high: int | float
    log: bool = False


Space = Mapping[str, Choice | Range]


def choice(*values: Value) -> Choice:
    """Returns the choice between some values.

    Raises:
      UserError: there are none.
    """
    if not values:
        raise UserError("choice() has nothing to choose from: choice(64, 100)")
    return Choice(values)


def uniform(low: int | float, high: int | float) -> Range:
    """Returns all numbers from `low` to `high`, each as likely; of an int, whole ones.

    Raises:
      UserError: they are not in that order.
    """
    return _range("uniform", low, high)


def log(low: int | float, high: int | float) -> Range:
    """Returns all numbers from `low` to `high`, each order of magnitude as likely.

    Raises:
      UserError: they are not positive, or not in that order.
    """
    if not low > 0:
        raise UserError(f"log({low}, {high}) must begin above 0")
    return _range("log", low, high)


def _range(name: str, low: int | float, high: int | float) -> Range:
    if not low < high:
        raise UserError(f"{name}({low}, {high}) must go from a lower to a higher value")
    return Range(low, high, name == "log")


def holds(of: Choice | Range, value: Value) -> bool:
    """Whether a value is among those of a choice or a range."""
    if isinstance(of, Choice):
        return value in of.values
    return of.low <= float(value) <= of.high


# What is searched where the config file says nothing.
DEFAULT: Space = {
    "learning_rate": log(3e-4, 1e-2),
    "l2": log(1e-7, 1e-3),
    "embedding_size": choice(64, 100, 200),
    "batch_size": choice(50, 100, 200, 500),
    "step": choice(1, 2),
    "item_dropout": uniform(0.0, 0.5),
    "normalize": choice(False, True),
    "scale": log(8.0, 32.0),  # plays no part without `normalize`
    "reverse_positions": choice(0, 32),
    "readout": choice("hybrid", "attention", "local"),
    "lr_decay": choice(0.1, 0.3, 1.0),
}
