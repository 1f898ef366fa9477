"""Reads the records of a TFDS data set on disk, without TensorFlow.

A record is a `tf.train.Example` in an array_record or tfrecord file: it maps names to
lists of integers, floats or bytes. Only the wanted features are decoded, which is many
times faster than TFDS's own decoding.
"""

import itertools
import json
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from srgnn_jax.errors import UserError

CHUNK_RECORDS = 10_000
# By kind of NumPy type; everything else is bytes, which are read as text.
_LISTS = {
    "i": ("int64_list", pl.Int64),
    "u": ("int64_list", pl.Int64),
    "f": ("float_list", pl.Float64),
}


def open_folder(folder: pathlib.Path) -> Any:
    """Returns TFDS's read-only builder for the folder of a version.

    Raises UserError if features.json names classes that are not TFDS's own: TFDS would
    import their modules.
    """
    import tensorflow_datasets as tfds

    def check(content: dict) -> dict:
        for key in ("pythonClassName", "python_class_name", "type"):
            name = content.get(key, "")
            own = "tensorflow_datasets.core.features."
            if isinstance(name, str) and "." in name and not name.startswith(own):
                raise UserError(
                    f"features.json names {name[:100]!r}, which is not part of TFDS"
                )
        return content

    json.loads((folder / "features.json").read_bytes(), object_hook=check)
    return tfds.builder_from_directory(folder)


def find_features(builder: Any) -> dict[str, tuple[int, str]]:
    """Returns each feature's number of axes and kind of NumPy type.

    A feature b inside of a is named a/b.
    """

    def flat(info: Any, name: str) -> Iterator[tuple[str, tuple[int, str]]]:
        if isinstance(info, Mapping):
            for inner, what in sorted(info.items()):
                yield from flat(what, f"{name}/{inner}" if name else inner)
        else:
            yield name, (len(info.shape), np.dtype(info.np_dtype).kind)

    return dict(flat(builder.info.features.get_tensor_info(), ""))


def read_split(builder: Any, split: str, wanted: Mapping[str, str]) -> pl.DataFrame:
    """Returns the wanted features, by column, as one list per record."""
    from tensorflow_datasets.proto import tf_example_pb2

    features = find_features(builder)
    how = {
        column: (name, *_LISTS.get(features[name][1], ("bytes_list", pl.String)))
        for column, name in wanted.items()
    }
    schema = {column: pl.List(dtype) for column, (_, _, dtype) in how.items()}
    chunks = [pl.DataFrame(schema=schema)]
    for records in _chunks(builder, split):
        examples = [
            tf_example_pb2.Example.FromString(record).features.feature
            for record in records
        ]
        values = {
            column: [_values(getattr(example[name], kind)) for example in examples]
            for column, (name, kind, _) in how.items()
        }
        chunks.append(pl.DataFrame(values, schema=schema))
    return pl.concat(chunks)


def _values(kept: Any) -> list:
    """Returns a list's values; text that is not UTF-8 becomes None."""
    values = list(kept.value)
    for n, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                values[n] = value.decode()
            except UnicodeDecodeError:
                values[n] = None
    return values


def _chunks(builder: Any, split: str) -> Iterator[list[bytes]]:
    from tensorflow_datasets import decode

    info = builder.info
    form = info.file_format.file_suffix
    if form == "tfrecord":
        paths = map(pathlib.Path, info.splits[split].filepaths)
        records = itertools.chain.from_iterable(map(_tfrecords, paths))
        while chunk := list(itertools.islice(records, CHUNK_RECORDS)):
            yield chunk
    elif form == "array_record":
        raw = decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
        for start in range(0, len(source), CHUNK_RECORDS):
            end = min(start + CHUNK_RECORDS, len(source))
            yield source.__getitems__(range(start, end))
    else:
        raise UserError(
            f"its file format is {form}, which is not supported; have TFDS prepare it "
            "with file_format='array_record'"
        )


def _tfrecords(path: pathlib.Path) -> Iterator[bytes]:
    """Yields a file's records, each framed by its length and checksums."""
    with path.open("rb") as file:
        while head := file.read(12):
            (length,) = struct.unpack("<Q4x", head)
            record = file.read(length)
            if len(record) + len(file.read(4)) < length + 4:
                raise ValueError(f"{path.name} ends within a record")
            yield record
