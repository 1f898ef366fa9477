"""Compares the speed of recommending with the machine's limit and with PyTorch.

    python -m benchmarks.recommend --items=43098
    python -m benchmarks.recommend --items=1000000 --sessions=2000

One session: the time of `Recommender.recommend`, from raw ids to raw ids, is compared
with the bare product of the table with one vector and its top-k; with the same in
PyTorch, if installed (`torch.matmul` and `topk`, as the original code scores); and with
the same network joined with STAN's neighbours among synthetic sessions, and with repeat
rates.
Many sessions: the same for batches of as many sessions as `recommend` scores at a time.
The stream is what the command line does, from JSON lines to JSON lines; its limit is
the matrix products alone. All are measured alternately in one process. The limits
exclude the gated network, raw ids and JSON.
"""

import argparse
import io
import itertools
import json
import os
import statistics
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices import processes
from srgnn_jax.evaluate.session_knn import Neighbours, repeat_rates
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.stream import recommend_stream


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Returns p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50 ms": float(p50), "p99 ms": float(p99)}


def torch_top_k(
    table: np.ndarray, session: np.ndarray, k: int
) -> Callable[[], object] | None:
    """Returns scoring as in the original code, as a function; None without PyTorch."""
    # Otherwise its threads keep spinning after each call and slow down what follows.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError:
        return None
    table_there, session_there = torch.from_numpy(table), torch.from_numpy(session)

    def score():
        with torch.no_grad():
            scores = torch.matmul(session_there, table_there[1:].transpose(1, 0))
            return scores.topk(k)[0].numpy()

    return score


def bare(table: jax.Array, session: jax.Array, k: int) -> Callable[[], object]:
    """Returns the product with the table and its top-k, compiled."""
    compiled = jax.jit(lambda s, t: jax.lax.top_k(s @ t.T, k))
    return lambda: compiled(session, table)


def rows_of(seconds: Mapping[str, list[float]], sessions: int) -> list[dict]:
    """Renders the rate of each, and the time of `recommend` relative to it."""
    ours = seconds["recommend"]
    return [
        {
            "what": f"{sessions} at a time, {name}",
            "sessions/s": sessions / statistics.median(times),
            "recommend / it": common.ratios(ours, times)["median"],
            **(percentiles(times) if sessions == 1 else {"p50 ms": "", "p99 ms": ""}),
        }
        for name, times in seconds.items()
    ]


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=43_098)
    parser.add_argument("--embedding_size", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--neighbours", type=int, default=150_000)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--recall", type=float, default=0.95)
    arguments = parser.parse_args()
    v, d, k = arguments.items, arguments.embedding_size, arguments.k

    processes.settle_process()
    model = SRGNN(v, d)
    vocabulary = Vocabulary([str(200_000_000 + row) for row in range(1, v)])
    params = init_params(model, 0)
    recommender = Recommender(model, params, vocabulary)
    train = common.made_examples(v, arguments.neighbours, seed=1)
    offsets = np.append(train.starts, len(train.items))
    clicks = train.items, offsets, v
    rates = repeat_rates(Neighbours("STAN", 0.0, *clicks), v)

    def joined_with(weight, again):
        made = Neighbours("STAN", weight, *clicks, again, rates)
        return Recommender(model, params, vocabulary, neighbours=made)

    joined, repeats = joined_with(0.3, 0.5), joined_with(0.0, 0.5)
    table = recommender.params["item_embedding"]
    examples = common.made_examples(v, arguments.sessions)
    sessions = [
        vocabulary.raw(examples.items[start : start + length])
        for start, length in zip(examples.starts, examples.lengths, strict=True)
    ]
    rng = np.random.default_rng(0)
    results: list[dict] = []

    def compare(count: int, rounds: int) -> dict[str, list[float]]:
        session = rng.random((count, d), np.float32)
        parts = [sessions[n : n + count] for n in range(0, len(sessions), count)]
        queue = itertools.cycle(parts)
        functions: dict[str, Callable[[], object]] = {
            "recommend": lambda: recommender.recommend(next(queue), k),
            "joined with neighbours": lambda: joined.recommend(next(queue), k),
            "joined with repeats alone": lambda: repeats.recommend(next(queue), k),
            "product and top-k": bare(table, jnp.asarray(session), k),
        }
        there = torch_top_k(np.array(table), session, k)
        if there is not None:
            functions["product and top-k in torch"] = there
        # First compile every length that occurs.
        for each in (recommender, joined, repeats):
            each.recommend(sessions, k)
        for part in parts[:1000]:
            recommender.recommend(part, k)
        return common.in_turn(functions, rounds)

    one = compare(1, arguments.calls)
    many = compare(recommender.max_rows, max(arguments.calls // 10, 5))
    results += rows_of(one, 1) + rows_of(many, recommender.max_rows)

    lines = "".join(json.dumps({"session": s}) + "\n" for s in sessions).encode()
    session = jnp.asarray(rng.random((recommender.max_rows, d), np.float32))
    product = jax.jit(lambda s, t: t @ s.T)

    def stream():
        output = io.StringIO()
        recommend_stream(recommender, io.BytesIO(lines), output, k=k)

    def products():
        for _ in range(-(-len(sessions) // recommender.max_rows)):
            scores = product(session, table)
        return scores

    streamed = common.in_turn({"stream": stream, "limit": products}, arguments.rounds)
    ratio = common.ratios(streamed["stream"], streamed["limit"])
    results += [
        {
            "what": f"JSON lines, {name}",
            "sessions/s": len(sessions) / statistics.median(times),
            "recommend / it": ratio["median"] if name == "limit" else 1.0,
            "p50 ms": "",
            "p99 ms": "",
        }
        for name, times in streamed.items()
    ]
    alone = statistics.median(one["recommend"])
    exact = recommender.recommend(sessions[:1000], k)
    rough = recommender.recommend(sessions[:1000], k, recall=arguments.recall)
    found = [len({*a.items} & {*b.items}) for a, b in zip(exact, rough, strict=True)]
    common.show(
        "recommend",
        {
            "arguments": vars(arguments),
            "stream / limit": ratio,
            "one session / bare": common.ratios(
                one["recommend"], one["product and top-k"]
            ),
            "stream, times one by one": alone
            * len(sessions)
            / statistics.median(streamed["stream"]),
            "recall of the approximate lists": sum(found) / (k * len(exact)),
        },
        results,
    )


if __name__ == "__main__":
    main()
