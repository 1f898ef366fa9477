"""Reads what torch.save pickles, tensors and plain values, without running any code.

A name that honest checkpoints mention becomes inert text; a pickle that has any other
name is refused.
"""

import pickle
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from srgnn_jax.data.plain_pickle import Instructions, PlainUnpickler, short
from srgnn_jax.errors import UserError

# RecBole's pickles have 10 kB. One byte may become an object of 100 bytes.
MAX_PICKLE_BYTES = 2 << 20

# NumPy's types for the numbers in a storage; for bfloat16, which it lacks, the bits.
_DTYPES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
# What an honest checkpoint may name. Protocol 2 spells bytes and plain objects with
# `_codecs` and `copy_reg`; FullLoader is a class whose name RecBole's config holds.
_INERT = re.compile(
    r"""recbole(_gnn)?(\.\w+)*\.[A-Z]\w*
    | (builtins|__builtin__)\.(bool|bytearray|bytes|complex|dict|float|frozenset|int
        |list|object|range|set|slice|str|tuple)
    | argparse\.Namespace | collections\.(OrderedDict|defaultdict)
    | numpy\.(dtype|ndarray|_?core\.multiarray\.(_reconstruct|scalar))
    | pathlib\.(Path|PosixPath|PurePosixPath|WindowsPath|PureWindowsPath)
    | torch\.(Size|device|bfloat16|float16|float32|float64|int32|int64|\w+Storage)
    | torch\._utils\._rebuild_(parameter|tensor_v2)
    | yaml\.loader\.FullLoader | _codecs\.encode | copy_?reg\._reconstructor""",
    re.VERBOSE,
)


def unpickle(
    data: bytes, storages: Mapping[str, bytes], byte_order: Any
) -> tuple[dict[str, np.ndarray], dict]:
    """Returns views into storages by name, and the plain fields of RecBole's config.

    The pickle holds a state_dict, or a dict with one as "state_dict".
    """
    try:
        if len(data) > MAX_PICKLE_BYTES:
            raise UserError(f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes")
        root = _TorchUnpickler(data, storages, byte_order).load()
        if not isinstance(root, dict):
            raise UserError(f"it holds a {_kind(root)} instead of a state_dict")
        config = root.get("config") if "state_dict" in root else None
        if isinstance(config, _StandIn):
            state = config.state if isinstance(config.state, dict) else {}
            config = state.get("final_config_dict", state)
        fields = config.items() if isinstance(config, dict) else ()
        plain = {n: v for n, v in fields if type(v) in (str, int, float, bool)}
        return _tensors(root.get("state_dict", root)), plain
    except UserError as error:
        raise UserError(
            f"{error}; if you trust the file, save only its weights with PyTorch: "
            "torch.save(model.state_dict(), 'weights.pth')"
        ) from None


def _tensors(state_dict: Any) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, dict) or not state_dict:
        raise UserError(f"its state_dict is empty or a {_kind(state_dict)}")
    others = [
        short(name)
        for name, value in state_dict.items()
        if not (isinstance(name, str) and isinstance(value, _Tensor))
    ]
    if others:
        names = ", ".join(others[:10])
        raise UserError(f"it holds no state_dict: these are not tensors: {names}")
    return {name: tensor.view for name, tensor in state_dict.items()}


def _kind(value: Any) -> str:
    is_named = isinstance(value, _StandIn)
    return str(value) if is_named else type(value).__name__.strip("_").lower()


class _StandIn(str):
    """A class or function as its name, or an object as its class's name."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _ignore(self, *_: Any) -> None:
        """Drops what is put into an unknown container."""

    append = extend = __setitem__ = _ignore


class _Dict(dict):
    """A dict that drops keys that are slow to hash, and torch's `_metadata`."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str | int | float | None):
            super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    dtype: np.dtype
    data: bytes


class _Tensor(NamedTuple):
    view: np.ndarray  # out of reach of the pickle's `__setstate__`


class _TorchUnpickler(PlainUnpickler):
    """Also builds dicts, stand-ins and views of tensors; it calls nothing."""

    def __init__(self, data: bytes, storages: Mapping[str, bytes], byte_order: Any):
        super().__init__(data)
        self.storages, self.byte_order = storages, byte_order

    def find_class(self, module: str, name: str) -> _StandIn:
        full = f"{module}.{name}"
        known = _INERT.fullmatch(full)
        return _StandIn(full) if known else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, size = pid
        if (tag, type(kind), type(key)) != ("storage", _StandIn, str):
            raise TypeError("no storage")
        if kind not in _DTYPES:
            raise UserError(f"a tensor is of type {kind}, which is not supported")
        if key not in self.storages:
            raise UserError(f"storage {short(key)} is missing from the archive")
        dtype = np.dtype(_DTYPES[kind]).newbyteorder(self.byte_order)
        if len(self.storages[key]) < size * dtype.itemsize:
            raise UserError(f"storage {short(key)} is shorter than its tensor")
        return _Storage(dtype, self.storages[key])

    def load_empty_dict(self) -> None:
        self.append(_Dict())

    def load_dict(self) -> None:
        self.metastack[-1].append(_Dict())
        self.load_setitems()

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    dispatch = Instructions(
        PlainUnpickler.dispatch
        | {
            pickle.EMPTY_DICT[0]: load_empty_dict,
            pickle.DICT[0]: load_dict,
            pickle.SETITEM[0]: PlainUnpickler.load_setitem,
            pickle.SETITEMS[0]: PlainUnpickler.load_setitems,
            pickle.BUILD[0]: PlainUnpickler.load_build,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_reduce,
            # Sets become lists: nothing is hashed.
            pickle.EMPTY_SET[0]: PlainUnpickler.load_empty_list,
            pickle.ADDITEMS[0]: PlainUnpickler.load_appends,
            pickle.FROZENSET[0]: PlainUnpickler.load_tuple,
        }
    )


def _made(kind: Any, arguments: Any) -> Any:
    """Does what a pickle's call would do, for the few known calls."""
    if not isinstance(kind, _StandIn):
        raise TypeError(f"a {_kind(kind)} cannot be called")
    if kind == "torch._utils._rebuild_tensor_v2":
        return _tensor(*arguments[:4])
    if kind == "torch._utils._rebuild_parameter":
        return arguments[0]
    if kind == "collections.OrderedDict" and arguments == ():
        return _Dict()
    return _StandIn(kind[:100])  # A small pickle may make many from one long name.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """Returns a view into a storage; offset and strides count numbers, not bytes."""
    numbers = offset, *shape, *strides
    if not isinstance(storage, _Storage) or any(type(n) is not int for n in numbers):
        raise TypeError(f"a tensor of a {_kind(storage)}")
    size = storage.dtype.itemsize
    try:
        # NumPy compares them with the buffer too, but its integers wrap around.
        steps = [(n - 1) * by for n, by in zip(shape, strides, strict=True)]
        end = 0 if 0 in shape else offset + sum(steps) + 1
        if min(numbers) < 0 or end * size > len(storage.data):
            raise ValueError
        view = np.ndarray(shape, *storage, offset * size, [by * size for by in strides])
    except (OverflowError, ValueError):
        shown = str(tuple(shape))[:120]
        raise UserError(f"a tensor of shape {shown} does not fit its storage") from None
    return _Tensor(view)
