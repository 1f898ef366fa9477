"""Yoochoose, RecSys Challenge 2015: clicks of a web shop."""

import pathlib

from srgnn_jax.data.columns import Form
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

HEADER = ("session", "time", "item", "category")
INSTRUCTIONS = (
    "Get yoochoose-clicks.dat from the RecSys Challenge 2015 "
    "(kaggle.com/datasets/chadgostopp/recsys-challenge-2015) and put it there."
)
FILES = ("yoochoose-clicks.dat",)
SETTINGS = source.RULE_SETTINGS | {"on_bad_row"}
# The published code reads dates to the second.
PRESETS = {
    "1_64": Settings(train_fraction=1 / 64, date_resolution_seconds=1),
    "1_4": Settings(train_fraction=1 / 4, date_resolution_seconds=1),
}


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the clicks; the file has no header."""
    form = Form(header=HEADER, separator=",", on_bad_row=settings.on_bad_row)
    return source.read_log(files, form, prepare, **settings.rules)
