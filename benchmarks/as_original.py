"""Trains from the initial weights of `benchmarks.original`, on the same batches.

    python -m benchmarks.original --data_dir=DIR --epochs=5 --window=500
    python -m benchmarks.as_original --data_dir=DIR --epochs=5 --window=500

The two print the same losses and metrics except for rounding, however many epochs they
train: results differ with the seed, not with the code. So the second shows, in a
fraction of the time, what the first reaches with another `--seed`.

Needs torch, which draws the weights: `make .venv/torch`.
"""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import original
from srgnn_jax.convert import params_from_torch
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples, Sessions
from srgnn_jax.devices import layouts, processes
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.train.optimizer import adam_with_l2, step_decay
from srgnn_jax.train.step import TrainState, init_state, train_step


def whole_sessions(prefixes: list[list[int]], targets: list[int]) -> Examples:
    """Returns prefixes and their next clicks as examples."""
    pairs = zip(prefixes, targets, strict=True)
    sessions = Sessions.from_lists([[*prefix, target] for prefix, target in pairs])
    return Examples(
        sessions.items,
        sessions.offsets[:-1],
        np.diff(sessions.offsets).astype(np.int32) - 1,
    )


def without_sums(state: TrainState) -> TrainState:
    """Resets the sum of losses."""
    return state._replace(loss=state.loss * 0, examples=state.examples * 0)


def main():
    """Trains for some steps or epochs, evaluates, and prints the records."""
    arguments = original.parse(__doc__)
    sessions = original.read_pickle(arguments.data_dir / "all_train_seq.txt")
    training = Sessions.from_lists(sessions).examples()
    test = whole_sessions(*original.read_pickle(arguments.data_dir / "test.txt"))
    num_items = 1 + int(max(training.items.max(), test.items.max()))
    steps = original.steps_of_an_epoch(arguments, len(training))
    whole = batches.steps_per_epoch(len(training), arguments.batch_size)

    processes.settle_process()
    devices = layouts.find_devices("jit")
    model = SRGNN(num_items, arguments.embedding_size)
    schedule = step_decay(
        original.LEARNING_RATE, original.DECAY_EPOCHS, original.DECAY, whole
    )
    optimizer = adam_with_l2(schedule, original.L2)
    initial = original.initial_model(
        num_items, arguments.embedding_size, arguments.seed
    )
    weights = {name: array.numpy() for name, array in initial.state_dict().items()}
    params = jax.tree.map(jnp.array, params_from_torch(weights, "original"))
    state = init_state(model, optimizer, arguments.seed)._replace(params=params)
    state = devices.lay_out(state)
    take_step = devices.compile(
        functools.partial(
            train_step, model=model, optimizer=optimizer, seed=arguments.seed
        ),
        updates_state=True,
    )
    with_clicks = devices.hold_clicks(training.items)
    evaluate = Evaluator(model, test, (original.TOP,), 512, devices)
    for epoch in range(arguments.epochs or 1):
        chosen = original.shuffled(
            len(training), arguments.batch_size, steps, arguments.seed, epoch
        )
        start, state = time.perf_counter(), without_sums(state)
        for step, batch in enumerate(
            batches.batches_of(
                training,
                chosen,
                arguments.batch_size,
                max_positions=devices.max_positions,
            ),
            1,
        ):
            state = take_step(state, *with_clicks(batch))
            if step % arguments.window == 0:
                loss, count = float(state.loss), float(state.examples)
                record = {
                    "step": epoch * steps + step,
                    "train/loss": loss / count,
                    "train/examples_per_second": count / (time.perf_counter() - start),
                }
                print(json.dumps(record), flush=True)
                start, state = time.perf_counter(), without_sums(state)
        found = evaluate(state.params)
        names = f"recall@{original.TOP}", f"mrr@{original.TOP}", "examples_per_second"
        record = {f"test/{name}": found[name] for name in names}
        print(json.dumps({"step": (epoch + 1) * steps, **record}), flush=True)


if __name__ == "__main__":
    main()
