"""The progress of a run, and the name of its model."""

import dataclasses
import math
from typing import Any

import flax.linen as nn

from srgnn_jax.errors import UserError


@dataclasses.dataclass
class Progress:
    """How far a run has come: what a checkpoint holds besides the arrays."""

    config: dict[str, Any]  # as plain values
    data: str  # fingerprint of the prepared data
    vocabulary: str  # fingerprint of the raw item ids
    num_items: int  # rows of the item table, row 0 included
    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done; further steps belong to the next one
    epoch_loss: float = 0.0  # sum of that epoch's losses, up to the last logged step
    epoch_examples: float = 0.0  # number of examples in that sum
    best_step: int = 0  # at the end of the best epoch; 0 if there is none yet
    best_epoch: int = 0  # that epoch, counted from 1
    # its metrics on the split that selects
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_epochs: int = 0  # epochs since then
    model: str = "SRGNN"  # see `model_name`
    # epochs of earlier runs, after which the learning rate's schedule continues
    first_epoch: int = 0
    # the run that this one started from, the one before that, and so on; see
    # `train.warm_start`
    parents: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def end_epoch(self, metrics: dict[str, float], select_by: str) -> float:
        """Records the end of an epoch and the best one so far; returns its mean loss.

        Without metrics no split selects, and each epoch is the best so far.
        """
        loss = self.epoch_loss / self.epoch_examples
        self.epoch_loss = self.epoch_examples = 0.0
        self.epoch += 1
        self.bad_epochs += 1
        best = self.best_metrics.get(select_by, -math.inf)
        if not metrics or metrics[select_by] > best:
            self.best_step, self.best_epoch = self.step, self.epoch
            self.best_metrics, self.bad_epochs = metrics, 0
        return loss


def model_name(model: nn.Module) -> str:
    """Names a model by its classes, for example "SRGNN" or "SRGNN(gnn=MyLayer)"."""
    given = {name: getattr(model, name, None) for name in ("gnn", "pooling")}
    layers = [f"{k}={type(v).__name__}" for k, v in given.items() if v is not None]
    return type(model).__name__ + (f"({', '.join(layers)})" if layers else "")


def check_same_model(stored: str, name: str) -> None:
    """Raises UserError unless the model that a checkpoint stores has this name."""
    if stored != name:
        raise UserError(
            f"the checkpoint is of the model {stored}, but this is {name}; pass "
            "what made it: --config=FILE with its `get_model`, or model=..."
        )
