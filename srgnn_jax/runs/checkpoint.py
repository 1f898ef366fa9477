"""Checkpoints: everything a run needs to continue as if it had never stopped.

    <workdir>/checkpoints/<step>   the newest, the one before it, and the best of either
    <workdir>/checkpoints/damaged-<step>-<time>   found damaged and set aside

Orbax writes each completely or not at all: `state`, the arrays, and `progress`, a JSON
object. `checksums.json` next to them holds the SHA-256 of their files.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from srgnn_jax.devices import processes
from srgnn_jax.devices.layouts import Devices
from srgnn_jax.errors import UserError, reason
from srgnn_jax.model.layers import Params
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.runs.progress import Progress, check_same_model, model_name
from srgnn_jax.runs.workdir import FOLDER, seed_folders

T = TypeVar("T")

CHECKSUMS = "checksums.json"

log = logging.getLogger(__name__)


class _KeepLatestAndBest:
    """Orbax preservation policy: the last two checkpoints and the best of either."""

    def __init__(self):
        self.best_steps: collections.deque[int] = collections.deque(maxlen=2)

    def should_preserve(self, checkpoints, *, context):
        kept = {info.step for info in checkpoints[-2:]} | set(self.best_steps)
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir; the first `save` makes their folder."""

    def __init__(self, workdir: pathlib.Path):
        self._folder = pathlib.Path(workdir).absolute() / FOLDER
        self._policy = _KeepLatestAndBest()
        self._saving = 0
        self._sound: set[int] = set()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        if not self._folder.is_dir():
            if seeds := seed_folders(self._folder.parent):
                raise UserError(
                    f"{self._folder.parent} holds the runs of several seeds; name one "
                    f"of them, such as {next(iter(seeds.values()))}"
                )
            raise UserError(
                f"{self._folder} does not exist: no run has saved a checkpoint; train "
                "first, or name another --workdir"
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            # Otherwise one checkpoint with a damaged timestamp would block all others.
            lightweight_initialize=True,
            # Orbax calls it when everything is written, before it renames the folder.
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_checksums
            ),
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step() if self._folder.is_dir() else None

    def save(self, state: Any, progress: Progress) -> None:
        """Saves in the background; replaces a checkpoint of the same step.

        Raises:
          UserError: this checkpoint, or the one before it, cannot be written.
        """
        with self._write_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._manager.wait_until_finished()
            if progress.step in self._manager.all_steps():
                self._manager.delete(progress.step)
            self._policy.best_steps.append(progress.best_step)
            # The next step donates the state's buffers. From an accelerator, Orbax
            # first copies them to the host; on CPU, a step would overwrite them while
            # Orbax writes.
            if jax.default_backend() == "cpu":
                state = jax.tree.map(jnp.copy, state)
            self._saving = progress.step
            self._sound.discard(progress.step)
            args = ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
            )
            self._manager.save(progress.step, args=args)

    def _write_checksums(self) -> None:
        unfinished = next(self._folder.glob(f"{self._saving}.*"))
        digests = {
            path.relative_to(unfinished).as_posix(): _digest(path)
            for path in sorted(unfinished.glob("*/**/*"))
            if path.is_file()
        }
        (unfinished / CHECKSUMS).write_text(json.dumps(digests, indent=1))

    def _read_progress(self, step: int) -> Progress:
        """Raises ValueError, which names the file, if a checkpoint is damaged."""
        folder = self._folder / str(step)
        try:
            if step not in self._sound:
                digests = json.loads((folder / CHECKSUMS).read_text())
                for name, digest in digests.items():
                    if _digest(folder / name) != digest:
                        raise ValueError(f"{name} is not what was saved")
            args = ocp.args.Composite(progress=ocp.args.JsonRestore())
            progress = Progress(**self._manager.restore(step, args=args).progress)
        # What Orbax writes last, such as the time, has no checksums.
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            why = reason(error)
            if isinstance(error, OSError) and error.filename:
                why = f"{error.filename}: {why}"
            raise ValueError(f"the checkpoint {folder} is damaged: {why}") from error
        self._sound.add(step)
        return progress

    def progress(self, step: int | None = None) -> Progress:
        """Reads the progress of one checkpoint, by default the newest undamaged one.

        Warns about newer ones that are damaged.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        steps = [s for s in self._manager.all_steps() if step in (None, s)]
        if not steps:
            which = "" if step is None else f" of step {step}"
            raise UserError(f"{self._folder} holds no checkpoint{which}; train first")
        damaged: list[str] = []
        for candidate in sorted(steps, reverse=True):
            try:
                progress = self._read_progress(candidate)
            except ValueError as error:
                damaged.append(str(error))
            else:
                for text in damaged:
                    log.warning("%s; using the one from step %d", text, candidate)
                return progress
        raise UserError(
            f"{'; '.join(damaged)}; restore it from a copy, or train again with "
            "another --workdir"
        )

    def check_newest(self) -> None:
        """Raises UserError if the newest checkpoint is damaged."""
        if self.progress().step != self.latest_step():
            folder = self._folder.parent
            raise UserError(f"the newest checkpoint in {folder} is damaged")

    def checksum(self, step: int) -> str:
        """Returns a SHA-256 of one checkpoint: that of its files' checksums."""
        return _digest(self._folder / str(step) / CHECKSUMS)

    def continue_from(self, step: int | None) -> None:
        """Prepares the folder for a run that continues from a checkpoint, or starts.

        Removes what killed saves have left, and sets aside the checkpoints after that
        step, which are damaged.
        """
        if not self._folder.is_dir():
            return
        with processes.main_process_first(), self._write_errors():
            if processes.is_main_process():
                for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                    shutil.rmtree(path)
                for later in self._manager.all_steps():
                    if step is not None and later > step:
                        aside = f"damaged-{later}-{time.time_ns()}"
                        (self._folder / str(later)).rename(self._folder / aside)
            self._manager.reload()

    def restore(self, wanted: T, step: int) -> T:
        """Reads arrays of one checkpoint, laid out as in `wanted`.

        `wanted` is a state, or a dict of some of its fields, with shapes, types and
        shardings. Only the number of rows of the item table may differ. Arrays without
        a sharding are returned as NumPy arrays, with the rows that were saved.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or its arrays have
            other names or shapes.
        """
        self._policy.best_steps.append(self.progress(step).best_step)
        self._check_shapes(wanted, step)

        def how(x):
            if x.sharding is None:
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(
                sharding=x.sharding, global_shape=x.shape, dtype=x.dtype, strict=False
            )

        args = ocp.args.PyTreeRestore(
            wanted, restore_args=jax.tree.map(how, wanted), partial_restore=True
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=args)).state

    def _check_shapes(self, wanted: Any, step: int) -> None:
        """Refuses another model's parameters, which Orbax would cut or fill with 0."""
        params = wanted["params"] if isinstance(wanted, dict) else wanted.params
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            metadata = handler.metadata(self._folder / str(step) / "state")
        held, asked = _by_name(metadata.tree["params"]), _by_name(params)
        for name in sorted(held.keys() | asked.keys()):
            old, new = (
                tuple(arrays[name].shape) if name in arrays else None
                for arrays in (held, asked)
            )
            # The number of rows of the item table may differ.
            first = name == "item_embedding"
            if old is None or new is None or old[first:] != new[first:]:
                raise UserError(
                    f"the checkpoint of step {step} is of another model, whose {name} "
                    f"has the shape {old}, not {new}; pass that model"
                )

    def close(self) -> None:
        """Waits until everything is written; raises UserError if it cannot be."""
        if "_manager" in vars(self):
            with self._write_errors():
                self._manager.wait_until_finished()
                self._manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        # TensorStore reports disk errors as ValueError.
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot write a checkpoint to {self._folder} ({reason(error)}); "
                "earlier ones are kept: fix this, and the same command continues"
            ) from error


def restore_best(
    checkpoints: Checkpoints, progress: Progress, model: nn.Module, devices: Devices
) -> tuple[Params, int]:
    """Returns the best epoch's parameters, laid out for the devices, and their step.

    If no epoch is complete yet, they are those of the last step.

    Raises:
      UserError: they belong to another model or are not finite.
    """
    check_same_model(progress.model, model_name(model))
    shapes = {"params": jax.eval_shape(lambda: init_params(model, 0))}
    step = progress.best_step or progress.step
    restored = checkpoints.restore(devices.layout(shapes), step)
    params = devices.lay_out(restored)["params"]
    try:
        check_finite(params)
    except ValueError as error:
        message = f"the checkpoint of step {step} is unusable: {error}"
        raise UserError(message) from None
    return params, step


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, such as "gnn/w_in"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_finite(params: Any) -> None:
    """Raises ValueError, naming the array, if an array of the tree is not finite."""
    for name, is_finite in _by_name(_finite(params)).items():
        if not is_finite:
            raise ValueError(f"the parameter {name} holds NaN or infinity")
