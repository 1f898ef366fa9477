"""The record of a run: one JSON object a line, and the same values for TensorBoard."""

import json
import math
import os
import pathlib
from collections.abc import Mapping

import tensorboardX

from srgnn_jax.errors import UserError, reason


class MetricsWriter:
    """Appends to `metrics.jsonl` and to TensorBoard event files in a workdir.

    A line is an object with an integer `step` and the metrics as fractions. A resumed
    run comes again through the steps after its checkpoint: what was recorded of them is
    dropped. What is there of the others, the same step with the same keys, is not
    written twice.
    """

    def __init__(
        self, workdir: pathlib.Path, enabled: bool = True, last_step: int | None = None
    ):
        """Opens the files.

        Args:
          workdir: folder of the run.
          enabled: if not, nothing is read nor written.
          last_step: records of later steps are dropped; None: none is.

        Raises:
          UserError: a line of metrics.jsonl is no record, or a file cannot be written.
        """
        self._enabled = enabled
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        try:
            self._seen = _drop_after(path, math.inf if last_step is None else last_step)
            # Line by line, for those who watch the file.
            self._file = path.open("a", buffering=1, encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"),
                purge_step=None if last_step is None else last_step + 1,
            )
        except OSError as error:
            raise UserError(
                f"cannot write {error.filename or path} ({reason(error)})"
            ) from error

    def write(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Records metrics of one step, unless the very same ones are there already."""
        record = {"step": step, **metrics}
        if not self._enabled or _key(record) in self._seen:
            return
        self._seen.add(_key(record))
        self._file.write(json.dumps(record) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Brings all that was written to disk, before a checkpoint relies on it."""
        if self._enabled:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._enabled:
            with self._file, self._board:
                self.flush()


def _drop_after(path: pathlib.Path, last_step: int | float) -> set[tuple]:
    """Leaves in a file what stands; returns the keys of that.

    A run that was killed may have left half a line at the end.
    """
    seen, kept = set(), []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            if record["step"] <= last_step:
                seen.add(_key(record))
                kept.append(line)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not a record of a run; mend "
                "or remove it"
            ) from error
    if kept != lines:
        shorter = path.with_name(path.name + ".new")
        shorter.write_bytes(b"".join(kept))
        shorter.replace(path)
    return seen


def _key(record: Mapping[str, int | float]) -> tuple[int | float, frozenset[str]]:
    return record["step"], frozenset(record)
