"""Counts of a data set, and the published ones that they should come to."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from srgnn_jax import tables
from srgnn_jax.data.sessions import Sessions, Vocabulary

# Wu et al. 2019, table 1: clicks, training and test examples, items, average length. Of
# Yoochoose it counts the items in prefixes.
PUBLISHED_COUNTS: dict[str, dict[str, int | float]] = {
    name: {
        "clicks": clicks,
        "train_examples": train,
        "test_examples": test,
        "items" if name == "diginetica" else "items_in_prefixes": items,
        "average_length": average_length,
    }
    for name, clicks, train, test, items, average_length in (
        ("diginetica", 982_961, 719_470, 60_858, 43_097, 5.12),
        ("yoochoose_1_64", 557_248, 369_859, 55_898, 16_766, 6.16),
        ("yoochoose_1_4", 8_326_407, 5_917_745, 55_898, 29_618, 5.71),
    )
}


def data_name(dataset: str, train_fraction: float | int) -> str:
    """Names the data, with the fraction of training that is used: yoochoose_1_64."""
    part = Fraction(train_fraction).limit_denominator(1000)
    return dataset if part == 1 else f"{dataset}_{part.numerator}_{part.denominator}"


def count(
    splits: dict[str, Sessions], vocabulary: Vocabulary
) -> dict[str, int | float]:
    """Counts what the published tables count.

    `items` leaves out the padding; `items_in_prefixes` are those in some example's
    prefix; `average_length` is that of all examples, the target included.
    """
    examples = {name: sessions.examples() for name, sessions in splits.items()}
    lengths = np.concatenate([e.lengths for e in examples.values()])
    in_prefixes = np.concatenate(
        [np.delete(s.items, s.offsets[1:] - 1) for s in splits.values()]
    )
    return {
        "clicks": sum(len(sessions.items) for sessions in splits.values()),
        **{f"{name}_sessions": len(sessions) for name, sessions in splits.items()},
        **{f"{name}_examples": len(e) for name, e in examples.items()},
        "items": vocabulary.num_items - 1,
        "items_in_prefixes": int(np.count_nonzero(np.bincount(in_prefixes))),
        "average_length": round(float(lengths.mean()) + 1, 4),
    }


def counts_table(
    counts: Mapping[str, int | float], published: Mapping[str, int | float]
) -> str:
    """Renders the counts, one a line, the published ones beside where there are any.

    Below them stands what edge sessions are, where there are some.
    """
    columns = [counts, published] if published else [counts]
    rows = [["counts", "here", "published"][: 1 + len(columns)]]
    for name in counts:
        cells = [f"{round(c[name], 3):,}" if name in c else "" for c in columns]
        rows.append([name.replace("_", " "), *cells])
    lines = tables.plain(rows, left=20, width=14)
    if counts.get("edge_sessions"):
        lines += [
            "edge sessions are in neither split: those exactly config.test_days before",
            "the latest, as published, or those from config.test_end on",
        ]
    return "\n".join(lines)
