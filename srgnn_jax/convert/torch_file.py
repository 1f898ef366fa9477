"""Reads a `.pth` or safetensors file, without torch and running nothing.

A `.pth` is a zip of a pickle and of one raw file per tensor; see `torch_pickle`. All
sizes are checked against the file's own.
"""

import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from srgnn_jax.convert.names import EMBEDDING, as_numpy
from srgnn_jax.convert.torch_pickle import unpickle
from srgnn_jax.data.plain_pickle import short
from srgnn_jax.errors import UserError, reason

_BYTE_ORDERS = {b"little": "<", b"big": ">"}


class TorchCheckpoint(dict[str, np.ndarray]):
    """The weights of a PyTorch checkpoint: its state_dict, names to arrays.

    Attributes:
      source: whose names they are, "recbole" or "original".
      config: RecBole's config, {} where the file holds none; of enums and other objects
        in it, the class's name.
    """

    def __init__(
        self, state_dict: dict[str, np.ndarray], source: str, config: dict[str, Any]
    ) -> None:
        super().__init__(state_dict)
        self.source = source
        self.config = config


def load_torch_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Reads a PyTorch SR-GNN's checkpoint; neither torch nor RecBole need be installed.

    Nothing that the file holds is executed. Half precision is widened to float32.

    Args:
      path: a `.pth` as RecBole saves it or as `torch.save(model.state_dict(), path)`
        does (the zip format that PyTorch has written since 1.6), or a safetensors file.

    Returns:
      The weights by name, ready for `params_from_torch(checkpoint, checkpoint.source)`.

    Raises:
      UserError: there is no such file, it is damaged, of another format or another
        model, or its pickle names what no honest checkpoint needs.

    Source: the layout that PyTorch's `torch.serialization` specifies.
    """
    path = Path(path)
    try:
        state_dict, config = _read(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        said = reason(error)[:80]
        raise UserError(f"{path}: the zip archive is damaged ({said})") from None
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
        return _read_safetensors(path), {}
    if start[:1] == b"\x80":
        raise UserError(
            "this is the format that PyTorch wrote before 1.6, a bare pickle, which is "
            "not read here; save it anew, with PyTorch: torch.save(torch.load(path, "
            "weights_only=True), path)"
        )
    raise UserError(
        "this is neither a .pth file (a zip archive) nor a safetensors file"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise UserError(f"damaged, or not safetensors: {short(str(error))}") from None
    except (AttributeError, KeyError, TypeError) as error:  # For types NumPy lacks.
        raise UserError(f"a type that is not read here: {short(str(error))}") from None
    if not arrays:
        raise UserError("it holds no tensors")
    return {name: as_numpy(array) for name, array in arrays.items()}


def _read_zip(file: BinaryIO, file_bytes: int) -> tuple[dict[str, np.ndarray], dict]:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for info in entries:
            name = info.filename
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise UserError(
                    f"the archive holds a file {short(name)} outside of its folder"
                )
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UserError(
                    f"{short(name)} is compressed or encrypted, as torch never does"
                )
        # Entries may point at the same bytes, many times over.
        if sum(info.file_size for info in entries) > file_bytes:
            raise UserError(
                f"its entries claim more than the file's {file_bytes:,} bytes"
            )
        members = {name: archive.read(name) for name in set(archive.namelist())}
    pickles = [name for name in members if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(
            f"the archive holds {len(pickles)} files data.pkl, where torch has one"
        )
    folder = pickles[0].removesuffix("data.pkl")
    byte_order = members.get(f"{folder}byteorder", b"little")
    if byte_order not in _BYTE_ORDERS:
        raise UserError(f"the byte order is {short(byte_order)}, not little or big")
    storages = {
        name.removeprefix(f"{folder}data/"): data
        for name, data in members.items()
        if name.startswith(f"{folder}data/")
    }
    views, config = unpickle(members[pickles[0]], storages, _BYTE_ORDERS[byte_order])
    total = sum(view.nbytes for view in views.values())
    if total > file_bytes:
        raise UserError(
            f"its tensors claim {total:,} bytes, more than the file's {file_bytes:,}"
        )
    return {name: _as_weights(view) for name, view in views.items()}, config


def _as_weights(view: np.ndarray) -> np.ndarray:
    """Copies a view, in this machine's byte order and with bfloat16 widened."""
    array = view.astype(view.dtype.newbyteorder("="), order="C")
    if array.dtype == np.uint16:
        # The bits of a bfloat16 are the upper half of a float32's.
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return as_numpy(array)
