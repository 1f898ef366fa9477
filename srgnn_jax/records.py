"""The record of a run: one JSON object a line, and the same values for TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import IO

import tensorboardX

from srgnn_jax.errors import UserError


class MetricsWriter:
    """Appends to `metrics.jsonl` and to TensorBoard event files in a workdir.

    A line is an object with an integer `step` and the metrics as fractions. A resumed
    run comes again through steps that it had recorded before it was interrupted: what
    is there already, the same step with the same keys, is not written twice.
    """

    def __init__(self, workdir: pathlib.Path, enabled: bool = True):
        """Opens the files; where not enabled, nothing is read nor written."""
        self._enabled = enabled
        if not enabled:
            return
        self._path = workdir / "metrics.jsonl"
        self._seen = set()
        kept = 0
        if self._path.exists():
            # A run that was killed may leave half a line at the end.
            with self._path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break
                    kept += len(line)
                    try:
                        self._seen.add(_key(json.loads(line)))
                    except (ValueError, KeyError, TypeError) as error:
                        raise UserError(
                            f"{self._path}, line {number}: {line[:80]!r} is not a "
                            "record of a run; mend or remove it"
                        ) from error
            os.truncate(self._path, kept)
        # Line by line, for those who watch the file.
        self._file: IO[str] = self._path.open("a", buffering=1, encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

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
        if not self._enabled:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if not self._enabled:
            return
        self.flush()
        self._file.close()
        self._board.close()


def _key(record: Mapping[str, int | float]) -> tuple[int | float, frozenset[str]]:
    return record["step"], frozenset(record)
