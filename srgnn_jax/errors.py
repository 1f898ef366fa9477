"""The exception whose message the user sees, and helpers for its text."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Something the user can fix: bad input, a missing file, a wrong config.

    The message is one clear line: what was wrong, where (file, line, value), and what
    to do about it. `srgnn_jax.main` prints it without a traceback and exits with 1.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean ...?` for a misspelt name, "" if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns in one line how two mappings differ; "" if they agree."""
    return "; ".join(
        f"{fact}: {old.get(fact)!r} -> {new.get(fact)!r}"
        for fact in {**old, **new}
        if old.get(fact) != new.get(fact)
    )


def reason(error: BaseException) -> str:
    """Returns an error's message in one line: never empty, and never "None"."""
    message = getattr(error, "strerror", None) or str(error).strip()
    # TensorStore's disk errors.
    if code := re.search(r"os_error_code='(\d+)'", message):
        return os.strerror(int(code[1]))
    return message.splitlines()[0] if message else type(error).__name__
