"""Diginetica, CIKM Cup 2016 track 2: item views of a web shop."""

import pathlib

from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

# `timeframe` orders the views of a session, not those of the file.
COLUMNS = Columns(time="timeframe", date="eventdate")
# The challenge's file has sessionId, most copies have session_id.
USUAL_NAMES = {"session": ("sessionid",), "item": ("itemid",)}
INSTRUCTIONS = (
    "Get train-item-views.csv from the CIKM Cup 2016 track 2 data "
    "(competitions.codalab.org/competitions/11161) and put it there."
)
# The challenge also has a sample of the file.
FILES = ("*train-item-views.csv",)
SETTINGS = source.RULE_SETTINGS | {"on_bad_row"}
PRESETS = {"default": Settings(test_days=7.0)}


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the views."""
    form = Form(COLUMNS, USUAL_NAMES, separator=";", on_bad_row=settings.on_bad_row)
    return source.read_log(files, form, prepare, **settings.rules)
