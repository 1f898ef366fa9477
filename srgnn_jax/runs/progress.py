"""How far a run has come, and whether another may go on from there."""

import dataclasses
from collections.abc import Collection
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.errors import UserError


@dataclasses.dataclass
class Progress:
    """How far a run has come; what a checkpoint holds beside the arrays.

    Attributes:
      step: optimizer steps done.
      epoch: epochs done; steps beyond them belong to the epoch that is under way.
      epoch_loss: sum of the losses of that epoch, up to the last logged step.
      epoch_examples: number of examples in that sum.
      best_step: step of the best epoch's end, 0 while there is none.
      best_epoch: that epoch, counted from 1.
      best_metrics: what it reached on the split that selects.
      bad_epochs: epochs since then.
      config: the run's config.
      data: fingerprint of the prepared data.
      vocabulary: fingerprint of the raw item ids.
      num_items: rows of the item table, row 0 included.
      model: name of the model; see `config.model_name`.
    """

    config: dict[str, Any]
    data: str
    vocabulary: str
    num_items: int
    step: int = 0
    epoch: int = 0
    epoch_loss: float = 0.0
    epoch_examples: float = 0.0
    best_step: int = 0
    best_epoch: int = 0
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    bad_epochs: int = 0
    model: str = "SRGNN"

    @classmethod
    def at_start(
        cls, config: ConfigDict, data: Dataset, model: nn.Module
    ) -> "Progress":
        """Returns the progress of a run that has yet to take its first step."""
        return cls(
            config=config_lib.to_dict(config),
            data=data.fingerprint,
            vocabulary=data.vocabulary.fingerprint(),
            num_items=data.vocabulary.num_items,
            model=config_lib.model_name(model),
        )


def check_same_run(
    stored: Progress,
    now: Progress,
    may_differ: Collection[str] = config_lib.MAY_DIFFER,
) -> None:
    """Raises UserError, naming each difference, if `now` cannot go on from `stored`.

    Args:
      stored: of the workdir.
      now: of the run that wants to use it.
      may_differ: the config's fields that may.
    """
    check_same_model(stored.model, now.model)
    found = config_lib.differences(stored.config, now.config, may_differ)
    for field, meaning in (
        ("data", "fingerprint of the prepared data"),
        ("vocabulary", "fingerprint of the item ids"),
        ("num_items", "number of item rows"),
    ):
        old, new = getattr(stored, field), getattr(now, field)
        if old != new:
            found.append(f"{meaning}: {old} -> {new}")
    if found:
        raise UserError(
            "the workdir holds another run; choose another --workdir, or undo: "
            + "; ".join(found)
        )


def check_same_model(stored: str, name: str) -> None:
    """Raises UserError unless the name stored in a checkpoint is that of the model."""
    if stored != name:
        raise UserError(
            f"the checkpoint is of the model {stored}, and this is {name}; hand "
            "in what made it: --config=FILE with its `get_model`, or model=..."
        )
