"""Any log of (session, item, time) as csv, tsv or parquet."""

import pathlib

from srgnn_jax.data.read import SUFFIXES
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings
from srgnn_jax.errors import UserError

INSTRUCTIONS = (
    "Put one log file there (csv, tsv or parquet, with columns for session, item "
    "and time), or name it with config.log_file."
)
SETTINGS = source.LOG_SETTINGS | source.RULE_SETTINGS | {"date_column"}
PRESETS = {"default": Settings()}


def source_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Returns the log that is named, or the only one in the folder."""
    if settings.log_file:
        return [source.find_file(folder, "", "", settings.log_file)]
    where = f"config.data_dir = {str(folder)!r}"
    logs = [p for p in folder.glob("*") if p.is_file() and p.name.endswith(SUFFIXES)]
    if not logs:
        raise UserError(f"no log in {where}. {INSTRUCTIONS}")
    if len(logs) > 1:
        names = ", ".join(sorted(path.name for path in logs))
        raise UserError(
            f"several logs in {where} ({names}); name one with config.log_file"
        )
    return logs


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the log."""
    return source.read_log(
        files[0], settings, columns=settings.columns, separator=settings.separator
    )
