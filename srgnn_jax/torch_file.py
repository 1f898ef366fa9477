"""Reads the arrays of a `.pth` or safetensors file, without torch and running nothing.

A `.pth` is a zip of a pickle and of one raw file per tensor. Python's unpickler would
call whatever functions the pickle names. The one here cannot call any: it is an
interpreter of the few instructions that build plain values, for which the names of
functions are mere names. It knows how to make a tensor of a storage; a few classes that
honest checkpoints mention (RecBole's config, `torch.device`) become inert records; a
pickle that names anything else is refused. All sizes are checked against the file's
own.
"""

import functools
import json
import math
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np

from srgnn_jax.errors import UserError

# A checkpoint of RecBole has a pickle of 10 kB, in 1,500 instructions.
MAX_PICKLE_BYTES = 64 << 20
MAX_PICKLE_INSTRUCTIONS = 1_000_000
MAX_CONFIG_VALUES = 100_000
MAX_CONFIG_DEPTH = 50
# That of an SR-GNN in safetensors has 2 kB.
MAX_HEADER_BYTES = 10 << 20
MAX_DIMENSIONS = 8

_HOW_TO_SAVE = (
    "if you trust the file, save its weights alone, with PyTorch: "
    "torch.save(model.state_dict(), 'weights.pth')"
)

_ByteOrder = Literal["<", ">"]

_STORAGE_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_SAFETENSORS_DTYPES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "bf16",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}

