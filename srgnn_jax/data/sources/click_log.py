"""Any log of (session, item, time) as csv, tsv or parquet."""

import pathlib

from srgnn_jax.data.read import SUFFIXES
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

INSTRUCTIONS = (
    "Put one log file there (csv, tsv or parquet, with columns for session, item "
    "and time), or name it with config.log_file."
)
SETTINGS = source.LOG_SETTINGS | source.RULE_SETTINGS | {"date_column"}
PRESETS = {"default": Settings()}


def source_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Returns the log that is named, or the only one in the folder."""
    return [source.find_file(folder, "*", INSTRUCTIONS, settings.log_file, SUFFIXES)]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the log."""
    return source.read_log(
        files[0], settings, columns=settings.columns, separator=settings.separator
    )
