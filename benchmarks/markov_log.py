"""Writes a log in which the next click depends only on the last one.

    python -m benchmarks.markov_log --output=markov/log.csv

A first-order Markov chain is the best possible model of such a log. What a richer model
loses to it is the cost of learning what is not there.
"""

import argparse
import pathlib

import numpy as np
import polars as pl

ITEMS, SUCCESSORS, SESSIONS, DAYS = 2_000, 20, 15_000, 12


def draw_log(seed: int = 0) -> pl.DataFrame:
    """Draws sessions: each item has 20 successors, the n-th 1/n as likely as the first.

    Returns columns session, item and time, in seconds.
    """
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, ITEMS, (ITEMS, SUCCESSORS))
    weights = 1 / np.arange(1, SUCCESSORS + 1)
    lengths = np.clip(rng.geometric(0.25, SESSIONS) + 1, 2, 20)
    starts = np.sort(rng.integers(0, DAYS * 86_400, SESSIONS))
    items = np.empty((SESSIONS, lengths.max()), np.int64)
    items[:, 0] = rng.zipf(1.3, SESSIONS) % ITEMS
    for place in range(1, items.shape[1]):
        chosen = rng.choice(SUCCESSORS, SESSIONS, p=weights / weights.sum())
        items[:, place] = successors[items[:, place - 1], chosen]
    is_click = np.arange(items.shape[1]) < lengths[:, None]
    times = starts[:, None] + 30 * np.arange(items.shape[1])
    sessions = np.repeat(np.arange(SESSIONS), lengths)
    columns = {"session": sessions, "item": items[is_click], "time": times[is_click]}
    return pl.DataFrame(columns).with_columns(pl.col("time") + 1_700_000_000)


def main() -> None:
    """Writes the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    path = parser.parse_args().output
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_log().write_csv(path)
    print(path)


if __name__ == "__main__":
    main()
