"""Unpickles what torch.save pickles: tensors and plain values, and runs nothing.

Unpickling calls whatever a pickle names. Here every name becomes inert text: the names
of tensors, and of the few classes that honest checkpoints mention (RecBole's config,
`torch.device`). A pickle that names anything else is refused.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

# A checkpoint of RecBole has a pickle of 10 kB. One byte may become an object of 100.
MAX_PICKLE_BYTES = 2 << 20
MAX_CONFIG_VALUES = 100_000
MAX_CONFIG_DEPTH = 50
MAX_DIMENSIONS = 8

_HOW_TO_SAVE = (
    "if you trust the file, save its weights alone, with PyTorch: "
    "torch.save(model.state_dict(), 'weights.pth')"
)
_DTYPES = {
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.FloatStorage": np.dtype("f4"),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("i8"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.ShortStorage": np.dtype("i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_BUILTINS = """bool bytearray bytes complex dict float frozenset int list object range
    set slice str tuple"""
# What an honest checkpoint may name beside RecBole's own classes, by module.
_INERT = {
    "argparse": "Namespace",
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "collections": "OrderedDict defaultdict",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "torch": "Size bfloat16 device float16 float32 float64 int32 int64",
    "torch._utils": "_rebuild_parameter _rebuild_tensor_v2",
    # The class whose name RecBole's config holds.
    "yaml.loader": "FullLoader",
    # How pickles of protocol 2 spell bytes and plain objects.
    "_codecs": "encode",
    "copy_reg": "_reconstructor",
    "copyreg": "_reconstructor",
}
_OPCODES = {ord(code.code): code.name for code in pickletools.opcodes}
# The instructions that torch's pickles need and that Python may carry out as it does.
_PLAIN_OPCODES = """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL BINPERSID BUILD"""
# Python's unpickler and not C's: it takes containers of ours, and its memo is a dict,
# so that a far slot takes no room.
_PythonUnpickler: Any = pickle._Unpickler


class NotReadableError(Exception):
    """What is wrong with a file, before the message names the file."""


def fail(message: str) -> NoReturn:
    """Raises a `NotReadableError`."""
    raise NotReadableError(message)


def short(value: Any) -> str:
    """Returns what a file holds in a form that is fit for one line."""
    return repr(value)[:120] if isinstance(value, str | bytes) else _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, _StandIn):
        return str(value)
    return type(value).__name__.removeprefix("_").lower()


def unpickle(
    data: bytes, storage: Callable[[str, int], np.ndarray]
) -> tuple[dict[str, np.ndarray], dict]:
    """Returns the tensors of a state_dict by name, and RecBole's config.

    Args:
      data: the pickle, of a state_dict or of a dict that holds one as "state_dict".
      storage: returns the numbers of so many bytes each that the file holds under a
        key, as unsigned integers.

    Returns:
      Views into what `storage` returned, and the config in dicts, lists and scalars,
      objects as text; {} where there is none.

    Raises:
      NotReadableError: the pickle is damaged, holds something else, or names what no
        honest checkpoint needs.
    """
    if len(data) > MAX_PICKLE_BYTES:
        fail(f"its pickle is larger than {MAX_PICKLE_BYTES:,} bytes; {_HOW_TO_SAVE}")
    try:
        root = _Unpickler(data, storage).load()
        tensors = _state_dict(root)
        config = root.get("config", {}) if "state_dict" in root else {}
        if isinstance(config, _StandIn):
            state = config.state if isinstance(config.state, dict) else {}
            config = state.get("final_config_dict", state)
        plain = _plain(config, [MAX_CONFIG_VALUES], MAX_CONFIG_DEPTH)
    except (
        *(AttributeError, EOFError, LookupError, OverflowError, TypeError, ValueError),
        *(pickle.UnpicklingError, struct.error),
    ):
        fail("its pickle is damaged")
    return tensors, plain if isinstance(plain, dict) else {}


def _state_dict(root: Any) -> dict[str, np.ndarray]:
    tensors = root.get("state_dict", root) if isinstance(root, dict) else None
    if tensors is None:
        fault = f"it holds no state_dict but a {_kind(root)}"
    elif not isinstance(tensors, dict) or not tensors:
        fault = f"its state_dict is empty or a {_kind(tensors)}"
    else:
        others = [
            short(name)
            for name, value in tensors.items()
            if not isinstance(name, str) or not isinstance(value, _Tensor)
        ]
        if not others:
            return {name: tensor.view for name, tensor in tensors.items()}
        names = ", ".join(others[:10])
        fault = f"it holds no state_dict: these entries are no tensors: {names}"
    fail(f"{fault}; {_HOW_TO_SAVE}")


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """Copies a config into dicts, lists and scalars.

    `budget` counts down over the whole copy: a small pickle may refer to one list many
    times over, so that its copy would fill the memory.
    """
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        fail("its config is nested beyond reason")
    if isinstance(value, dict):
        return {key: _plain(v, budget, depth - 1) for key, v in value.items()}
    if isinstance(value, _Storage | _Tensor):
        return "a tensor"
    if isinstance(value, list | tuple):
        return type(value)(_plain(v, budget, depth - 1) for v in value)
    return str(value) if isinstance(value, _StandIn) else value


class _StandIn(str):
    """A class, function or object as text: its name and what it was made of."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _ignore(self, *_: Any) -> None:
        """What is put into an unknown container is lost."""

    append = extend = __setitem__ = _ignore


