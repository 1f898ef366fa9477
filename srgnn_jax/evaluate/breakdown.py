"""Metrics by group, confidence intervals over sessions, and statistics of lists.

Axes: E examples, V item rows (row 0 is the padding), K items of a list, M metrics.
`clicks` [V] is how often each item row was clicked in training.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from srgnn_jax.data.sessions import Examples
from srgnn_jax.evaluate import metrics

RESAMPLES = 1000
# Where the finer groups of prefix lengths start; each ends before the next.
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 11, 21)


def example_sessions(examples: Examples) -> Int[np.ndarray, " E"]:
    """Returns the number of each example's session, counted from 0 in order.

    An example belongs to the session of the previous one if its target is the next
    click in the log, or if it is the previous one without its target: that is how the
    published test files list a session's prefixes (unless `max_session_length` has cut
    them).
    """
    items, starts, lengths = examples.items, examples.starts, examples.lengths
    ends = starts + lengths
    same = ends[1:] == ends[:-1] + 1
    for e in np.flatnonzero(~same & (lengths[1:] == lengths[:-1] - 1)):
        before, after = items[starts[e] : ends[e]], items[starts[e + 1] :]
        same[e] = np.array_equal(before, after[: len(before)])
    return np.concatenate([[0], np.cumsum(~same)])


def popularity_deciles(clicks: Int[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """Returns the popularity decile of each item row, 1 for the most clicked items.

    Items with equal counts are ordered by row. Row 0 and items without clicks get 0.
    """
    order = np.argsort(-clicks, kind="stable")[: np.count_nonzero(clicks)]
    decile = np.zeros(len(clicks), np.int64)
    decile[order] = 1 + np.arange(len(order)) * 10 // max(len(order), 1)
    return decile


def ages(
    examples: Examples, is_new: Bool[np.ndarray, " V"]
) -> dict[str, Bool[np.ndarray, " E"]]:
    """Returns groups of examples by which of their items are new.

    "old targets" and "new targets" split the examples by their target. "old and new"
    are those whose items, prefix and target together, include both kinds.
    """
    before = np.append(0, np.cumsum(is_new[examples.items]))
    items, target = examples.lengths + 1, is_new[examples.targets]
    new = before[examples.starts + items] - before[examples.starts]
    return {
        "old targets": ~target,
        "new targets": target,
        "old and new": (new > 0) & (new < items),
    }


def groups(
    examples: Examples, clicks: Int[np.ndarray, " V"]
) -> dict[str, dict[str, Bool[np.ndarray, " E"]]]:
    """Returns, by trait and group, whether each example belongs to the group.

    "length" is that of the prefix, split as in Wu et al. 2019; "length, finely" has
    more groups. "target's popularity" is the decile of `popularity_deciles`.
    """
    lengths, ends = examples.lengths, examples.starts + examples.lengths
    target, last = clicks[examples.targets] > 0, clicks[examples.items[ends - 1]] > 0
    decile = popularity_deciles(clicks)[examples.targets]
    finely = {}
    for first, end in itertools.pairwise(LENGTHS):
        name = str(first) if end == first + 1 else f"{first} to {end - 1}"
        finely[name] = (lengths >= first) & (lengths < end)
    finely[f"{LENGTHS[-1]} or more"] = lengths >= LENGTHS[-1]
    return {
        "target": {"trained": target, "never trained": ~target},
        "last click": {"trained": last, "never trained": ~last},
        "length": {"at most 5": lengths <= 5, "longer": lengths > 5},
        "length, finely": finely,
        "target's popularity": {f"decile {n}": decile == n for n in range(1, 11)},
    }


def bootstrap(
    values: Float[np.ndarray, "E M"], session: Int[np.ndarray, " E"]
) -> Float[np.ndarray, "2 M"]:
    """Returns the bounds of the 95% confidence interval of each column's mean.

    Whole sessions are drawn with replacement, as the examples of a session are not
    independent. The bounds are percentiles of the means of these samples, and are the
    same in every call (Efron and Tibshirani 1993, chapter 13).
    """
    _, number = np.unique(session, return_inverse=True)
    columns = [*values.T, np.ones(len(values))]
    sums = np.stack([np.bincount(number, column) for column in columns], axis=1)
    count, rng = len(sums), np.random.default_rng(0)
    drawn = (rng.integers(count, size=count) for _ in range(RESAMPLES))
    totals = np.stack([np.bincount(d, minlength=count) @ sums for d in drawn])
    return np.percentile(totals[:, :-1] / totals[:, -1:], [2.5, 97.5], axis=0)


def break_down(
    rank: Int[np.ndarray, " E"],
    examples: Examples,
    clicks: Int[np.ndarray, " V"],
    ks: Sequence[int],
    is_new: Bool[np.ndarray, " V"] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns metrics and their intervals, for all examples and for each group.

    By trait and group, the result has the number of "examples", the mean of each
    metric, and its bounds under "interval". Empty groups are left out. It can be
    written as JSON. `is_new` adds the trait "age"; see `ages`.
    """
    session = example_sessions(examples)
    by_name = metrics.ranking_metrics(rank, ks)
    values = np.stack(list(by_name.values()), axis=1)

    def of(chosen: Bool[np.ndarray, " E"]) -> dict[str, Any]:
        bounds = bootstrap(values[chosen], session[chosen]).T.tolist()
        mean = values[chosen].mean(axis=0).tolist()
        return {
            "examples": int(chosen.sum()),
            **dict(zip(by_name, mean, strict=True)),
            "interval": dict(zip(by_name, map(tuple, bounds), strict=True)),
        }

    everything = {"all": {"all": np.ones(len(rank), bool)}, **groups(examples, clicks)}
    if is_new is not None:
        everything["age"] = ages(examples, is_new)
    return {
        trait: {name: of(chosen) for name, chosen in parts.items() if chosen.any()}
        for trait, parts in everything.items()
    }


def list_traits(
    lists: Int[np.ndarray, "E K"], clicks: Int[np.ndarray, " V"]
) -> dict[str, float]:
    """Returns statistics of the lists of item rows that a model recommends.

    "coverage" is the share of all items that are in some list; "popularity" is the
    average number of training clicks of a listed item.
    """
    return {
        "coverage": len(np.unique(lists)) / (len(clicks) - 1),
        "popularity": float(clicks[lists].mean()),
    }
