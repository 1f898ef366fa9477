"""Reads pickles of lists, tuples, text and numbers; runs no code that they name."""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

from srgnn_jax.errors import UserError, reason

_NAMES = {ord(code.code): code.name for code in pickletools.opcodes}
# Each takes memory in proportion to what it reads or pops, and hashes nothing: hashing
# never ends for a tuple that holds one tuple twice, which holds one twice, and so on.
_PLAIN = """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL BINPERSID"""
# Python's unpickler, not C's: its instructions can be chosen, and its memo is a dict,
# so that a high memo index takes no memory.
_PythonUnpickler: Any = pickle._Unpickler


def short(value: Any) -> str:
    """Returns the repr of a value from a file, cut to fit in one line."""
    return repr(value)[:120]


class Instructions(dict[int, Callable]):
    """The methods of an unpickler by opcode; other opcodes raise a UserError."""

    def __missing__(self, code: int) -> NoReturn:
        name = _NAMES.get(code, hex(code))
        if name in ("DICT", "EMPTY_DICT", "EMPTY_SET", "FROZENSET"):
            raise UserError("it holds a dict or a set, which is not read here")
        raise UserError(f"its pickle uses the instruction {name}, which is not allowed")


class PlainUnpickler(_PythonUnpickler):
    """Builds plain values and refuses all else; subclasses may allow more."""

    dispatch = Instructions(
        (code, _PythonUnpickler.dispatch[code])
        for code, name in _NAMES.items()
        if name in _PLAIN.split()
    )

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def load(self) -> Any:
        """Returns what the pickle holds, or raises a UserError."""
        try:
            value = super().load()
            follows = self.read(1)
        except UserError:
            raise
        except Exception as error:  # A broken pickle raises nearly anything.
            raise UserError(f"its pickle is damaged ({reason(error)[:80]})") from None
        if follows:
            raise UserError("its pickle is damaged (bytes follow its end)")
        return value

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(
            f"its pickle asks for {short(f'{module}.{name}')}, which may run code when "
            "loaded and is not needed: refused, and nothing was run"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("its pickle refers to objects outside the file")
