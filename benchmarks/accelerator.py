"""Speed and memory of one accelerator: training, evaluation, recommendation.

    python -m benchmarks.accelerator --output=DIR

Needs jax for the accelerator, flax, optax, and torch for the comparison (skipped with a
message if torch is missing or sees no GPU). Uses synthetic data of Diginetica's size
unless stated otherwise. Prints a table to stderr and one JSON object to stdout, and
writes the compiled text of each training step to DIR.

`--small` shrinks all sizes, to try the script on a CPU.
"""

import argparse
import functools
import importlib.util
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

from benchmarks import common
from srgnn_jax.data import batches
from srgnn_jax.data.sessions import Examples, Vocabulary
from srgnn_jax.devices import aot, layouts
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state, train_step

ITEMS, EXAMPLES, TEST_EXAMPLES = 43_098, 719_470, 60_858


class Training:
    """The training step, called as the training loop calls it."""

    def __init__(
        self,
        examples: Examples,
        num_items: int,
        embedding_size: int,
        batch_size: int,
        compute_dtype: str | None = None,
        steps_per_call: int = 1,
    ):
        self.devices = layouts.find_devices(
            "jit", embedding_size=embedding_size, steps_per_call=steps_per_call
        )
        self.model = SRGNN(num_items, embedding_size, compute_dtype=compute_dtype)
        optimizer = adam_with_l2(1e-3, 1e-5)
        self.state = self.devices.make(
            functools.partial(init_state, self.model, optimizer, seed=0)
        )
        self.step = self.devices.compile(
            functools.partial(
                train_step,
                model=self.model,
                optimizer=optimizer,
                seed=0,
                **self.devices.step_options,
            ),
            updates_state=True,
        )
        self.examples, self.batch_size = examples, batch_size
        self.with_clicks = self.devices.hold_clicks(examples.items)
        self.calls = self._calls()

    def _calls(self):
        devices, epoch = self.devices, 0
        while True:
            of_epoch = batches.train_batches(
                self.examples,
                self.batch_size,
                0,
                epoch,
                max_positions=devices.max_positions,
                tiering=devices.tiering,
            )
            yield from batches.in_calls(of_epoch, lambda: devices.steps_per_call)
            epoch += 1

    def call(self) -> int:
        """Starts the steps of one call and returns their number."""
        several = next(self.calls)
        batch = several[0]
        if self.devices.steps_per_call > 1:
            batch = batches.stack(several, self.devices.steps_per_call)
        self.arguments = self.with_clicks(batch)
        self.state = self.step(self.state, *self.arguments)
        return len(several)

    def seconds(self, steps: int) -> float:
        """Returns seconds per step, including the making of batches."""
        self.call()
        jax.block_until_ready(self.state)
        start, done = time.perf_counter(), 0
        while done < steps:
            done += self.call()
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / done

    def compiled(self):
        """Returns the compiled step."""
        return self.step.prepare(self.state, *self.arguments)


def peak() -> int:
    """Returns the device's peak memory so far in bytes, or 0 if unknown."""
    found = jax.devices()[0].memory_stats() or {}
    return int(found.get("peak_bytes_in_use", 0))


def measure_training(sizes, output: pathlib.Path) -> list[dict]:
    """Times steps by product dtype and steps per call; writes the compiled texts."""
    rows = []
    examples = common.made_examples(sizes.items, sizes.examples)
    for dtype in (None, "tensorfloat32", "bfloat16"):
        for steps_per_call in (1, sizes.together):
            training = Training(examples, sizes.items, 100, 100, dtype, steps_per_call)
            each = [training.seconds(sizes.steps) for _ in range(3)]
            name = f"train_{dtype or 'float32'}_{steps_per_call}"
            compiled = training.compiled()
            (output / f"{name}.txt").write_text(compiled.as_text())
            step = statistics.median(each)
            rows.append(
                {
                    "what": "training step",
                    "items": sizes.items,
                    "batch": 100,
                    "products": dtype or "float32",
                    "steps a call": steps_per_call,
                    "ms": 1e3 * step,
                    "epoch s": step * batches.steps_per_epoch(EXAMPLES, 100),
                    **aot.read_memory(compiled),
                }
            )
            report(rows[-1])
    return rows


