"""Checkpoints: everything a run needs to go on as if it had never stopped.

    <workdir>/checkpoints/<step>   the newest, the one before it, and the best of either
    <workdir>/checkpoints/damaged-<step>   what was found damaged and set aside

Each is one Orbax checkpoint of two items: `state`, the arrays (parameters, optimizer
state, running sums), and `progress`, a JSON object. Orbax writes to a temporary folder
and renames it, so that a checkpoint is there as a whole or not at all. Beside the items
lies `checksums.json`, the SHA-256 of each file of theirs, by which a checkpoint that
was damaged later is told from a sound one.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from srgnn_jax.devices import processes
from srgnn_jax.devices.layouts import Devices
from srgnn_jax.errors import UserError, reason
from srgnn_jax.model.layers import Params
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.runs.progress import Progress, check_same_model, model_name
from srgnn_jax.runs.workdir import FOLDER

T = TypeVar("T")

CHECKSUMS = "checksums.json"

log = logging.getLogger(__name__)


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
        self._folder = pathlib.Path(workdir).absolute() / FOLDER
        self._policy = _KeepLatestAndBest()
        self._open: ocp.CheckpointManager | None = None
        self._saving = 0
        self._sound: set[int] = set()

    def _manager(self, create: bool = False) -> ocp.CheckpointManager:
        if self._open is None:
            if not create and not self._folder.is_dir():
                raise UserError(
                    f"{self._folder} does not exist: no run has saved a checkpoint in "
                    "this workdir; train first, or name another --workdir"
                )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                create=create,
                # Else one whose time of saving is damaged would keep all from opening.
                lightweight_initialize=True,
                # Orbax calls it when all is written, before the folder is renamed.
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_checksums
                ),
            )
            self._open = ocp.CheckpointManager(self._folder, options=options)
        return self._open

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, None where there is none."""
        return self._manager().latest_step() if self._folder.is_dir() else None

    def save(self, state: Any, progress: Progress) -> None:
        """Saves in the background, under `progress.step`.

        A checkpoint of the same step is replaced.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        with self._told():
            manager = self._manager(create=True)
            if progress.step in manager.all_steps():
                manager.wait_until_finished()
                manager.delete(progress.step)
            self._policy.best_steps.append(progress.best_step)
            # The next step donates the state's buffers. Orbax first brings those of an
            # accelerator to the host; on CPU it would write what a step writes over.
            if jax.default_backend() == "cpu":
                state = jax.tree.map(jnp.copy, state)
            manager.wait_until_finished()
            self._saving = progress.step
            self._sound.discard(progress.step)
            manager.save(
                progress.step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                ),
            )

    def _write_checksums(self) -> None:
        unfinished = next(self._folder.glob(f"{self._saving}.*"))
        digests = {
            path.relative_to(unfinished).as_posix(): _digest(path)
            for path in sorted(unfinished.glob("*/**/*"))
            if path.is_file()
        }
        (unfinished / CHECKSUMS).write_text(json.dumps(digests, indent=1))

    def damage(self, step: int) -> str:
        """Returns what is wrong with a checkpoint's files, "" if nothing."""
        folder = self._folder / str(step)
        try:
            digests = json.loads((folder / CHECKSUMS).read_text())
            for name, digest in digests.items():
                if _digest(folder / name) != digest:
                    return f"{name} is not what was saved"
        except FileNotFoundError as error:
            return f"{pathlib.Path(error.filename).relative_to(folder)} is missing"
        except OSError as error:
            return f"{error.filename} cannot be read ({reason(error)})"
        except (ValueError, AttributeError):
            return f"{CHECKSUMS} is not what was saved"
        return ""

    def _read_progress(self, step: int) -> Progress:
        """Reads the progress of a checkpoint; raises UserError if it is damaged."""
        damage = "" if step in self._sound else self.damage(step)
        if not damage:
            try:
                restored = self._manager().restore(
                    step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
                )
                self._sound.add(step)
                return Progress(**restored.progress)
            # There are no checksums of what Orbax writes last, such as the time.
            except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
                damage = reason(error)
        raise UserError(
            f"the checkpoint {self._folder / str(step)} is damaged: {damage}"
        )

    def progress(self, step: int | None = None) -> Progress:
        """Reads the progress of one checkpoint, the newest sound one unless told.

        Warns of newer ones that are damaged.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        steps = [s for s in self._manager().all_steps() if step in (None, s)]
        if not steps:
            raise UserError(
                f"{self._folder} holds no checkpoint"
                + ("" if step is None else f" of step {step}")
                + "; train first, or name another --workdir"
            )
        damaged = []
        for candidate in sorted(steps, reverse=True):
            try:
                progress = self._read_progress(candidate)
            except UserError as error:
                damaged.append(str(error))
                continue
            for text in damaged:
                log.warning("%s; using the one of step %d", text, candidate)
            return progress
        raise UserError(
            "; ".join(damaged) + "; restore it from a copy, or train anew with another "
            "--workdir"
        )

    def continue_from(self, step: int | None) -> None:
        """Makes way for a run that goes on from one checkpoint, or starts.

        Removes what a save that was killed has left, and renames the checkpoints after
        that step, which are damaged, to damaged-<step>.
        """
        if not self._folder.is_dir():
            return
        with processes.main_process_first(), self._told():
            if processes.is_main_process():
                for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                    shutil.rmtree(path)
                for later in self._manager().all_steps():
                    if step is not None and later > step:
                        _set_aside(self._folder / str(later))
            self._manager().reload()

    def restore(self, wanted: T, step: int) -> T:
        """Reads arrays of one checkpoint.

        Args:
          wanted: shapes, types and shardings of the state, or of a dict of some of its
            fields. A table that is filled up with rows to another multiple than it was
            saved with is cut, or filled up with zeros.
          step: which checkpoint.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or its arrays have
            other names or shapes.
        """
        self._policy.best_steps.append(self.progress(step).best_step)
        self._check_shapes(wanted, step)
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

    def _check_shapes(self, wanted: Any, step: int) -> None:
        """Raises UserError unless a checkpoint holds what is wanted of its parameters.

        Orbax would cut an array, or fill it up with zeros. Only the rows of a table may
        differ.
        """
        params = wanted["params"] if isinstance(wanted, dict) else wanted.params
        asked = _by_name(params)
        folder = self._folder / str(step) / "state"
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            held = _by_name(handler.metadata(folder).tree["params"])
        for name in sorted(held.keys() | asked.keys()):
            old, new = (
                tuple(arrays[name].shape) if name in arrays else None
                for arrays in (held, asked)
            )
            first = name == "item_embedding"
            if old is None or new is None or old[first:] != new[first:]:
                raise UserError(
                    f"the checkpoint of step {step} was made by another model: its "
                    f"parameter {name} has the shape {old}, this model's {new}; hand "
                    "in the model that it was trained with"
                )

    def close(self) -> None:
        """Waits until everything is written; raises UserError if it cannot be."""
        if self._open is not None:
            with self._told():
                self._open.wait_until_finished()
                self._open.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tells the user what kept a checkpoint from being written."""
        try:
            yield
        # What TensorStore finds wrong with a disk is a ValueError.
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot write a checkpoint to {self._folder} ({reason(error)}); "
                "those before it are kept: mend that, and the same command continues"
            ) from error


