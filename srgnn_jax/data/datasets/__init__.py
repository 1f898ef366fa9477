"""The data sets as TFDS builders; importing this registers them with TFDS."""

from srgnn_jax.data.datasets.click_log import ClickLog
from srgnn_jax.data.datasets.diginetica import Diginetica
from srgnn_jax.data.datasets.recbole import RecboleInter
from srgnn_jax.data.datasets.srgnn_pickles import SrgnnPickles
from srgnn_jax.data.datasets.synthetic import Synthetic
from srgnn_jax.data.datasets.yoochoose import Yoochoose

__all__ = [
    "ClickLog",
    "Diginetica",
    "RecboleInter",
    "SrgnnPickles",
    "Synthetic",
    "Yoochoose",
]
