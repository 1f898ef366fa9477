"""Raw log -> clicks -> sessions -> batches."""

import signal
import sys

# On first import, polars makes SIGINT restart interrupted system calls, so Ctrl-C would
# do nothing while a program waits for input. Python's own handlers do not restart them.
if "polars" not in sys.modules:
    handler = signal.getsignal(signal.SIGINT)
    import polars  # noqa: F401

    if callable(handler):
        signal.siginterrupt(signal.SIGINT, True)
