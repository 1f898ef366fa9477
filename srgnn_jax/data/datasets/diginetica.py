"""Diginetica, CIKM Cup 2016 track 2: item views of a web shop."""

import pathlib
from typing import ClassVar

from srgnn_jax.data.click_log import Columns
from srgnn_jax.data.datasets.builder import (
    RULE_SETTINGS,
    PreparationConfig,
    SessionsBuilder,
    prepare_log,
    the_one_file,
)
from srgnn_jax.data.prepare import Prepared

COLUMNS = Columns(
    session="session_id", item="item_id", time="timeframe", date="eventdate"
)


class Diginetica(SessionsBuilder):
    """Sessions of the Diginetica item views (CIKM Cup 2016, track 2)."""

    BUILDER_CONFIGS: ClassVar = [PreparationConfig(test_days=7.0)]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get train-item-views.csv from the CIKM Cup 2016 track 2 data "
        "(competitions.codalab.org/competitions/11161) and put it there."
    )

    SETTINGS = SessionsBuilder.SETTINGS | RULE_SETTINGS

    @classmethod
    def source_files(
        cls, folder: pathlib.Path, config: PreparationConfig
    ) -> list[pathlib.Path]:
        """Returns train-item-views.csv, or the challenge's sample of it."""
        whole = folder / "train-item-views.csv"
        if whole.is_file():
            return [whole]
        pattern = "*train-item-views.csv"
        return [the_one_file(folder, pattern, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)]

    @classmethod
    def read(cls, files: list[pathlib.Path], config: PreparationConfig) -> Prepared:
        """Reads the views; `timeframe` orders those of a session, not the file."""
        return prepare_log(files[0], COLUMNS, config, separator=";")
