"""Raw log -> clicks -> sessions -> batches."""

import signal
import sys

# When first imported, polars has SIGINT restart what it interrupts: Ctrl-C would do
# nothing while a program waits for input. Python's own handlers restart nothing.
if "polars" not in sys.modules:
    handler = signal.getsignal(signal.SIGINT)
    import polars  # noqa: F401

    if callable(handler):
        signal.siginterrupt(signal.SIGINT, True)