def restore_best(
    checkpoints: Checkpoints, progress: Progress, model: nn.Module, devices: Devices
) -> tuple[Params, int]:
    """Reads the parameters of the best epoch, or of the last step while there is none.

    Returns:
      The parameters, laid out for the devices, and their step.

    Raises:
      UserError: they are another model's, or not finite.
    """
    check_same_model(progress.model, model_name(model))
    shapes = {"params": jax.eval_shape(lambda: init_params(model, 0))}
    step = progress.best_step or progress.step
    restored = checkpoints.restore(devices.layout(shapes), step)
    params = devices.lay_out(restored)["params"]
    try:
        check_finite(params)
    except ValueError as error:
        raise UserError(
            f"the checkpoint of step {step} is of no use: {error}"
        ) from None
    return params, step


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_aside(folder: pathlib.Path) -> None:
    """Renames a damaged checkpoint; one of the same step may lie there already."""
    number, target = 1, folder.with_name(f"damaged-{folder.name}")
    while target.exists():
        number += 1
        target = folder.with_name(f"damaged-{folder.name}-{number}")
    folder.rename(target)


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their path, such as "gnn/w_in"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@jax.jit
def _finite(tree: Any) -> Any:
    """Returns for each array whether it holds no NaN and no infinity."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_finite(params: Any) -> None:
    """Raises ValueError, naming an array of the tree, unless all are finite."""
    for name, is_finite in _by_name(_finite(params)).items():
        if not is_finite:
            raise ValueError(f"the parameter {name} holds NaN or infinity")
