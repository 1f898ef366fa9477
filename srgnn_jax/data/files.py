"""Opens files, and detects compression and format from their content."""

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from srgnn_jax.errors import UserError, reason

# Characters of text to read and split at a time.
CHUNK = 1 << 25

_PACKED: dict[bytes, Callable[[pathlib.Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda path: io.BufferedReader(
        pa.input_stream(str(path), compression="zstd")
    ),
}
_REFUSED = {
    b"PK\3\4": "is a zip archive or a spreadsheet; unpack it, or save it as csv",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet; save it as csv",
    b"SQLite format 3": "is a database; export its table as csv or parquet",
    b"\x89HDF": "is an HDF5 file; export its table as csv or parquet",
}


def open_bytes(path: pathlib.Path) -> Any:
    """Opens a file, decompressed; raises UserError if it cannot be a log."""
    with path.open("rb") as file:
        start = file.read(16)
    for magic, what in _REFUSED.items():
        if start.startswith(magic):
            raise UserError(f"{path} {what}")
    for magic, open_packed in _PACKED.items():
        if start.startswith(magic):
            with reading(path), open_packed(path) as file:
                start = file.read(4)
            if start.startswith(tuple(_PACKED)):
                raise UserError(f"{path} is compressed twice; decompress it once")
            return open_packed(path)
    return path.open("rb")


def is_packed(start: bytes) -> bool:
    """Whether the first bytes of a file show that it is not UTF-8 text."""
    marks = (*_PACKED, *_REFUSED, b"PAR1", b"\xff\xfe", b"\xfe\xff")
    return start.startswith(tuple(marks)) or b"\0" in start[:4]


def open_text(path: pathlib.Path, encoding: str = "") -> io.TextIOWrapper:
    """Opens a text file, decompressed; bytes that do not decode become U+FFFD.

    If no encoding is given, it is UTF-8, or UTF-16 if the file starts with a byte order
    mark or every other byte is zero. Lines end in line feeds.
    """
    if not encoding:
        with open_bytes(path) as file:
            start = file.read(64)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            encoding = "utf-16"
        elif len(start) > 3 and not any(start[1::2]):
            encoding = "utf-16-le"
        elif len(start) > 3 and not any(start[::2]):
            encoding = "utf-16-be"
        else:
            encoding = "utf-8-sig"
    return io.TextIOWrapper(open_bytes(path), encoding, "replace", newline="\n")


def kind_of(path: pathlib.Path, encoding: str = "") -> str:
    """Returns "parquet", "json" (objects) or "text", detected from the content."""
    with reading(path), path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    with reading(path), open_text(path, encoding) as text:
        lines = iter(lambda: text.readline(1 << 20), "")
        line = next((line for line in lines if line.strip()), "")
    return "json" if is_json(line) or is_array(line) else "text"


def is_array(line: str) -> bool:
    """Whether a file that starts with this line is one array of objects."""
    return re.match(r"\s*\[\s*(\{|$)", line) is not None


def is_json(line: str) -> bool:
    """Whether a line is meant to be JSON: an object or a list."""
    with contextlib.suppress(orjson.JSONDecodeError):
        return isinstance(orjson.loads(line), dict | list)
    return line.lstrip().startswith("{")


@contextlib.contextmanager
def reading(path: pathlib.Path, what: str = "") -> Iterator[None]:
    """Turns any error of a file or its compression into a UserError."""
    try:
        yield
    except (
        *(OSError, EOFError, ValueError, LookupError, zlib.error, lzma.LZMAError),
        *(pa.ArrowException, csv.Error),
        *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
    ) as error:
        raise UserError(f"cannot read {path}{what}: {reason(error)}") from error
