"""The sources of clicks, one per file, by their names in `config.dataset`.

To add one, add a line below and a module here with:
  INSTRUCTIONS: which files to put where; empty if none are needed.
  FILES: a pattern for each file; see `source.find_files`.
  SETTINGS: the names of the settings that it uses.
  PRESETS: the usual settings, by name; the first is the default.
  find_files(folder, settings) -> list[Path], if patterns are not enough to find the
    files; if it returns an empty list, the patterns are used.
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

# Named data sets and the source that reads them: published pickles, and sessions split
# 8:1:1 by time in RecBole's format.
NAMED = dict.fromkeys(("gowalla", "lastfm", "nowplaying", "tmall"), "srgnn_pickles")
NAMED |= {
    f"{name}_811": "recbole_inter"
    for name in ("diginetica", "lastfm", "retailrocket", "tmall", "yoochoose")
}

__all__ = ["NAMED", "SOURCES", "Settings", "find_files"]
