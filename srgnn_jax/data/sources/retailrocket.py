"""RetailRocket: events of a web shop's visitors over four and a half months."""

import pathlib

from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.prepare import prepare
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

COLUMNS = Columns("visitorid", "itemid", "timestamp", event="event")
INSTRUCTIONS = (
    "Get events.csv from kaggle.com/datasets/retailrocket/ecommerce-dataset and put it "
    "there."
)
FILES = ("events.csv",)
SETTINGS = source.RULE_SETTINGS | source.VISIT_SETTINGS | {"events", "on_bad_row"}
PRESETS = {
    "default": Settings(session_gap_minutes=30.0, events=("view",), test_days=7.0)
}


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Reads the events, and cuts each visitor's into visits."""
    form = Form(
        COLUMNS, separator=",", events=settings.events, on_bad_row=settings.on_bad_row
    )
    rules = settings.rules | settings.visits
    return source.read_log(files, form, prepare, as_published=False, **rules)
