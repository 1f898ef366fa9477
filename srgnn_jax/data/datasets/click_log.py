"""Any log of (session, item, time) as csv, tsv or parquet."""

import pathlib

from srgnn_jax.data.click_log import SUFFIXES
from srgnn_jax.data.datasets.builder import (
    COLUMN_SETTINGS,
    RULE_SETTINGS,
    PreparationConfig,
    SessionsBuilder,
    named_file,
    prepare_log,
)
from srgnn_jax.data.prepare import Prepared
from srgnn_jax.errors import UserError


class ClickLog(SessionsBuilder):
    """Sessions of a click log of one's own."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put one log file there (csv, tsv or parquet, with columns for session, item "
        "and time), or name it with config.log_file."
    )

    SETTINGS = (
        SessionsBuilder.SETTINGS
        | COLUMN_SETTINGS
        | RULE_SETTINGS
        | {"log_file", "separator", "date_column"}
    )

    @classmethod
    def source_files(
        cls, folder: pathlib.Path, config: PreparationConfig
    ) -> list[pathlib.Path]:
        """Returns the log that is named, or the only one in the folder."""
        where = f"config.data_dir = {str(folder)!r}"
        if config.log_file:
            return [named_file(folder, config.log_file)]
        logs = []
        if folder.is_dir():
            logs = sorted(
                path
                for path in folder.iterdir()
                if path.is_file() and path.name.endswith(SUFFIXES)
            )
        if not logs:
            raise UserError(f"no log in {where}. {cls.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        if len(logs) > 1:
            names = ", ".join(path.name for path in logs)
            raise UserError(
                f"several logs in {where} ({names}); name one with config.log_file"
            )
        return logs

    @classmethod
    def read(cls, files: list[pathlib.Path], config: PreparationConfig) -> Prepared:
        """Reads the log."""
        separator = config.separator
        return prepare_log(files[0], config.columns, config, separator=separator)
