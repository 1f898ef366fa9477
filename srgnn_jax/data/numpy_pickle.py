"""Reads pickles with NumPy's arrays and integers; runs no code that they name."""

import pickle
import re
from typing import Any

import numpy as np

from srgnn_jax.data.plain_pickle import Instructions, PlainUnpickler, short
from srgnn_jax.errors import UserError

# NumPy 2 renamed `core`; up to protocol 2, bytes are written as encoded text.
_KNOWN = re.compile(
    r"numpy\.(dtype|ndarray|_?core\.multiarray\.(_reconstruct|scalar))"
    r"|numpy\._?core\.numeric\._frombuffer|_codecs\.encode"
)


class _Name(str):
    """The name of a class or function, which is never called."""


class _Array(list):
    """An array with one axis, as a list; it is filled once."""


class _Type:
    """The type of an array's or a scalar's numbers."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch("[iu][1248]|O8?", code)):
            raise UserError(
                f"it holds NumPy values of type {short(code)}, not integers"
            )
        self.code, self.order = code, "<"


class NumpyUnpickler(PlainUnpickler):
    """Also builds Python's integers and lists from NumPy's scalars and arrays.

    Refuses a small pickle that fills a thousand arrays from the same bytes.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        # Text may become bytes once, and bytes may become numbers once.
        self.remaining = 2 * len(data)

    def find_class(self, module: str, name: str) -> _Name:
        full = f"{module}.{name}"
        return (
            _Name(full) if _KNOWN.fullmatch(full) else super().find_class(module, name)
        )

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Type):
            made.order = ">" if state[1] == ">" else "<"
        elif isinstance(made, _Array) and not made:
            _, shape, dtype, _, data = state
            made += self._numbers(dtype, data, shape)
        else:
            raise TypeError("a state for an object that has none")

    dispatch = Instructions(
        PlainUnpickler.dispatch
        | {
            pickle.REDUCE[0]: load_reduce,
            pickle.BUILD[0]: load_build,
            # As bytes: Python's own method allocates as much as the pickle claims.
            pickle.BYTEARRAY8[0]: PlainUnpickler.load_binbytes8,
        }
    )

    def _made(self, kind: Any, arguments: Any) -> Any:
        """Returns what a pickle's call would, for the few calls that are known."""
        if not isinstance(kind, _Name):
            raise TypeError("it calls something that is not a function")
        match kind.rpartition(".")[2], arguments:
            case "dtype", (code, *rest):
                return _Type(code, *rest)
            case "encode", (str(text), "latin1"):
                self._spend(len(text))
                return text.encode("latin1")
            case "scalar", (_Type() as dtype, bytes(data)):
                (number,) = self._numbers(dtype, data, (1,))
                return number
            case "_reconstruct", ("numpy.ndarray", (0,), _):
                return _Array()
            case "_frombuffer", (bytes(data), _Type() as dtype, shape, *_):
                return _Array(self._numbers(dtype, data, shape))
        raise TypeError(f"{kind} is called with other arguments")

    def _numbers(self, dtype: _Type, data: Any, shape: Any) -> list:
        """Returns the values of an array, whose shape must have one axis."""
        self._spend(len(data))
        if not dtype.code.startswith("O"):
            data = np.frombuffer(data, dtype.order + dtype.code).tolist()
        if not isinstance(data, list) or shape != (len(data),):
            raise UserError(
                f"an array of shape {short(shape)} is not a list of numbers"
            )
        return data

    def _spend(self, size: int) -> None:
        self.remaining -= size
        if self.remaining < 0:
            raise UserError("its pickle unpacks to more bytes than it holds")
