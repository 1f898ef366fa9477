"""Yoochoose, RecSys Challenge 2015: clicks of a web shop."""

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

HEADER = ("session", "time", "item", "category")


class Yoochoose(SessionsBuilder):
    """The last 1/64 or 1/4 of the Yoochoose clicks (RecSys Challenge 2015)."""

    # The published code reads dates to the second.
    BUILDER_CONFIGS: ClassVar = [
        PreparationConfig(
            name="1_64", train_fraction=1 / 64, date_resolution_seconds=1
        ),
        PreparationConfig(name="1_4", train_fraction=1 / 4, date_resolution_seconds=1),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get yoochoose-clicks.dat from the RecSys Challenge 2015 "
        "(kaggle.com/datasets/chadgostopp/recsys-challenge-2015) and put it there."
    )

    SETTINGS = SessionsBuilder.SETTINGS | RULE_SETTINGS

    @classmethod
    def source_files(
        cls, folder: pathlib.Path, config: PreparationConfig
    ) -> list[pathlib.Path]:
        """Returns yoochoose-clicks.dat."""
        pattern = "yoochoose-clicks.dat"
        return [the_one_file(folder, pattern, cls.MANUAL_DOWNLOAD_INSTRUCTIONS)]

    @classmethod
    def read(cls, files: list[pathlib.Path], config: PreparationConfig) -> Prepared:
        """Reads the clicks, which come without a header."""
        columns = Columns("session", "item", "time")
        return prepare_log(files[0], columns, config, header=HEADER, separator=",")
