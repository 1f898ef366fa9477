"""Any log of (session, item, time) as csv, tsv or parquet."""

import pathlib

from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

INSTRUCTIONS = (
    "Put one log file there (csv, tsv or parquet, with columns for session, item "
    "and time), or name it with config.log_file."
)
FILES = ("*",)
SETTINGS = source.LOG_SETTINGS | source.RULE_SETTINGS | {"date_column"}
PRESETS = {"default": Settings()}


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the log."""
    return source.read_log(
        files[0], settings, columns=settings.columns, separator=settings.separator
    )
