"""Raw log -> clicks -> sessions -> batches."""

import importlib
import signal
import sys

# Its import has SIGINT restart what it interrupts: Ctrl-C would do nothing while a
# program waits for input. Python's own handlers restart nothing.
if "polars" not in sys.modules:
    handler = signal.getsignal(signal.SIGINT)
    importlib.import_module("polars")
    if callable(handler):
        signal.siginterrupt(signal.SIGINT, True)
