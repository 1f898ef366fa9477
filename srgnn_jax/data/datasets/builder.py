"""What the builders share: settings, features, splits, and the way to records.

TensorFlow is neither needed nor imported: records are array_record files, read through
`as_data_source`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import tensorflow_datasets as tfds

from srgnn_jax.data.click_log import Columns, parse_iso, read_click_log
from srgnn_jax.data.prepare import Prepared, prepare
from srgnn_jax.data.sessions import Sessions
from srgnn_jax.errors import UserError


@dataclasses.dataclass(eq=False, kw_only=True)
class PreparationConfig(tfds.core.BuilderConfig):
    """The settings of configs/default.py that decide what is prepared."""

    name: str = "default"
    log_file: str = ""
    session_column: str = ""
    item_column: str = ""
    time_column: str = ""
    date_column: str = ""
    separator: str = ""
    on_bad_row: str = "error"
    min_session_length: int = 2
    min_item_count: int = 5
    test_days: float = 1.0
    test_start: str = ""
    test_end: str = ""
    train_fraction: float = 1.0
    date_resolution_seconds: int = 0
    recbole_time: str = "exact"

    @property
    def columns(self) -> Columns:
        """The columns that are named."""
        return Columns(
            self.session_column, self.item_column, self.time_column, self.date_column
        )

    @property
    def rules(self) -> dict[str, Any]:
        """The arguments of `prepare.prepare`."""
        return {
            "min_session_length": self.min_session_length,
            "min_item_count": self.min_item_count,
            "test_days": self.test_days,
            "test_start": _microseconds("test_start", self.test_start),
            "test_end": _microseconds("test_end", self.test_end),
            "train_fraction": self.train_fraction,
            "date_resolution_seconds": self.date_resolution_seconds,
        }


def _microseconds(field: str, text: str) -> int | None:
    if not text:
        return None
    moment = parse_iso(pl.Series([text]))[0]
    if moment is None:
        raise UserError(
            f"config.{field} is {text!r}; write a time in UTC such as 2014-09-29 or "
            "2014-09-29T12:00:00"
        )
    return moment


class SessionsBuilder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Builds one record a session: {"items": int32 item rows in time order}.

    Metadata holds the vocabulary (`item_ids`, that of row 1 first), the counts, and the
    splits whose sessions are given (prefix, target) pairs (`last_only`).
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [PreparationConfig()]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        """Takes what TFDS builders do; its own default format needs TensorFlow."""
        super().__init__(file_format=file_format, **kwargs)

    @classmethod
    def source_files(
        cls, folder: pathlib.Path, config: PreparationConfig
    ) -> list[pathlib.Path]:
        """Returns the raw files in a folder; raises UserError where one is missing."""
        raise NotImplementedError

    @classmethod
    def read(cls, files: list[pathlib.Path], config: PreparationConfig) -> Prepared:
        """Reads and prepares the raw files."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {"items": tfds.features.Tensor(shape=(None,), dtype=np.int32)}
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        folder = pathlib.Path()
        if self.MANUAL_DOWNLOAD_INSTRUCTIONS:
            folder = pathlib.Path(dl_manager.manual_dir)
        files = self.source_files(folder, self.builder_config)
        prepared = self.read(files, self.builder_config)
        self.info.metadata["item_ids"] = prepared.vocabulary.ids
        self.info.metadata["counts"] = prepared.counts
        self.info.metadata["last_only"] = [
            split for split, sessions in prepared.splits.items() if sessions.last_only
        ]
        # TFDS refuses to write a split without records.
        return {
            split: self._generate_examples(sessions)
            for split, sessions in prepared.splits.items()
            if len(sessions)
        }

    def _generate_examples(self, sessions: Sessions) -> Iterator[tuple[int, dict]]:
        for s in range(len(sessions)):
            yield s, {"items": sessions[s]}


def prepare_log(
    path: pathlib.Path,
    columns: Columns,
    config: PreparationConfig,
    *,
    header: Sequence[str] = (),
    separator: str = "",
) -> Prepared:
    """Reads a click log and prepares it by the config's rules.

    See `click_log.read_click_log` for the arguments; the rows that it skipped are added
    to the counts.
    """
    clicks, skipped = read_click_log(
        path,
        columns,
        header=header,
        separator=separator,
        on_bad_row=config.on_bad_row,
    )
    prepared = prepare(clicks, **config.rules)
    prepared.counts["skipped_rows"] = skipped
    return prepared


def named_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the file that `config.log_file` names, or raises UserError."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"no file {name} in config.data_dir = {str(folder)!r}")
    return path


def the_one_file(folder: pathlib.Path, pattern: str, instructions: str) -> pathlib.Path:
    """Returns the one file in a folder whose name matches, or raises UserError."""
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) != 1:
        what = "no file" if not found else "more than one file"
        raise UserError(
            f"{what} {pattern} in config.data_dir = {str(folder)!r}. {instructions}"
        )
    return found[0]
