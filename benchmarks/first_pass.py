"""Compares cheaper first passes over a large catalog with exact scores.

    python -m benchmarks.first_pass
    python -m benchmarks.first_pass --workdir=runs/shop

Each method scores all items cheaply, scores the `--kept` best of them exactly and
returns the k best. The methods are a table in bfloat16, one of 8-bit integers with a
scale per row, and its first principal components; and `approx_max_k` of exact scores.
All are timed alternately in one process, together with exact scores and their exact
top-k. Recall is the share of the exact lists that is found. The item table is random,
or that of a trained run, whose rows are repeated with noise up to the number of items.
"""

import argparse
import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from srgnn_jax.model.ranking import largest
from srgnn_jax.serve.recommend import Recommender


def make_table(workdir: str, items: int, d: int) -> np.ndarray:
    """Returns an item table [items, D]."""
    rng = np.random.default_rng(0)
    if not workdir:
        return rng.normal(size=(items, d)).astype(np.float32)
    trained = np.asarray(Recommender.load(workdir).params["item_embedding"])[1:]
    chosen = trained[np.arange(items) % len(trained)]
    noise = rng.normal(size=chosen.shape, scale=0.3 * trained.std())
    return (chosen + noise).astype(np.float32)


def product(table: jax.Array, sessions: jax.Array, kind: type) -> jax.Array:
    """Returns the scores [N, B], accumulated in the dtype `kind`."""
    return jax.lax.dot_general(
        table, sessions, (((1,), (1,)), ((), ())), preferred_element_type=kind
    )


def ways(table: np.ndarray, k: int, kept: int, components: int) -> dict[str, Callable]:
    """Returns functions, by name, from sessions [B, D] to their k best rows [B, k]."""
    exact, half = jnp.asarray(table), jnp.asarray(table, jnp.bfloat16)
    scale = np.abs(table).max(axis=1, keepdims=True) / 127
    eighth, scale = jnp.asarray(np.round(table / scale), jnp.int8), jnp.asarray(scale)
    _, axes = np.linalg.eigh(table.T @ table)
    axes = jnp.asarray(axes[:, -components:])
    small = exact @ axes

    def again(scores, sessions):
        row = largest(scores, kept, 1.0)[1]
        best = jnp.einsum("bnd,bd->bn", exact[row], sessions)
        return jnp.take_along_axis(row, jax.lax.top_k(best, k)[1], axis=1)

    def in_whole_numbers(s):
        size = jnp.abs(s).max(axis=1, keepdims=True) / 127
        scores = product(eighth, jnp.round(s / size).astype(jnp.int8), jnp.int32)
        return again(scores * scale, s)

    return {
        "exact": lambda s: largest(product(exact, s, jnp.float32), k, 1.0)[1],
        "bfloat16, then exact": lambda s: again(
            product(half, s.astype(jnp.bfloat16), jnp.float32), s
        ),
        "8 bits, then exact": in_whole_numbers,
        f"{components} components, then exact": lambda s: again(
            product(small, s @ axes, jnp.float32), s
        ),
        "approx_max_k": lambda s: largest(product(exact, s, jnp.float32), k, 0.999)[1],
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--embedding_size", type=int, default=100)
    parser.add_argument("--workdir", default="", help="of a trained run")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--kept", type=int, default=256)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    load = common.load_of_others()
    table = make_table(arguments.workdir, arguments.items, arguments.embedding_size)
    made = ways(table, arguments.k, arguments.kept, arguments.components)
    compiled = {name: jax.jit(way) for name, way in made.items()}
    rng = np.random.default_rng(1)
    rows = []
    for count in (1, 16):
        # A session lies near the items that it clicked.
        near = table[rng.integers(0, len(table), (count, 3))].mean(axis=1)
        sessions = jnp.asarray(near)
        calls = {n: functools.partial(run, sessions) for n, run in compiled.items()}
        seconds = common.in_turn(calls, arguments.rounds)
        exact = np.asarray(calls["exact"]())
        for name, times in seconds.items():
            pairs = zip(exact, np.asarray(calls[name]()), strict=True)
            found = [len(np.intersect1d(a, b)) for a, b in pairs]
            rows.append(
                {
                    "sessions": count,
                    "what": name,
                    "ms": 1e3 * statistics.median(times),
                    "it / exact": common.ratios(times, seconds["exact"])["median"],
                    "recall": sum(found) / exact.size,
                }
            )
    common.show("first_pass", {"arguments": vars(arguments), "load before": load}, rows)


if __name__ == "__main__":
    main()
