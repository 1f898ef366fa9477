"""Reads a `.pth` or safetensors file, without torch and running nothing.

A `.pth` is a zip of a pickle and of one raw file per tensor; see `unpickle`. All sizes
are checked against the file's own.
"""

import functools
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from srgnn_jax.convert.names import EMBEDDING, as_numpy
from srgnn_jax.convert.unpickle import NotReadableError, fail, short, unpickle
from srgnn_jax.errors import UserError

# That of an SR-GNN in safetensors has 2 kB.
MAX_HEADER_BYTES = 10 << 20


class TorchCheckpoint(dict[str, np.ndarray]):
    """The weights of a PyTorch checkpoint: its state_dict, names to arrays.

    Attributes:
      source: whose names they are, "recbole" or "original".
      config: RecBole's config, {} where the file holds none; enums and other objects in
        it are text.
    """

    def __init__(
        self, state_dict: dict[str, np.ndarray], source: str, config: dict[str, Any]
    ) -> None:
        super().__init__(state_dict)
        self.source = source
        self.config = config


def load_torch_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Reads a PyTorch SR-GNN's checkpoint; neither torch nor RecBole need be installed.

    Nothing that the file holds is executed.

    Args:
      path: a `.pth` as RecBole saves it or as `torch.save(model.state_dict(), path)`
        does (the zip format that PyTorch has written since 1.6), or a safetensors file.

    Returns:
      The weights by name, ready for `params_from_torch(checkpoint, checkpoint.source)`,
      in the file's types but for half precision, which is widened to float32.

    Raises:
      UserError: there is no such file, it is damaged, of another format or another
        model, or its pickle names what no honest checkpoint needs.

    Source: the layout that PyTorch's `torch.serialization` specifies.
    """
    path = Path(path)
    try:
        state_dict, config = _read(path)
    except NotReadableError as error:
        raise UserError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        reason = str(error)[:80]
        raise UserError(f"{path}: the zip archive is damaged ({reason})") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot be read ({reason})") from None
    for source, name in EMBEDDING.items():
        if name in state_dict:
            return TorchCheckpoint(state_dict, source, config)
    raise UserError(
        f"{path}: holds no SR-GNN: neither 'item_embedding.weight' (RecBole) nor "
        f"'embedding.weight' (the original) is among its {len(state_dict)} entries "
        f"{', '.join(map(short, list(state_dict)[:20]))}"
    )


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with path.open("rb") as file:
        start = file.read(9)
        file_bytes = os.fstat(file.fileno()).st_size
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(file, file_bytes)
    if start[8:] == b"{":
        return _read_safetensors(path, start, file_bytes), {}
    if start[:1] == b"\x80":
        fail(
            "this is the format that PyTorch wrote before 1.6, a bare pickle, which is "
            "not read here; save it anew, with PyTorch: torch.save(torch.load(path, "
            "weights_only=True), path)"
        )
    fail("this is neither a .pth file (a zip archive) nor a safetensors file")


def _read_safetensors(
    path: Path, start: bytes, file_bytes: int
) -> dict[str, np.ndarray]:
    header_bytes = int.from_bytes(start[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
        fail(f"its header claims {header_bytes:,} bytes, the file has {file_bytes:,}")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        fail(f"the file is damaged or not of safetensors: {short(reason)}")
    except (AttributeError, KeyError, TypeError) as error:
        fail(f"a tensor is of a type that is not read here: {short(str(error))}")
    if not arrays:
        fail("it holds no tensors")
    return {name: as_numpy(array) for name, array in arrays.items()}


def _read_zip(file: BinaryIO, file_bytes: int) -> tuple[dict[str, np.ndarray], dict]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for name, info in members.items():
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                fail(f"the archive holds a file {short(name)} outside of its folder")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                fail(f"{short(name)} is compressed or encrypted, as torch never does")
        # Entries may point at the same bytes, many times over.
        if sum(info.file_size for info in archive.infolist()) > file_bytes:
            fail(f"its entries claim more than the file's {file_bytes:,} bytes")
        pickles = [name for name in members if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            fail(
                f"the archive holds {len(pickles)} files data.pkl, where torch has one"
            )
        folder = pickles[0].removesuffix("data.pkl")
        order: Literal["<", ">"] = "<"
        if folder + "byteorder" in members:
            text = archive.read(folder + "byteorder")
            if text not in (b"little", b"big"):
                fail(f"the byte order is {short(text)}, not 'little' or 'big'")
            order = "<" if text == b"little" else ">"

        @functools.cache  # Tensors may share a storage.
        def storage(key: str, itemsize: int) -> np.ndarray:
            name = f"{folder}data/{key}"
            if name not in members:
                fail(f"{short(name)} is missing from the archive")
            raw = archive.read(name)
            if len(raw) % itemsize:
                fail(f"the {len(raw)} bytes of {short(name)} are no whole numbers")
            stored = np.dtype(f"u{itemsize}").newbyteorder(order)
            return np.frombuffer(raw, stored).astype(f"u{itemsize}", copy=False)

        views, config = unpickle(archive.read(pickles[0]), storage)
    total = sum(view.nbytes for view in views.values())
    if total > file_bytes:
        fail(f"its tensors claim {total:,} bytes, more than the file's {file_bytes:,}")
    return {n: as_numpy(np.array(v, order="C")) for n, v in views.items()}, config
