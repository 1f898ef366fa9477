"""Reads a `.pth` or safetensors file, without torch and without running any code in it.

A `.pth` is a zip of a pickle and one raw file per tensor; see `torch_pickle`.
"""

import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from srgnn_jax.convert.names import EMBEDDING, as_numpy, source_of, unwrapped
from srgnn_jax.convert.torch_pickle import unpickle
from srgnn_jax.data.plain_pickle import short
from srgnn_jax.errors import UserError, reason


class TorchCheckpoint(dict[str, np.ndarray]):
    """The weights of a PyTorch checkpoint: its state_dict, names to arrays.

    Attributes:
      source: whose names they are: "recbole", "recbole_gnn" or "original".
      config: the text and numbers of RecBole's config, {} if the file has none.
    """

    source: str
    config: dict[str, Any]


def load_torch_checkpoint(path: str | os.PathLike) -> TorchCheckpoint:
    """Reads a PyTorch SR-GNN's checkpoint; torch and RecBole need not be installed.

    Nothing in the file is executed. Half precision is widened to float32. The prefixes
    that DataParallel, torch.compile and Lightning add to all names are dropped.

    Args:
      path: a `.pth` as RecBole saves it or as `torch.save(model.state_dict(), path)`
        does (a zip, as PyTorch has written since 1.6), or a safetensors file.

    Returns:
      The weights by name, ready for `params_from_torch(checkpoint, checkpoint.source)`.

    Raises:
      UserError: the file is missing, damaged, of another format or another model, or
        its pickle names something that no honest checkpoint needs.
    """
    path = Path(path)
    try:
        state_dict, config = _read(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        why = reason(error)[:80]
        raise UserError(f"{path}: the zip archive is damaged ({why})") from None
    checkpoint = TorchCheckpoint(unwrapped(state_dict))
    checkpoint.source, checkpoint.config = source_of(checkpoint), config
    if checkpoint.source and EMBEDDING[checkpoint.source] in checkpoint:
        return checkpoint
    raise UserError(
        f"{path}: holds no SR-GNN: neither {EMBEDDING['recbole']!r} (RecBole and "
        f"RecBole-GNN) nor {EMBEDDING['original']!r} (the original) is among its "
        f"{len(checkpoint)} entries {', '.join(map(short, list(checkpoint)[:20]))}"
    )


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with path.open("rb") as file:
        start = file.read(9)
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(file)
    if start[8:] == b"{":
        return _read_safetensors(path), {}
    if start[:1] == b"\x80":
        raise UserError(
            "this is the format of PyTorch before 1.6, a bare pickle, which is not "
            "supported; save it again with PyTorch: torch.save(torch.load(path, "
            "weights_only=True), path)"
        )
    raise UserError("neither a .pth file (a zip archive) nor a safetensors file")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise UserError(f"damaged, or not safetensors: {short(str(error))}") from None
    except (AttributeError, KeyError, TypeError) as error:  # For types NumPy lacks.
        raise UserError(f"a type is not supported: {short(str(error))}") from None
    if not arrays:
        raise UserError("it holds no tensors")
    return {name: as_numpy(array) for name, array in arrays.items()}


def _read_zip(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict]:
    """Reads an archive; its claimed sizes must not exceed the file's own."""
    file_bytes = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        for info in entries:
            name = info.filename
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise UserError(f"its {short(name)} is outside its folder")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UserError(f"its {short(name)} is compressed or encrypted")
        # Entries may point at the same bytes, many times over.
        if sum(info.file_size for info in entries) > file_bytes:
            raise UserError(f"entries claim more than the file's {file_bytes:,} bytes")
        members = {name: archive.read(name) for name in set(archive.namelist())}
    pickles = [name for name in members if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"it holds {len(pickles)} data.pkl files; torch writes one")
    folder = pickles[0].removesuffix("data.pkl")
    byte_order = members.get(f"{folder}byteorder", b"little")
    if byte_order not in (b"little", b"big"):
        raise UserError(f"the byte order is {short(byte_order)}, not little or big")
    storages = {
        name.removeprefix(f"{folder}data/"): data
        for name, data in members.items()
        if name.startswith(f"{folder}data/")
    }
    views, config = unpickle(members[pickles[0]], storages, byte_order.decode())
    total = sum(view.nbytes for view in views.values())
    if total > file_bytes:
        raise UserError(f"its tensors claim {total:,} bytes, more than the file's size")
    return {name: _as_weights(view) for name, view in views.items()}, config


def _as_weights(view: np.ndarray) -> np.ndarray:
    """Copies a view, in this machine's byte order and with bfloat16 widened."""
    array = view.astype(view.dtype.newbyteorder("="), order="C")
    if array.dtype == np.uint16:
        # The bits of a bfloat16 are the upper half of a float32's.
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return as_numpy(array)
