"""SIGTERM and Ctrl-C, which a run heeds where it can save what it has done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """A signal ended a run, after it had saved.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Notes the first SIGTERM or SIGINT, inside; a second one ends the process.

    Python lets only the main thread catch signals: in another one nothing is changed.

    Returns:
      What tells the number of the signal that was received, 0 while there is none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = 0

    def note(number, frame):
        nonlocal received
        del frame
        received = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            # None: a handler that Python does not know.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
