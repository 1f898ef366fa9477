"""Diginetica, CIKM Cup 2016 track 2: item views of a web shop."""

import pathlib

from srgnn_jax.data.columns import Columns
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

COLUMNS = Columns(
    session="session_id", item="item_id", time="timeframe", date="eventdate"
)
INSTRUCTIONS = (
    "Get train-item-views.csv from the CIKM Cup 2016 track 2 data "
    "(competitions.codalab.org/competitions/11161) and put it there."
)
SETTINGS = source.RULE_SETTINGS | {"on_bad_row"}
PRESETS = {"default": Settings(test_days=7.0)}


def source_files(folder: pathlib.Path, settings: Settings) -> list[pathlib.Path]:
    """Returns train-item-views.csv, or the challenge's sample of it."""
    whole = folder / "train-item-views.csv"
    if whole.is_file():
        return [whole]
    return [source.find_file(folder, "*train-item-views.csv", INSTRUCTIONS)]


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the views; `timeframe` orders those of a session, not the file."""
    return source.read_log(files[0], settings, columns=COLUMNS, separator=";")