# What an honest checkpoint may name beside RecBole's own classes; all of it stays
# inert.
_INERT = {
    "argparse": {"Namespace"},
    "builtins": {
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
    },
    "collections": {"OrderedDict", "defaultdict"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "torch": {
        "Size",
        "bfloat16",
        "device",
        "float16",
        "float32",
        "float64",
        "int32",
        "int64",
        *_STORAGE_DTYPES,
    },
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
    # The class whose name RecBole's config holds.
    "yaml.loader": {"FullLoader"},
    # How pickles of protocol 2 spell bytes and plain objects.
    "_codecs": {"encode"},
    "copy_reg": {"_reconstructor"},
    "copyreg": {"_reconstructor"},
}
_INERT["__builtin__"] = _INERT["builtins"]


class _Global(NamedTuple):
    """The name of a class or function, which is never looked up."""

    module: str
    name: str


@dataclass(eq=False)
class _Record:
    """An object of a class that is not known here: its name and what it was made of."""

    kind: _Global
    arguments: Any
    state: Any = None


class _Storage(NamedTuple):
    """The raw file of a tensor, and how many numbers of which type it holds."""

    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view into a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _NotReadableError(Exception):
    """What is wrong with a file, before the message names the file."""


def read_torch_file(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict]:
    """Reads a checkpoint's weights and config.

    Args:
      path: a `.pth` as RecBole saves it or as `torch.save(model.state_dict(), path)`
        does (the zip format that PyTorch has written since 1.6), or a safetensors file.

    Returns:
      The arrays by name, in the file's types but for half precision, which is widened
      to float32, and RecBole's config (its enums and other objects as text), {} where
      there is none.

    Raises:
      UserError: there is no such file, it is damaged or of another format, or its
        pickle names what no honest checkpoint needs.

    Source: the layouts that PyTorch's `torch.serialization` and the safetensors
    format specify; the pickle instructions are those of Python's `pickletools`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except _NotReadableError as error:
        raise UserError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        reason = str(error)[:80]
        raise UserError(f"{path}: the zip archive is damaged ({reason})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _fail(message: str) -> NoReturn:
    raise _NotReadableError(message)


def _read(file: BinaryIO, file_bytes: int) -> tuple[dict[str, np.ndarray], dict]:
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(file, file_bytes)
    if start[8:] == b"{":
        return _read_safetensors(file, file_bytes), {}
    if start[:1] == b"\x80":
        _fail(
            "this is the format that PyTorch wrote before 1.6, a bare pickle, which is "
            "not read here; save it anew, with PyTorch: torch.save(torch.load(path, "
            "weights_only=True), path)"
        )
    _fail("this is neither a .pth file (a zip archive) nor a safetensors file")


# --- The zip format of torch.save


def _read_zip(file: BinaryIO, file_bytes: int) -> tuple[dict[str, np.ndarray], dict]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        for name, info in members.items():
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                _fail(f"the archive holds a file {_short(name)} outside of its folder")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                _fail(f"{_short(name)} is compressed or encrypted, as torch never does")
        # Entries may point at the same bytes, many times over.
        if sum(info.file_size for info in archive.infolist()) > file_bytes:
            _fail(f"its entries claim more than the file's {file_bytes:,} bytes")
        pickles = [
            name for name in members if name.endswith("/data.pkl") or name == "data.pkl"
        ]
        if len(pickles) != 1:
            _fail(
                f"the archive holds {len(pickles)} files data.pkl, where torch has one"
            )
        folder = pickles[0].removesuffix("data.pkl")
        if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
            _fail(f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        root = _interpret(archive.read(pickles[0]))
        order: _ByteOrder = "<"
        if folder + "byteorder" in members:
            text = archive.read(folder + "byteorder")
            if text not in (b"little", b"big"):
                _fail(f"the byte order is {_short(text)}, not 'little' or 'big'")
            order = "<" if text == b"little" else ">"

        @functools.cache  # Tensors may share a storage.
        def raw(key: str) -> bytes:
            name = f"{folder}data/{key}"
            if name not in members:
                _fail(f"{_short(name)} is missing from the archive")
            return archive.read(name)

        tensors, config = _state_dict(root)
        _check_total(
            {name: (t.storage.kind, t.shape) for name, t in tensors.items()},
            _STORAGE_DTYPES,
            file_bytes,
        )
        weights = {
            name: _tensor_array(name, tensor, raw, order)
            for name, tensor in tensors.items()
        }
        return weights, config


def _state_dict(root: Any) -> tuple[dict[str, _Tensor], dict]:
    """Finds the tensors by name, and RecBole's config, in what the pickle built."""
    if not isinstance(root, dict):
        _fail(f"it holds no state_dict but a {_kind(root)}; {_HOW_TO_SAVE}")
    tensors = root.get("state_dict", root)
    if not isinstance(tensors, dict) or not tensors:
        _fail(f"its state_dict is empty or a {_kind(tensors)}; {_HOW_TO_SAVE}")
    others = [
        _short(name)
        for name, value in tensors.items()
        if not isinstance(name, str) or not isinstance(value, _Tensor)
    ]
    if others:
        _fail(
            "it holds no state_dict: these entries are no tensors: "
            f"{', '.join(others[:10])}; {_HOW_TO_SAVE}"
        )
    config = root.get("config", {}) if "state_dict" in root else {}
    if isinstance(config, _Record):
        state = config.state if isinstance(config.state, dict) else {}
        config = state.get("final_config_dict", state)
    plain = _plain(config, [MAX_CONFIG_VALUES], MAX_CONFIG_DEPTH)
    return tensors, plain if isinstance(plain, dict) else {}


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """Copies a config into dicts, lists and scalars, objects as text.

    `budget` counts down over the whole copy: a small pickle may refer to one list many
    times over, so that its copy would fill the memory.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        _fail("its config is nested beyond reason")
    if isinstance(value, dict):
        return {key: _plain(v, budget, depth - 1) for key, v in value.items()}
    if isinstance(value, _Global):
        return ".".join(value)
    if isinstance(value, _Record):
        arguments = _plain(value.arguments, budget, depth - 1)
        inner = ", ".join(map(str, arguments)) if isinstance(arguments, tuple) else ""
        return f"{value.kind.module}.{value.kind.name}({inner})"
    if isinstance(value, _Storage | _Tensor):
        return f"a {_kind(value)}"
    if isinstance(value, list | tuple):
        return type(value)(_plain(v, budget, depth - 1) for v in value)
    return value


def _tensor_array(
    name: str, tensor: _Tensor, raw: Callable[[str], bytes], order: _ByteOrder
) -> np.ndarray:
    storage, offset, shape, strides = tensor
    flat = _array(raw(storage.key), _STORAGE_DTYPES[storage.kind], order)
    if len(flat) < storage.size:
        _fail(f"the storage of {_short(name)} is shorter than its tensor")
    last = offset + sum(
        (n - 1) * stride for n, stride in zip(shape, strides, strict=True)
    )
    if math.prod(shape) and last >= len(flat):
        _fail(f"{_short(name)} reaches beyond its storage")
    steps = [
        stride * flat.itemsize if n > 1 else 0
        for n, stride in zip(shape, strides, strict=True)
    ]
    return np.array(np.lib.stride_tricks.as_strided(flat[offset:], shape, steps))


def _array(data: bytes, dtype: str, order: _ByteOrder) -> np.ndarray:
    """Returns the numbers in native byte order, half precision as float32."""
    stored = np.dtype("u2" if dtype == "bf16" else dtype).newbyteorder(order)
    if len(data) % stored.itemsize:
        _fail(f"a tensor's {len(data)} bytes are no whole count of numbers")
    array = np.frombuffer(data, stored)
    if dtype == "bf16":
        return (array.astype("u4") << 16).view("f4")
    return array.astype("f4" if dtype == "f2" else dtype)


def _check_total(
    kinds: dict[str, tuple[str, tuple[int, ...]]],
    dtypes: dict[str, str],
    file_bytes: int,
) -> None:
    """Refuses unknown types, and shapes that hold more numbers than the file."""
    total = 0
    for name, (kind, shape) in kinds.items():
        if kind not in dtypes:
            _fail(f"{_short(name)} is of type {_short(kind)}, which is not read here")
        dtype = dtypes[kind]
        total += math.prod(shape) * (2 if dtype == "bf16" else np.dtype(dtype).itemsize)
    if total > file_bytes:
        _fail(f"its tensors claim {total:,} bytes, more than the file's {file_bytes:,}")


# --- The pickle


def _interpret(data: bytes) -> Any:
    """Builds the value of a pickle from plain containers, `_Record`s and `_Tensor`s."""
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            # Damaged text may look like an escape that Python deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            for count, (code, argument, _) in enumerate(pickletools.genops(data)):
                if count > MAX_PICKLE_INSTRUCTIONS:
                    _fail("its pickle is long beyond reason")
                machine.step(code.name, argument)
        return machine.pop()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        _fail("its pickle is damaged")


class _Machine:
    """The stack and the memo of the pickle interpreter.

    Every instruction takes time and memory in proportion to what it takes off the
    stack, so a pickle of n bytes cannot make more than a multiple of n.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def step(self, name: str, argument: Any) -> None:
        """Carries out one instruction, by its name in `pickletools`."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        elif name in {"TUPLE", "FROZENSET"}:
            self.stack.append(tuple(self.pop_to_mark()))
        elif name == "LIST":
            self.stack.append(self.pop_to_mark())
        elif name == "DICT":
            items = self.pop_to_mark()
            self.stack.append({})
            self.set_items(items)
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            self.stack.append(self.memo[int(argument)])
        elif name == "APPEND":
            self.extend([self.pop()])
        elif name in {"APPENDS", "ADDITEMS"}:
            self.extend(self.pop_to_mark())
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.set_items([key, value])
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif name == "GLOBAL":
            self.stack.append(_known_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self.stack.append(_known_global(module, attribute))
        elif name == "BINPERSID":
            self.stack.append(_storage(self.pop()))
        elif name in {"REDUCE", "NEWOBJ"}:
            arguments, kind = self.pop(), self.pop()
            self.stack.append(_make(kind, arguments))
        elif name == "NEWOBJ_EX":
            named, arguments, kind = self.pop(), self.pop(), self.pop()
            self.stack.append(_Record(kind, (arguments, named)))
        elif name == "BUILD":
            state = self.pop()
            if isinstance(self.stack[-1], _Record):
                self.stack[-1].state = state
            elif not isinstance(self.stack[-1], dict):
                raise TypeError
            # A dict's state is the `_metadata` that torch hangs on a state_dict.
        elif name not in {"PROTO", "FRAME", "STOP"}:
            _fail(f"its pickle uses the instruction {name}, as torch never does")

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], _Record):
            raise TypeError

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError
        if isinstance(self.stack[-1], dict):
            keys = items[::2]
            for key in keys:
                # Hashing a tuple that holds one tuple twice, and so on, never ends.
                inner = key if type(key) is tuple else (key,)
                if not all(isinstance(k, str | int | float | None) for k in inner):
                    raise TypeError
            self.stack[-1].update(zip(keys, items[1::2], strict=True))
        elif not isinstance(self.stack[-1], _Record):
            raise TypeError


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _known_global(module: Any, name: Any) -> _Global:
    """Returns the name, if it is one that an honest checkpoint may hold."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    is_recbole_class = module.split(".")[0] == "recbole" and name[:1].isupper()
    if name.isidentifier() and (is_recbole_class or name in _INERT.get(module, ())):
        return _Global(module, name)
    _fail(
        f"its pickle names {_short(f'{module}.{name}')}, which may run code when "
        "loaded and which no SR-GNN checkpoint needs: refused, and nothing was run; "
        f"{_HOW_TO_SAVE}"
    )


def _make(kind: Any, arguments: Any) -> Any:
    """Does what a pickle's call would, for the few calls that are known."""
    if not isinstance(kind, _Global):
        raise TypeError
    if kind == ("torch._utils", "_rebuild_tensor_v2"):
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise TypeError
        _check_sizes([offset, *shape, *strides])
        return _Tensor(storage, offset, tuple(shape), tuple(strides))
    if kind == ("torch._utils", "_rebuild_parameter"):
        if not isinstance(arguments[0], _Tensor):
            raise TypeError
        return arguments[0]
    if kind == ("collections", "OrderedDict") and arguments == ():
        return {}
    return _Record(kind, arguments)


def _check_sizes(sizes: list[Any]) -> None:
    """Keeps later arithmetic, in Python's unbounded integers, short."""
    is_size = [type(n) is int and 0 <= n < 2**62 for n in sizes]
    if not all(is_size) or len(sizes) > 2 * MAX_DIMENSIONS + 2:
        raise ValueError


def _storage(persistent_id: Any) -> _Storage:
    tag, kind, key, _, count = persistent_id
    is_storage = isinstance(kind, _Global) and isinstance(key, str) and key.isalnum()
    if tag != "storage" or not is_storage:
        raise TypeError
    _check_sizes([count])
    return _Storage(kind.name, key, count)


# --- safetensors


def _read_safetensors(file: BinaryIO, file_bytes: int) -> dict[str, np.ndarray]:
    header_bytes = int.from_bytes(file.read(8), "little")
    data_bytes = file_bytes - 8 - header_bytes
    if header_bytes > MAX_HEADER_BYTES or data_bytes < 0:
        _fail(f"its header claims {header_bytes:,} bytes, the file has {file_bytes:,}")
    try:
        header = json.loads(file.read(header_bytes))
    except (ValueError, RecursionError):
        _fail("its header is not JSON: the file is damaged or not of safetensors")
    header.pop("__metadata__", None)
    if not header:
        _fail("it holds no tensors")
    try:
        spans = {name: _span(entry, data_bytes) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError):
        _fail("its header is damaged: a tensor lacks its dtype, shape or data_offsets")
    _check_total(
        {name: (kind, shape) for name, (kind, shape, _) in spans.items()},
        _SAFETENSORS_DTYPES,
        file_bytes,
    )
    weights = {}
    for name, (kind, shape, (start, end)) in spans.items():
        file.seek(8 + header_bytes + start)
        array = _array(file.read(end - start), _SAFETENSORS_DTYPES[kind], "<")
        if array.size != math.prod(shape):
            _fail(
                f"{_short(name)} has {array.size} numbers, not those of shape {shape}"
            )
        weights[name] = array.reshape(shape)
    reached = 0
    for start, end in sorted(span for *_, span in spans.values()):
        if start < reached:
            _fail("its tensors overlap, as those of no honest file do")
        reached = end
    return weights


def _span(
    entry: dict[str, Any], data_bytes: int
) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
    _check_sizes([*shape, start, end])
    if not start <= end <= data_bytes or not isinstance(entry["dtype"], str):
        raise ValueError
    return entry["dtype"], shape, (start, end)


# --- Words for messages


def _short(value: Any) -> str:
    """Returns what a file holds in a form that is fit for one line."""
    return repr(value)[:120] if isinstance(value, str | bytes | int) else _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, _Record):
        return f"{value.kind.module}.{value.kind.name}"
    return type(value).__name__.removeprefix("_").lower()
