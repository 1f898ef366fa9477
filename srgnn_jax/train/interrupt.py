"""SIGTERM and Ctrl-C, which end a run at a point where it can save its progress."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """The signal with this `number` ended a run, after it had saved."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Records the first SIGTERM or SIGINT inside; a second one ends the process.

    Yields a function that returns the signal's number, or 0 if there was none. Python
    lets only the main thread catch signals; in other threads nothing changes.
    """
    received = 0

    def note(number, frame):
        nonlocal received
        received = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            # None: the handler was not set from Python.
            signal.signal(number, handler or signal.SIG_DFL)
