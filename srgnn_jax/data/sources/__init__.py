"""The sources of clicks, one a file, by the name that `config.dataset` gives.

A new one is a module here with what `source.Source` names, and a line below.
"""

from srgnn_jax.data.sources import (
    click_log,
    diginetica,
    pickles,
    recbole,
    synthetic,
    yoochoose,
)
from srgnn_jax.data.sources.source import Settings, Source

SOURCES: dict[str, Source] = {
    "click_log": click_log,
    "diginetica": diginetica,
    "recbole_inter": recbole,
    "srgnn_pickles": pickles,
    "synthetic": synthetic,
    "yoochoose": yoochoose,
}

__all__ = ["SOURCES", "Settings", "Source"]
