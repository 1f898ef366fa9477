"""Checkpoints: everything a run needs to go on as if it had never stopped.

    <workdir>/checkpoints/<step>   the newest, the one before it, and the best of either
    <workdir>/vocabulary.parquet   the raw item id of every row

Each is one Orbax checkpoint of two items: `state`, the arrays (parameters, optimizer
state, running sums), and `progress`, a JSON object. Orbax writes to a temporary folder
and renames it, so that a checkpoint is there as a whole or not at all.
"""

import collections
import dataclasses
import pathlib
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data.prepared import PreparedData
from srgnn_jax.errors import UserError

T = TypeVar("T")


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

    @classmethod
    def at_start(cls, config: ConfigDict, data: PreparedData) -> "Progress":
        """Returns the progress of a run that has yet to take its first step."""
        return cls(
            config=config_lib.to_dict(config),
            data=data.fingerprint,
            vocabulary=data.vocabulary.fingerprint(),
            num_items=data.vocabulary.num_items,
        )


def make_workdir(workdir: str) -> pathlib.Path:
    """Makes the folder of a run, unless it is there; raises UserError if it cannot."""
    folder = pathlib.Path(workdir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the workdir {folder} ({error.strerror}); name another with "
            "--workdir"
        ) from error
    return folder


def check_same_run(stored: Progress, now: Progress) -> None:
    """Raises UserError, naming each difference, if `now` cannot go on from `stored`."""
    found = config_lib.differences(stored.config, now.config)
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


class _KeepLatestAndBest:
    """Orbax preservation policy: the last two checkpoints and the best of either."""

    def __init__(self):
        self.best_steps: collections.deque[int] = collections.deque(maxlen=2)

    def should_preserve(self, checkpoints, *, context):
        del context
        kept = {info.step for info in checkpoints[-2:]} | set(self.best_steps)
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: pathlib.Path):
        """Opens them; the folder is made by the first `save`."""
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._policy = _KeepLatestAndBest()
        self._open: ocp.CheckpointManager | None = None

    def _manager(self, create: bool = False) -> ocp.CheckpointManager:
        if self._open is None:
            if not create and not self._folder.is_dir():
                raise UserError(
                    f"{self._folder} does not exist: no run has saved a checkpoint in "
                    "this workdir; train first, or name another --workdir"
                )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, create=create
            )
            self._open = ocp.CheckpointManager(self._folder, options=options)
        return self._open

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, None where there is none."""
        return self._manager().latest_step() if self._folder.is_dir() else None

    def save(self, state: Any, progress: Progress) -> None:
        """Saves in the background, under `progress.step`."""
        manager = self._manager(create=True)
        self._policy.best_steps.append(progress.best_step)
        # The next step donates the state's buffers, so what is saved is a copy.
        copy = jax.tree.map(jnp.copy, state)
        manager.save(
            progress.step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(copy),
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
            ),
        )

    def progress(self, step: int | None = None) -> Progress:
        """Reads the progress of one checkpoint, the newest unless a step is given."""
        manager = self._manager()
        if step is None:
            step = manager.latest_step()
        if step not in manager.all_steps():
            raise UserError(
                f"{self._folder} holds no checkpoint"
                + ("" if step is None else f" of step {step}")
                + "; train first, or name another --workdir"
            )
        restored = manager.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        )
        return Progress(**restored.progress)

    def restore(self, wanted: T, step: int) -> T:
        """Reads arrays of one checkpoint.

        Args:
          wanted: shapes, types and shardings of the state, or of a dict of some of its
            fields. A table that is filled up with rows to another multiple than it was
            saved with is cut, or filled up with zeros.
          step: which checkpoint.
        """
        self._policy.best_steps.append(self.progress(step).best_step)
        how = ocp.args.PyTreeRestore(
            wanted,
            restore_args=jax.tree.map(
                lambda x: ocp.ArrayRestoreArgs(
                    sharding=x.sharding,
                    global_shape=x.shape,
                    dtype=x.dtype,
                    strict=False,
                ),
                wanted,
            ),
            partial_restore=True,
        )
        return self._manager().restore(step, args=ocp.args.Composite(state=how)).state

    def close(self) -> None:
        """Waits until everything is written."""
        if self._open is not None:
            self._open.wait_until_finished()
            self._open.close()
