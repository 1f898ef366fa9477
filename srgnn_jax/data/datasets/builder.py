"""What the builders share: settings, features, splits, and the way to records.

TensorFlow is neither needed nor imported: records are array_record files, read through
`as_data_source`.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from jaxtyping import Int
from tensorflow_datasets.core import dataset_builder, file_adapters

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


# The settings that decide how rows are read, and how `prepare.prepare` goes about them.
COLUMN_SETTINGS = frozenset({"session_column", "item_column", "time_column"})
RULE_SETTINGS = frozenset(PreparationConfig().rules)


class SessionsBuilder(  # type: ignore[call-arg]
    dataset_builder.FileReaderBuilder, skip_registration=True
):
    """Builds one record a session: {"items": int32 item rows in time order}.

    Metadata holds the vocabulary (`item_ids`, that of row 1 first), the counts, and the
    splits whose sessions are given (prefix, target) pairs (`last_only`).

    `SETTINGS` names the fields of `PreparationConfig` that the builder heeds.

    TFDS's own way from examples to records serializes some 20,000 sessions a second.
    Here all sessions of a split are serialized at once, to the same bytes.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [PreparationConfig()]
    SETTINGS: ClassVar[frozenset[str]] = frozenset({"on_bad_row"})

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

    def read_sessions(self, split: str) -> Sessions:
        """Reads the sessions of a split from its array_record files, all at once.

        Raises:
          UserError: a file is damaged, or lies outside of the data set's folder.
        """
        records: list[bytes] = []
        folder = pathlib.Path(self.data_path).resolve()
        for path in map(pathlib.Path, self.info.splits[split].filepaths):
            if not path.resolve().is_relative_to(folder):
                raise UserError(f"{path} lies outside of its data set, {folder}")
            try:
                reader = array_record_module.ArrayRecordReader(str(path))
                records.extend(reader.read_all())
                reader.close()
            except (ValueError, RuntimeError, IndexError, OSError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"cannot read the records in {path}: {reason}"
                ) from error
        try:
            return deserialize(records)
        except ValueError as error:
            raise UserError(
                f"cannot read split {split} in {folder}: {error}"
            ) from error

    def _download_and_prepare(self, dl_manager, download_config) -> None:
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
        shards = download_config.get_shard_config()
        # TFDS knows no split without records.
        splits = [
            self._write(split, serialize(sessions), shards)
            for split, sessions in prepared.splits.items()
            if len(sessions)
        ]
        self.info.set_splits(tfds.core.SplitDict(splits))

    def _write(self, split: str, records: list[bytes], shards) -> tfds.core.SplitInfo:
        size = sum(map(len, records))
        num_shards = shards.get_number_shards(size, len(records))
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=self.name,
            split=split,
            filetype_suffix=self.info.file_format.file_suffix,
        )
        bounds = [len(records) * n // num_shards for n in range(num_shards + 1)]
        write = file_adapters.ADAPTER_FOR_FORMAT[self.info.file_format].write_examples
        for n, path in enumerate(template.sharded_filepaths(num_shards)):
            write(path, enumerate(records[bounds[n] : bounds[n + 1]]))
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=np.diff(bounds).tolist(),
            num_bytes=size,
            filename_template=template,
        )


# A record is a tf.train.Example with one feature, "items", an Int64List. In bytes these
# are messages in each other, each a tag, its length and its content. The innermost is
# the item rows as varints: 7 bits a byte, the lowest first, and the eighth bit set in
# all bytes but the last (protobuf.dev/programming-guides/encoding).
_TAGS_FROM_INNERMOST = (b"\x0a", b"\x1a", b"\x0a\x05items\x12", b"\x0a", b"\x0a")
_VARINT_BYTES = 5  # of 32 bits


def serialize(sessions: Sessions) -> list[bytes]:
    """Returns each session's record, as TFDS would write it."""
    values, ends = _to_varints(sessions.items)
    bounds = np.append(0, ends)[sessions.offsets]
    header = {size: _header(size) for size in set(np.diff(bounds).tolist())}
    return [
        header[stop - start] + values[start:stop]
        for start, stop in itertools.pairwise(bounds.tolist())
    ]


def deserialize(records: Sequence[bytes]) -> Sessions:
    """Reads the sessions in records that TFDS or `serialize` wrote.

    Raises:
      ValueError: a record holds something else.
    """
    header = {size: _header_in(size) for size in set(map(len, records))}
    contents = []
    for record in records:
        expected = header[len(record)]
        if not record.startswith(expected):
            raise ValueError(f"{record[:40]!r} is no record of a session")
        contents.append(record[len(expected) :])
    items, ends = _from_varints(b"".join(contents))
    bounds = np.cumsum([0, *map(len, contents)])
    offsets = np.searchsorted(ends, bounds, side="right")
    if not np.array_equal(np.append(0, ends)[offsets], bounds):
        raise ValueError("a record of a session ends within a number")
    return Sessions(items, offsets.astype(np.int64))


@functools.cache
def _header(size: int) -> bytes:
    """Returns what stands in a record before `size` bytes of item rows."""
    header = b""
    for tag in _TAGS_FROM_INNERMOST:
        length, rest = bytearray(), size + len(header)
        while rest > 127:
            length.append(rest & 127 | 128)
            rest >>= 7
        header = tag + bytes([*length, rest]) + header
    return header


def _header_in(size: int) -> bytes:
    """Returns what a record of `size` bytes starts with."""
    for content in range(size - len(_header(0)), 0, -1):
        header = _header(content)
        if len(header) + content == size:
            return header
        if len(header) + content < size:
            break
    raise ValueError(f"no record of a session has {size} bytes")


def _to_varints(
    numbers: Int[np.ndarray, " n"],
) -> tuple[bytes, Int[np.ndarray, " n"]]:
    """Returns the varints of numbers from 0 to 2**32 - 1, and where each one ends."""
    sizes = np.ones(len(numbers), np.int64)
    for more in range(1, _VARINT_BYTES):
        sizes += numbers >= 1 << 7 * more
    ends = np.cumsum(sizes)
    data = np.empty(sizes.sum(), np.uint8)
    for place in range(_VARINT_BYTES):
        has = np.flatnonzero(sizes > place)
        goes_on = (sizes[has] > place + 1).astype(np.uint8) << 7
        data[ends[has] - sizes[has] + place] = (
            numbers[has] >> 7 * place & 127
        ) | goes_on
    return data.tobytes(), ends


def _from_varints(data: bytes) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns the numbers of varints, in int32, and where each one ends."""
    parts = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(parts < 128) + 1
    sizes = np.diff(ends, prepend=0)
    if sizes.max(initial=0) > _VARINT_BYTES:
        raise ValueError("a record of a session holds a number of more than 32 bits")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(_VARINT_BYTES):
        has = np.flatnonzero(sizes > place)
        part = parts[ends[has] - sizes[has] + place].astype(np.int64)
        numbers[has] |= (part & 127) << 7 * place
    return numbers.astype(np.int32), ends


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
    with naming(path):
        prepared = prepare(clicks, **config.rules)
    prepared.counts["skipped_rows"] = skipped
    return prepared


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Says which file it was whose clicks could not be used."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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