class _Dict(dict):
    """A dict of keys that are quick to hash, without the `_metadata` of torch's.

    To hash a tuple that holds one tuple twice, and so on, never ends.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        is_short = type(key) is tuple and len(key) <= MAX_DIMENSIONS
        parts = key if is_short else (key,)
        if not all(isinstance(part, str | int | float | None) for part in parts):
            raise TypeError
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    """The type of a tensor's numbers, and the numbers as integers."""

    dtype: np.dtype
    numbers: np.ndarray


class _Tensor(NamedTuple):
    """A view into a storage, out of reach of the pickle."""

    view: np.ndarray


class _Instructions(dict[int, Callable]):
    """What the unpickler knows how to do, by opcode."""

    def __missing__(self, code: int) -> Callable:
        fail(
            f"its pickle uses the instruction {_OPCODES.get(code, code)}, as torch "
            "never does"
        )


class _Unpickler(_PythonUnpickler):
    """Builds plain containers, stand-ins and views of tensors, and calls nothing.

    An instruction takes memory in proportion to what it takes off the stack or reads.
    """

    def __init__(self, data: bytes, storage: Callable[[str, int], np.ndarray]) -> None:
        super().__init__(io.BytesIO(data))
        self.storage = storage

    def find_class(self, module: str, name: str) -> _StandIn:
        full = f"{module}.{name}"
        is_recbole_class = module.split(".")[0] == "recbole" and name[:1].isupper()
        is_inert = full in _DTYPES or name in _INERT.get(module, "").split()
        if name.isidentifier() and (is_recbole_class or is_inert):
            return _StandIn(full)
        fail(
            f"its pickle names {short(full)}, which may run code when loaded and which "
            "no SR-GNN checkpoint needs: refused, and nothing was run; " + _HOW_TO_SAVE
        )

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, size = pid
        if tag != "storage" or not isinstance(kind, _StandIn) or not key.isalnum():
            raise TypeError
        if kind not in _DTYPES:
            fail(f"a tensor is of type {kind}, which is not read")
        numbers = self.storage(key, _DTYPES[kind].itemsize)
        if len(numbers) < size:
            fail(f"storage {short(key)} is shorter than its tensor")
        return _Storage(_DTYPES[kind], numbers)

    def load_empty_dict(self) -> None:
        self.append(_Dict())

    def load_dict(self) -> None:
        self.metastack[-1].append(_Dict())
        self.load_setitems()

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    dispatch = _Instructions(
        {
            code: _PythonUnpickler.dispatch[code]
            for code, name in _OPCODES.items()
            if name in _PLAIN_OPCODES.split()
        }
        | {
            pickle.EMPTY_DICT[0]: load_empty_dict,
            pickle.DICT[0]: load_dict,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_reduce,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            # Sets become lists: nothing is hashed.
            pickle.EMPTY_SET[0]: _PythonUnpickler.load_empty_list,
            pickle.ADDITEMS[0]: _PythonUnpickler.load_appends,
            pickle.FROZENSET[0]: _PythonUnpickler.load_tuple,
        }
    )


def _made(kind: Any, arguments: Any) -> Any:
    """Does what a pickle's call would, for the few calls that are known."""
    if not isinstance(kind, _StandIn):
        raise TypeError
    if kind == "torch._utils._rebuild_tensor_v2":
        return _tensor(*arguments[:4])
    if kind == "torch._utils._rebuild_parameter":
        return arguments[0]
    if kind == "collections.OrderedDict" and arguments == ():
        return _Dict()
    # A small pickle may refer to one long text, and to what is made of it, many times.
    shown = [
        str(a)[:100] if isinstance(a, str | int | float | None) else _kind(a)
        for a in arguments[:10]
    ]
    return _StandIn(f"{kind}({', '.join(shown)})"[:200])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """Returns a view into a storage; offset and strides in numbers."""
    if not isinstance(storage, _Storage) or len(shape) > MAX_DIMENSIONS:
        raise TypeError
    if not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *shape)):
        raise ValueError
    steps = [by * storage.dtype.itemsize for by in strides[:MAX_DIMENSIONS]]
    try:  # NumPy compares them with the buffer.
        start = offset * storage.dtype.itemsize
        return _Tensor(np.ndarray(shape, *storage, start, steps))
    except (OverflowError, TypeError, ValueError):
        fail(f"a tensor of shape {tuple(shape)} does not fit its storage")
