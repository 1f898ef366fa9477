"""Counts of a data set, and the published counts that they should match."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from srgnn_jax import tables
from srgnn_jax.data.sessions import Sessions, Vocabulary

# Wu et al. 2019, table 1: clicks, training and test examples, items, average length.
# For Yoochoose it counts the items in prefixes.
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
# As later papers print them.
PUBLISHED_COUNTS |= {
    name: {"train_examples": train, "test_examples": test, "items": items}
    for name, train, test, items in (
        ("tmall", 351_268, 25_898, 40_727),
        ("nowplaying", 825_304, 89_824, 60_416),
        ("retailrocket", 433_643, 15_132, 36_968),
    )
}


def data_name(dataset: str, train_fraction: float | int) -> str:
    """Returns a data set's name with its fraction of training: yoochoose_1_64."""
    part = Fraction(train_fraction).limit_denominator(1000)
    return dataset if part == 1 else f"{dataset}_{part.numerator}_{part.denominator}"


def count(
    splits: dict[str, Sessions], vocabulary: Vocabulary
) -> dict[str, int | float]:
    """Counts what the published tables count.

    `items` excludes the padding; `items_in_prefixes` are those in some example's
    prefix; `average_length` is that of all examples, including the target.
    """
    examples, clicks_of_prefixes = {}, 0
    in_prefixes = np.zeros(vocabulary.num_items, np.int64)
    for name, sessions in splits.items():
        prefixes = np.maximum(sessions.lengths - 1, 0)
        # A session of n clicks has prefixes of 1, 2, ..., n - 1, or the longest alone.
        last_only = sessions.last_only
        examples[name] = len(prefixes) if last_only else int(prefixes.sum())
        clicks_of_prefixes += int(
            (prefixes if last_only else prefixes * (prefixes + 1) // 2).sum()
        )
        in_prefixes += np.bincount(sessions.items, minlength=len(in_prefixes))
        ends = sessions.offsets[1:][sessions.lengths > 0] - 1
        in_prefixes -= np.bincount(sessions.items[ends], minlength=len(in_prefixes))
    return {
        "clicks": sum(len(sessions.items) for sessions in splits.values()),
        **{f"{name}_sessions": len(sessions) for name, sessions in splits.items()},
        **{f"{name}_examples": number for name, number in examples.items()},
        "items": vocabulary.num_items - 1,
        "items_in_prefixes": int(np.count_nonzero(in_prefixes)),
        "average_length": round(clicks_of_prefixes / sum(examples.values()) + 1, 4),
    }


def counts_table(
    counts: Mapping[str, int | float], published: Mapping[str, int | float]
) -> str:
    """Renders the counts, one per line, next to the published ones if there are any.

    If there are edge sessions, the last lines explain what they are.
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
