"""Compares the time of a training step with the machine's limit for its arithmetic.

    python -m benchmarks.train_step --items=43098 --embedding_size=100 --batch_size=100

The limit is measured in the same process, alternating with the step. It is the sum of

- the softmax's three matrix products, [V, D] x [D, B], [V, B] x [B, D] and
  [B, V] x [V, D], each alone and in its best layout;
- Adam's traffic: 7 x V x D x 4 bytes (the gradient read; the parameter and two moments
  read and written) at the bandwidth of copying a large array.

The limit excludes the gated network, the exponentials, and the batch from the host.
"""

import argparse
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples
from srgnn_jax.devices import layouts, processes
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state, train_step


class Trainer:
    """The training loop's step over endless batches of examples."""

    def __init__(
        self, examples: Examples, num_items: int, embedding_size: int, batch_size: int
    ):
        devices = layouts.find_devices("jit", embedding_size=embedding_size)
        model = SRGNN(num_items, embedding_size)
        optimizer = adam_with_l2(1e-3, 1e-5)
        self.state = devices.make(
            functools.partial(init_state, model, optimizer, seed=0)
        )
        self._step = devices.compile(
            functools.partial(train_step, model=model, optimizer=optimizer, seed=0),
            updates_state=True,
        )
        with_clicks = devices.hold_clicks(examples.items)
        self._batches = (
            with_clicks(batch)
            for epoch in itertools.count()
            for batch in batches.train_batches(
                examples,
                batch_size,
                0,
                epoch,
                0,
                1,
                devices.max_positions,
                devices.tiering,
            )
            if batch.examples == batch_size
        )

    def step(self):
        """Takes one step on the next batch."""
        self.state = self._step(self.state, *next(self._batches))
        return self.state.step


def limit_parts(num_items: int, embedding_size: int, batch_size: int):
    """Returns the functions whose times add up to the limit, and the bytes copied."""
    v, d, b = num_items, embedding_size, batch_size
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(rng.random(shape, np.float32))

    product = jax.jit(jnp.matmul)
    # A product with a transposed argument lets XLA choose the best layout.
    by_rows = jax.jit(lambda a, b: a.T @ b)
    by_columns = jax.jit(lambda a, b: a @ b.T)
    table, session, scores = array(v, d), array(b, d), array(v, b)
    # Allocated memory: updated in place by JAX on all cores, or copied by NumPy.
    target = np.zeros(2**26, np.float32)
    source = np.ones_like(target)

    in_place = jax.jit(jnp.negative, donate_argnums=0)
    held = [jnp.ones(2**26)]

    def negate():
        held[0] = in_place(held[0])
        return held[0]

    return {
        "scores": [
            functools.partial(product, table, session.T),
            functools.partial(by_columns, table, session),
        ],
        "d_table": [functools.partial(product, scores, session)],
        "d_session": [
            functools.partial(by_rows, scores, table),
            functools.partial(product, scores.T, table),
        ],
        "copy": [negate, functools.partial(np.copyto, target, source)],
    }, 2 * source.nbytes


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=43_098)
    parser.add_argument("--embedding_size", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20)
    arguments = parser.parse_args()
    v, d, b = arguments.items, arguments.embedding_size, arguments.batch_size

    processes.settle_process()
    trainer = Trainer(common.made_examples(v, 100_000), v, d, b)
    parts, copied = limit_parts(v, d, b)
    functions = {"step": trainer.step}
    for name, variants in parts.items():
        functions |= {f"{name} {i}": f for i, f in enumerate(variants)}
    seconds = common.in_turn(functions, arguments.rounds, arguments.calls)

    best = {
        name: np.minimum.reduce([seconds[f"{name} {i}"] for i in range(len(variants))])
        for name, variants in parts.items()
    }
    adam = 7 * v * d * 4 * best.pop("copy") / copied
    limit = sum(best.values()) + adam
    ratio = common.ratios(seconds["step"], limit)
    step = float(np.median(seconds["step"]))
    rows = [
        {"part": name, "ms": 1e3 * float(np.median(x))}
        for name, x in {**best, "Adam's traffic": adam, "limit": limit}.items()
    ]
    rows += [
        {"part": "training step", "ms": 1e3 * step},
        {"part": "step / limit", "ms": ratio["median"]},
    ]
    common.show(
        "train_step",
        {
            "arguments": vars(arguments),
            "ms_per_step": 1e3 * step,
            "examples_per_second": b / step,
            "ratio_to_limit": ratio,
        },
        rows,
    )


if __name__ == "__main__":
    main()
