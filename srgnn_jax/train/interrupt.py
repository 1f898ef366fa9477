"""SIGTERM and Ctrl-C, which a run heeds where it can save what it has done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """The signal of this `number` ended a run, after it had saved."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Notes the first SIGTERM or SIGINT, inside; a second one ends the process.

    Yields a function that returns the number of the signal, 0 while there is none.
    Python lets only the main thread catch signals: in another one nothing is changed.
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
            # None: a handler that Python does not know.
            signal.signal(number, handler or signal.SIG_DFL)
