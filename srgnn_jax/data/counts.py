"""Counts of a data set, and the published ones that they should come to."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from srgnn_jax import tables
from srgnn_jax.data.sessions import Sessions, Vocabulary

# Counts of Wu et al. 2019, table 1.
PUBLISHED_COUNTS: dict[str, dict[str, int | float]] = {
    "diginetica": {
        "clicks": 982_961,
        "train_examples": 719_470,
        "test_examples": 60_858,
        "items": 43_097,
        "average_length": 5.12,
    },
    "yoochoose_1_64": {
        "clicks": 557_248,
        "train_examples": 369_859,
        "test_examples": 55_898,
        "items_in_prefixes": 16_766,
        "average_length": 6.16,
    },
    "yoochoose_1_4": {
        "clicks": 8_326_407,
        "train_examples": 5_917_745,
        "test_examples": 55_898,
        "items_in_prefixes": 29_618,
        "average_length": 5.71,
    },
}


def data_name(dataset: str, train_fraction: float | int) -> str:
    """Names the data, with the fraction of training that is used: yoochoose_1_64."""
    part = Fraction(train_fraction).limit_denominator(1000)
    return dataset if part == 1 else f"{dataset}_{part.numerator}_{part.denominator}"


def count(
    splits: dict[str, Sessions], vocabulary: Vocabulary
) -> dict[str, int | float]:
    """Counts what the published tables count.

    `items` are the rows of the vocabulary without the padding, `items_in_prefixes`
    those that some example's prefix holds; `average_length` is that of all examples,
    the target included.
    """
    examples = {name: sessions.examples() for name, sessions in splits.items()}
    in_prefix = np.zeros(vocabulary.num_items, bool)
    for sessions in splits.values():
        before_last = np.ones(len(sessions.items), bool)
        before_last[sessions.offsets[1:] - 1] = False
        in_prefix[sessions.items[before_last]] = True
    lengths = np.concatenate([e.lengths for e in examples.values()])
    return {
        "clicks": sum(len(sessions.items) for sessions in splits.values()),
        **{f"{name}_sessions": len(sessions) for name, sessions in splits.items()},
        **{f"{name}_examples": len(e) for name, e in examples.items()},
        "items": vocabulary.num_items - 1,
        "items_in_prefixes": int(in_prefix.sum()),
        "average_length": round(float(lengths.mean()) + 1, 4),
    }


def counts_table(
    counts: Mapping[str, int | float], published: Mapping[str, int | float]
) -> str:
    """Renders the counts, one a line, the published ones beside where there are any."""

    def show(value: int | float | None) -> str:
        if value is None:
            return ""
        return f"{round(value, 3):,}"

    rows = [["counts", "here", *(["published"] if published else [])]]
    for name, value in counts.items():
        row = [name.replace("_", " "), show(value)]
        rows.append(row + [show(published.get(name))] * bool(published))
    return "\n".join(tables.plain(rows, left=20, width=14))