def measure_large(sizes, output: pathlib.Path) -> list[dict]:
    """Times steps with a million items, and records planned and peak memory."""
    rows = []
    examples = common.made_examples(sizes.large, sizes.examples)
    for batch_size in (512, 4096):
        training = Training(examples, sizes.large, 64, batch_size, None, 8)
        before = peak()
        seconds = training.seconds(sizes.steps // 10)
        compiled = training.compiled()
        (output / f"train_large_{batch_size}.txt").write_text(compiled.as_text())
        rows.append(
            {
                "what": "training step",
                "items": sizes.large,
                "batch": batch_size,
                "products": "float32",
                "steps a call": 8,
                "ms": 1e3 * seconds,
                "peak bytes": peak(),
                "peak bytes before": before,
                **aot.read_memory(compiled),
            }
        )
        report(rows[-1])
        del training, compiled
    return rows


def measure_evaluation(sizes) -> list[dict]:
    """Times the ranking of all test examples."""
    examples = common.made_examples(sizes.items, sizes.test_examples, seed=1)
    rows = []
    devices = layouts.find_devices("jit", embedding_size=100)
    for dtype in (None, "tensorfloat32", "bfloat16"):
        model = SRGNN(sizes.items, 100, compute_dtype=dtype)
        params = devices.make(functools.partial(init_params, model, seed=0))
        evaluate = Evaluator(model, examples, (20,), 4096, devices)
        evaluate(params)
        rate = statistics.median(
            evaluate(params)["examples_per_second"] for _ in range(3)
        )
        rows.append(
            {
                "what": "evaluation",
                "items": sizes.items,
                "products": dtype or "float32",
                "s": len(examples) / rate,
                "examples/s": rate,
            }
        )
        report(rows[-1])
    return rows


def measure_lists(sizes) -> list[dict]:
    """Times recommendations for one session and for many, host work included."""
    rows = []
    for num_items, d in ((sizes.items, 100), (sizes.large, 64)):
        model = SRGNN(num_items, d)
        params = init_params(model, seed=0)
        vocabulary = Vocabulary([str(row) for row in range(1, num_items)])
        recommender = Recommender(model, params, vocabulary)
        for count in (1, 64, 1024):
            examples = common.made_examples(num_items, count, max_length=16)
            ends = examples.starts + examples.lengths
            sessions = [
                [str(item) for item in examples.items[start:end]]
                for start, end in zip(examples.starts, ends, strict=True)
            ]
            recommender.recommend(sessions)
            each = []
            for _ in range(sizes.calls if count < 1024 else sizes.calls // 10):
                start = time.perf_counter()
                recommender.recommend(sessions)
                each.append(time.perf_counter() - start)
            rows.append(
                {
                    "what": "20 best items",
                    "items": num_items,
                    "batch": count,
                    "products": "float32",
                    "ms": 1e3 * statistics.median(each),
                    "p99 ms": 1e3 * float(np.quantile(each, 0.99)),
                }
            )
            report(rows[-1])
    return rows


def measure_original(sizes) -> list[dict]:
    """Times a rewrite of the original PyTorch code against ours, on the same device."""
    if importlib.util.find_spec("torch") is None:
        print("no torch: skipping the original PyTorch code", file=sys.stderr)
        return []
    import torch

    from benchmarks import original

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        print("torch sees no GPU: skipping the original PyTorch code", file=sys.stderr)
        return []
    examples = common.made_examples(sizes.items, sizes.examples)
    padded = original.pad(
        [
            examples.items[start : start + length]
            for start, length in zip(
                examples.starts[: sizes.padded],
                examples.lengths[: sizes.padded],
                strict=True,
            )
        ],
        examples.targets[: sizes.padded],
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = original.initial_model(sizes.items, 100, 0).to(device)
    optimizer = original.adam(model)
    training = Training(examples, sizes.items, 100, 100, None, sizes.together)
    theirs, ours = [], []
    for turn in range(4):
        order = original.shuffled(sizes.padded, 100, sizes.original_steps, 0, turn)
        taken = (original.Examples(padded.inputs[n], padded.targets[n]) for n in order)
        (record,) = original.train(model, optimizer, taken, sizes.original_steps)
        if turn:
            theirs.append(100 / record["train/examples_per_second"])
            ours.append(training.seconds(sizes.steps))
    ratio = common.ratios(theirs, ours)
    rows = [
        {
            "what": "training step, the original PyTorch code",
            "items": sizes.items,
            "batch": 100,
            "ms": 1e3 * statistics.median(theirs),
            "times ours": ratio["median"],
        }
    ]
    report(rows[-1])
    return rows


def report(row: dict) -> None:
    """Prints a row as soon as it is measured."""
    print(row, file=sys.stderr, flush=True)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--small", action="store_true")
    sizes = parser.parse_args()
    small = sizes.small
    sizes.items = 2_000 if small else ITEMS
    sizes.large = 5_000 if small else 1_000_000
    sizes.examples = 20_000 if small else EXAMPLES
    sizes.test_examples = 2_000 if small else TEST_EXAMPLES
    sizes.steps = 64 if small else 3_200
    sizes.original_steps = 20 if small else 200
    sizes.padded = 5_000 if small else 50_000
    sizes.together = 4 if small else 32
    sizes.calls = 20 if small else 300
    sizes.output.mkdir(parents=True, exist_ok=True)
    rows = [
        *measure_training(sizes, sizes.output),
        *measure_original(sizes),
        *measure_evaluation(sizes),
        *measure_lists(sizes),
        *measure_large(sizes, sizes.output),
    ]
    common.show("one accelerator", {"jax": jax.__version__}, rows)


if __name__ == "__main__":
    main()
