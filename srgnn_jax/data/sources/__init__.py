"""The sources of clicks, one a file, by the name that `config.dataset` gives.

A new one is a line below, and a module here with:
  INSTRUCTIONS: which files to put where; empty if none are needed.
  FILES: a pattern for each of them; see `source.find_files`.
  SETTINGS: the names of the settings that it heeds.
  PRESETS: the usual settings, by name, the first of them the default.
  find_files(folder, settings) -> list[Path], where patterns do not tell the files; an
    empty list leaves it to them.
  read(files, settings) -> Dataset.
"""

import types

from srgnn_jax.data.sources import (
    click_log,
    diginetica,
    pickles,
    recbole,
    retailrocket,
    synthetic,
    tfds,
    yoochoose,
)
from srgnn_jax.data.sources.source import Settings, find_files

SOURCES: dict[str, types.ModuleType] = {
    "click_log": click_log,
    "diginetica": diginetica,
    "recbole_inter": recbole,
    "retailrocket": retailrocket,
    "srgnn_pickles": pickles,
    "synthetic": synthetic,
    "tfds": tfds,
    "yoochoose": yoochoose,
}

# Data sets that are known by a name, and the source that reads their form: published
# pickles, and sessions split 8:1:1 by time in RecBole's.
NAMED = dict.fromkeys(("gowalla", "lastfm", "nowplaying", "tmall"), "srgnn_pickles")
NAMED |= {
    f"{name}_811": "recbole_inter"
    for name in ("diginetica", "lastfm", "retailrocket", "tmall", "yoochoose")
}

__all__ = ["NAMED", "SOURCES", "Settings", "find_files"]
