"""Synthetic click sessions with structure worth learning."""

import pathlib

import numpy as np
import polars as pl

from srgnn_jax.data.prepare import DAY, prepare
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import source
from srgnn_jax.data.sources.source import Settings

INSTRUCTIONS = ""
FILES = ()
SETTINGS = source.RULE_SETTINGS | {"on_bad_row"}
PRESETS = {"default": Settings()}

SEED = 2019
ITEMS, CATEGORIES, SESSIONS, DAYS = 2_000, 40, 24_000, 12
LONGEST = 20
START = 1_704_067_200_000_000  # 2024-01-01, in microseconds


def read(files: list[pathlib.Path], settings: Settings) -> Dataset:
    """Draws the clicks, and prepares them like any others."""
    return prepare(draw_clicks(), **settings.rules)


def draw_clicks() -> pl.DataFrame:
    """Draws the click log: columns session, item and time.

    Every session starts at an item drawn by popularity (Zipf). Each next click goes to
    one of the last item's few successors (55%), back to an item of the session (15%),
    to an item of the same category by popularity (22%), or to any item (8%).
    """
    rng = np.random.default_rng(SEED)
    popularity = 1 / (np.arange(ITEMS) + 10.0)
    popularity = rng.permutation(popularity / popularity.sum())
    category = rng.integers(0, CATEGORIES, ITEMS)

    def by_popularity(size):
        return rng.choice(ITEMS, size, p=popularity)

    # Items of a category, repeated by popularity: uniform draws then follow popularity.
    draws = by_popularity(200 * ITEMS)
    shelves = [draws[category[draws] == c] for c in range(CATEGORIES)]
    shelf = np.stack([rng.choice(shelf, 4096) for shelf in shelves])
    successors = shelf[category[:, None], rng.integers(0, 4096, (ITEMS, 3))]

    length = np.clip(rng.geometric(0.25, SESSIONS) + 1, 2, LONGEST)
    clicks = np.empty((SESSIONS, LONGEST), np.int64)
    clicks[:, 0] = by_popularity(SESSIONS)
    for position in range(1, LONGEST):
        last = clicks[:, position - 1]
        which = rng.choice(3, SESSIONS, p=(0.6, 0.3, 0.1))
        before = rng.integers(0, position, SESSIONS)
        kinds = [
            successors[last, which],
            clicks[np.arange(SESSIONS), before],
            shelf[category[last], rng.integers(0, 4096, SESSIONS)],
            rng.integers(0, ITEMS, SESSIONS),
        ]
        kind = rng.choice(4, SESSIONS, p=(0.55, 0.15, 0.22, 0.08))
        clicks[:, position] = np.choose(kind, kinds)

    start = START + np.sort(rng.integers(0, DAYS * DAY, SESSIONS))
    time = start[:, None] + np.cumsum(rng.integers(1, 60, clicks.shape), 1) * 1_000_000
    is_click = np.arange(LONGEST) < length[:, None]
    session = np.repeat(np.arange(SESSIONS), length)
    return pl.DataFrame(
        {"session": session, "item": clicks[is_click], "time": time[is_click]}
    ).with_columns(pl.col("session", "item").cast(pl.String))
