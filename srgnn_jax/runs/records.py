"""The record of a run: JSON lines, and the same values for TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping

from srgnn_jax.errors import UserError, reason


class MetricsWriter:
    """Appends to `metrics.jsonl` and TensorBoard's event files in a workdir.

    A line is an object with an integer `step` and metrics as fractions. No two lines
    have both the same step and the same keys.
    """

    def __init__(self, workdir: pathlib.Path, last_step: int, enabled: bool = True):
        """Opens the files; if not `enabled`, nothing is read or written.

        A resumed run repeats the steps after `last_step`, so their records are dropped.

        Raises:
          UserError: a line of metrics.jsonl is no record, or a file cannot be written.
        """
        self._enabled = enabled
        if not enabled:
            return
        # Imported here, as it imports torch if installed, which takes seconds.
        import tensorboardX

        path = workdir / "metrics.jsonl"
        try:
            self._seen = _drop_after(path, last_step)
            # Flushed after each line, for those who watch the file.
            self._file = path.open("a", buffering=1, encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=last_step + 1
            )
        except OSError as error:
            raise UserError(
                f"cannot write {error.filename or path} ({reason(error)})"
            ) from error

    def write(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Records metrics of one step, unless that step has them already."""
        key = step, frozenset(metrics)
        if not self._enabled or key in self._seen:
            return
        self._seen.add(key)
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flushes everything to disk, before a checkpoint relies on it."""
        if self._enabled:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._enabled:
            with self._file, self._board:
                self.flush()


def _drop_after(path: pathlib.Path, last_step: int) -> set[tuple[int, frozenset[str]]]:
    """Drops later records and a killed run's half line; returns what is left."""
    seen, kept = set(), []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            step = record.pop("step")
            if step <= last_step:
                seen.add((step, frozenset(record)))
                kept.append(line)
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not a record of a run; fix "
                "or remove it"
            ) from error
    if kept != lines:
        shorter = path.with_name(path.name + ".new")
        shorter.write_bytes(b"".join(kept))
        shorter.replace(path)
    return seen
