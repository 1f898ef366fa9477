"""The one exception that is meant for the user's eyes."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a config that is wrong.

    The message is one clear line: what was wrong, where (file, line, value), and what
    to do about it. `srgnn_jax.main` prints it without a traceback and exits with 1.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean ...?` for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns what differs between named facts, in one line; nothing if all agree."""
    return "; ".join(
        f"{fact}: {old.get(fact)!r} -> {new.get(fact)!r}"
        for fact in {**old, **new}
        if old.get(fact) != new.get(fact)
    )


def reason(error: BaseException) -> str:
    """Returns what an error says, in one line: never nothing, and never "None"."""
    said = getattr(error, "strerror", None) or str(error).strip()
    # TensorStore's errors of a disk.
    if code := re.search(r"os_error_code='(\d+)'", said):
        return os.strerror(int(code[1]))
    return said.splitlines()[0] if said else type(error).__name__
