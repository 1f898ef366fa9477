"""Compares evaluation throughput with that of its matrix product alone.

    python -m benchmarks.evaluate --items=43098 --embedding_size=100
    python -m benchmarks.evaluate --workdir=runs/diginetica

The limit is the time of [V, D] x [D, B] alone, for as many sessions as are ranked at a
time, measured alternately in the same process. It excludes the gated network and the
comparison of each score with the target's. With `--workdir`, evaluates that run as
after an epoch and prints the result as JSON.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from srgnn_jax.devices import layouts, processes
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.evaluate.workdir import open_run
from srgnn_jax.model.srgnn import SRGNN, init_params


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=43_098)
    parser.add_argument("--embedding_size", type=int, default=100)
    parser.add_argument("--eval_batch_size", type=int, default=512)
    parser.add_argument("--examples", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workdir", type=pathlib.Path, help="evaluate its run instead")
    arguments = parser.parse_args()
    v, d, examples = arguments.items, arguments.embedding_size, arguments.examples

    processes.settle_process()
    if arguments.workdir:
        run = open_run(arguments.workdir)
        print(json.dumps(run.evaluator()(run.params)))
        return
    devices = layouts.find_devices("jit")
    model = SRGNN(v, d)
    params = devices.make(lambda: init_params(model, 0))
    evaluate = Evaluator(
        model,
        common.made_examples(v, examples),
        (20,),
        arguments.eval_batch_size,
        devices,
    )
    rows = min(evaluate.max_rows, arguments.eval_batch_size)
    session = jnp.asarray(np.random.default_rng(0).random((rows, d), np.float32))
    product = jax.jit(jnp.matmul)

    def limit():
        for _ in range(-(-examples // rows)):
            scores = product(params["item_embedding"], session.T)
        return scores

    seconds = common.in_turn(
        {"evaluation": lambda: evaluate(params)["mrr@20"], "limit": limit},
        arguments.rounds,
    )
    ratio = common.ratios(seconds["evaluation"], seconds["limit"])
    common.show(
        "evaluate",
        {"arguments": vars(arguments), "ranked_at_a_time": rows, "ratio": ratio},
        [
            {"what": name, "examples/s": examples / float(np.median(times))}
            for name, times in seconds.items()
        ]
        + [{"what": "time / limit", "examples/s": ratio["median"]}],
    )


if __name__ == "__main__":
    main()
