"""Training: epochs of steps, each followed by an evaluation and a checkpoint.

Axes: B batch, C clicks.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.data import batches
from srgnn_jax.data.counts import counts_table
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.workdir import evaluate_best, make_evaluator, report_seeds
from srgnn_jax.model.losses import Loss
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite
from srgnn_jax.runs.progress import Progress, check_same_run
from srgnn_jax.runs.records import MetricsWriter
from srgnn_jax.runs.workdir import is_single_run, make_workdir, only_run, seed_folders
from srgnn_jax.train import interrupt
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import TrainState, init_state, train_step


def train_and_evaluate(
    config: ConfigDict,
    workdir: str,
    command: str = "",
    model: config_lib.MakeModel | None = None,
    losses: Mapping[str, Loss] | None = None,
) -> TrainState | None:
    """Prepares the data, trains, and evaluates; resumes what the workdir holds.

    Args:
      config: see configs/default.py.
      workdir: folder for checkpoints, metrics.jsonl, counts.json and results.json.
      command: the command line, for results.json.
      model: makes another model than `SRGNN` alone; see `config.make_model`.
      losses: more losses that `config.loss_type` may name.

    Returns:
      The state after the last step, of several runs the last one's; None where
      `config.epochs` is 0.

    Raises:
      UserError: what the user can mend, such as a file that is missing.
      Stopped: SIGTERM or Ctrl-C came while it trained; all that was done is saved.
    """
    config_lib.validate(config)
    loss = config_lib.find_loss(config, losses)
    if config.runs > 1 and config.epochs:
        return _train_several(config, workdir, command, model, losses)
    devices = config_lib.find_devices(config)
    with processes.main_process_first():
        data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    counts = {**data.counts, **splits.counts}
    processes.say(counts_table(counts, data.published))
    folder = make_workdir(workdir)
    try:
        with (
            only_run(folder)
            if processes.is_main_process()
            else contextlib.nullcontext()
        ):
            made = config_lib.make_model(config, data.vocabulary.num_items, model)
            return _train_in(
                folder, config, devices, data, splits, counts, command, made, loss
            )
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; checkpoints are kept: mend "
            "that, and the same command continues"
        ) from error


def _train_in(
    folder: pathlib.Path,
    config: ConfigDict,
    devices: layouts.Devices,
    data: Dataset,
    splits: config_lib.Splits,
    counts: dict[str, Any],
    command: str,
    model: nn.Module,
    loss: Loss,
) -> TrainState | None:
    """Trains in a workdir that no other run uses."""
    if seed_folders(folder):
        raise UserError(
            f"{folder} holds the runs of several seeds; set config.runs, or choose "
            "another --workdir"
        )
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        start, stored = Progress.at_start(config, data, model), None
        if checkpoints.latest_step() is not None:
            # Before anything is written into what may be another run's workdir.
            stored = checkpoints.progress()
            check_same_run(stored, start)
        if processes.is_main_process():
            (folder / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
        if config.epochs == 0:
            return None
        checkpoints.continue_from(stored.step if stored else None)
        if processes.is_main_process():
            vocabulary = data.vocabulary.with_clicks(splits.train_sessions.items)
            vocabulary.save(folder / "vocabulary.parquet")
        last_step = stored.step if stored else 0
        record = functools.partial(
            results_json.record, folder, config, data, splits, command
        )
        with (
            contextlib.closing(
                MetricsWriter(folder, processes.is_main_process(), last_step)
            ) as writer,
            interrupt.deferred() as signal,
            processes.together(),
        ):
            run = _Run(
                config,
                model,
                loss,
                devices,
                splits,
                checkpoints,
                start,
                stored,
                writer,
                record,
                signal,
            )
            return run.run()


def _train_several(
    config: ConfigDict,
    workdir: str,
    command: str,
    model: config_lib.MakeModel | None,
    losses: Mapping[str, Loss] | None,
) -> TrainState | None:
    """Trains `config.runs` seeds one after another, and joins their results."""
    folder = make_workdir(workdir)
    if is_single_run(folder):
        raise UserError(
            f"{folder} holds a single run; several need another --workdir, in which "
            "each has a folder of its own"
        )
    state = None
    seeds = [config.seed + n for n in range(config.runs)]
    for seed in seeds:
        processes.say(f"\nseed {seed}, of {seeds[0]} to {seeds[-1]}")
        one = config_lib.with_seed(config, seed)
        state = train_and_evaluate(
            one, str(folder / f"seed_{seed}"), command, model, losses
        )
    report_seeds(folder, seeds)
    return state


class _Run:
    """One run in one workdir: what its epochs share, and how far it has come."""

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        loss: Loss,
        devices: layouts.Devices,
        splits: config_lib.Splits,
        checkpoints: Checkpoints,
        start: Progress,
        stored: Progress | None,
        writer: MetricsWriter,
        record: Callable[[results_json.Results], None],
        signal: Callable[[], int],
    ):
        self.config = config
        self.splits = splits
        self.checkpoints = checkpoints
        self.writer = writer
        self.record = record
        self.signal = signal
        self.looked_for_signals = 0
        self.saved_at = time.monotonic()
        self.finite_step = start.step
        self.steps_per_epoch = batches.steps_per_epoch(
            len(splits.train), config.batch_size
        )
        self.devices = devices
        self.with_clicks = devices.hold_clicks(splits.train.items)
        self.schedule = config_lib.make_schedule(config, self.steps_per_epoch)
        optimizer = adam_with_l2(self.schedule, config.l2)
        self.steps_per_call = devices.steps_per_call
        if len(splits.train.items) > devices.max_clicks:
            self.steps_per_call = 1  # Each batch brings its own clicks.
        self.train_step = self.devices.compile(
            functools.partial(
                train_step,
                model=model,
                optimizer=optimizer,
                seed=config.seed,
                loss=loss,
                score_padding=config.score_padding,
                **devices.step_options,
            ),
            updates_state=True,
        )
        self.evaluate = {
            split: make_evaluator(config, model, examples, devices, self.heed_signals)
            for split, examples in splits.evaluated.items()
        }
        self.state = devices.make(lambda: init_state(model, optimizer, config.seed))
        self.progress = start
        if stored is not None:
            self.resume(stored)

    def resume(self, stored: Progress) -> None:
        """Takes up the run where its newest checkpoint was saved."""
        self.state = self.checkpoints.restore(
            layouts.layout_of(self.state), stored.step
        )
        self.progress = dataclasses.replace(stored, config=self.progress.config)
        self.finite_step = stored.step
        where = f"step {stored.step}, epoch {stored.epoch}"
        if self.is_complete():
            processes.say(f"the run is complete: {where}")
        else:
            processes.say(f"continuing from the checkpoint of {where}")

    def is_complete(self) -> bool:
        """Whether epochs, steps or patience are used up."""
        config, progress = self.config, self.progress
        return not self.is_to_evaluate() and bool(
            progress.epoch >= config.epochs
            or (config.max_steps and progress.step >= config.max_steps)
            or (config.patience and progress.bad_epochs >= config.patience)
        )

    def is_to_evaluate(self) -> bool:
        """Whether the epoch's steps are done, and its evaluation is not."""
        progress = self.progress
        return progress.step == (progress.epoch + 1) * self.steps_per_epoch

    def save(self) -> None:
        """Saves a checkpoint, the records that it stands for first."""
        self.check_finite()
        try:
            check_finite(self.state)
        except ValueError as error:
            raise self.diverged(f"{error} after") from error
        self.writer.flush()
        self.checkpoints.save(self.state, self.progress)
        self.saved_at = time.monotonic()

    def heed_signals(self) -> None:
        """Raises Stopped if this process, or another one of the run, got a signal.

        To be called after each batch. Several processes ask each other only as often as
        they log, as the devices must wait for that.
        """
        self.looked_for_signals += 1
        if self.looked_for_signals % self.config.log_every_steps == 0 or (
            not processes.are_several()
        ):
            number = int(max(processes.from_all(self.signal())))
            if number:
                raise interrupt.Stopped(number)

    def is_time_to_save(self) -> bool:
        """Whether a checkpoint is due, by the step or by the main process's clock."""
        config, step = self.config, self.progress.step
        every, seconds = (
            config.checkpoint_every_steps,
            60 * config.checkpoint_every_minutes,
        )
        due = bool(every and step % every == 0)
        if seconds and (
            step % config.log_every_steps == 0 or not processes.are_several()
        ):
            over = time.monotonic() - self.saved_at >= seconds
            due |= bool(processes.from_all(over)[0])
        return due

    def check_finite(self) -> None:
        """Raises UserError once the loss has turned NaN or infinite.

        It is looked at where it is logged or saved.
        """
        loss = float(self.state.loss)
        if not math.isfinite(loss):
            raise self.diverged(f"the loss is {loss} at")
        self.finite_step = self.progress.step

    def diverged(self, what: str) -> UserError:
        """Tells what is not finite, and since when."""
        since = f" (finite up to step {self.finite_step})" if self.finite_step else ""
        return UserError(
            f"{what} step {self.progress.step}{since}; the last checkpoint is kept. "
            "Try a smaller config.learning_rate or another config.seed, with another "
            "--workdir"
        )

    def train_epoch(self) -> float:
        """Trains to the end of the epoch that is under way, or up to `max_steps`.

        Returns:
          Examples per second.
        """
        config, progress = self.config, self.progress
        first = progress.step - progress.epoch * self.steps_per_epoch
        start = time.perf_counter()
        done = first * config.batch_size
        bar = tqdm(
            total=len(self.splits.train),
            initial=done,
            desc=f"epoch {progress.epoch + 1}/{config.epochs}",
            unit=" examples",
            disable=None if config.progress and processes.is_main_process() else True,
            leave=False,
        )
        logged = time.perf_counter(), done
        devices = self.devices
        cut = devices.shards, devices.max_positions, devices.tiering
        for batch in batches.sample_batches(self.splits.train, config.batch_size, *cut):
            self.train_step.prepare(self.state, *self.in_one_call([batch]))
        of_epoch = batches.train_batches(
            self.splits.train,
            config.batch_size,
            config.seed,
            progress.epoch,
            first,
            *cut,
        )
        with bar:
            for several in batches.in_calls(of_epoch, self.steps_of_next_call):
                self.state = self.train_step(self.state, *self.in_one_call(several))
                progress.step += len(several)
                step = progress.step
                examples = sum(batch.examples for batch in several)
                done += examples
                bar.update(examples)
                if step % config.log_every_steps == 0:
                    loss = self.take_loss()
                    now = time.perf_counter()
                    self.writer.write(
                        step,
                        {
                            "train/loss": loss,
                            "train/learning_rate": float(self.schedule(step - 1)),
                            "train/examples_per_second": (done - logged[1])
                            / (now - logged[0]),
                        },
                    )
                    logged = now, done
                    bar.set_postfix(loss=f"{loss:.4f}")
                if step == config.max_steps:
                    break
                if not self.is_to_evaluate() and self.is_time_to_save():
                    self.save()
                self.heed_signals()
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        return (done - first * config.batch_size) / seconds

    def steps_of_next_call(self) -> int:
        """Returns how many steps may be taken until something else is to be done."""
        config, step = self.config, self.progress.step
        every = [config.log_every_steps, config.checkpoint_every_steps]
        until = [n - step % n for n in every if n]
        if config.max_steps:
            until.append(config.max_steps - step)
        return min(self.steps_per_call, *until)

    def in_one_call(self, several: list[batches.Batch]) -> tuple[Any, batches.Batch]:
        """Returns the arguments of the training step for some batches of one layout."""
        batch = several[0]
        if self.steps_per_call > 1:
            batch = batches.stack(several, self.steps_per_call)
        return self.with_clicks(batch)

    def take_loss(self) -> float:
        """Moves the running sums into the epoch's; returns their mean."""
        self.check_finite()
        loss, examples = float(self.state.loss), float(self.state.examples)
        progress = self.progress
        self.state = self.state._replace(
            loss=self.devices.put(np.zeros((), self.state.loss.dtype)),
            examples=self.devices.put(np.zeros((), self.state.examples.dtype)),
        )
        progress.epoch_loss += loss
        progress.epoch_examples += examples
        return loss / examples

    def end_epoch(self, examples_per_second: float) -> None:
        """Evaluates, compares with the best epoch so far, records and saves.

        Where no split chooses, nothing is evaluated, and each epoch is the best so far.
        """
        config, progress = self.config, self.progress
        if float(self.state.examples):
            self.take_loss()
        split = config.select_on
        chooses = split != "last"
        # Until it has come to its end, a checkpoint is of an epoch yet to be evaluated.
        found = self.evaluate[split](self.state.params) if chooses else {}
        metrics = dict(found)
        metrics.pop("examples_per_second", None)
        progress.epoch += 1
        loss = progress.epoch_loss / progress.epoch_examples
        progress.epoch_loss = progress.epoch_examples = 0.0
        self.writer.write(
            progress.step,
            {
                "epoch": progress.epoch,
                "train/loss": loss,
                "train/examples_per_second": examples_per_second,
                **{f"{split}/{name}": value for name, value in found.items()},
            },
        )
        best = progress.best_metrics.get(config.select_by, -math.inf)
        progress.bad_epochs += 1
        if not chooses or metrics[config.select_by] > best:
            progress.best_step, progress.best_epoch = progress.step, progress.epoch
            progress.best_metrics = metrics
            progress.bad_epochs = 0
        said = f"epoch {progress.epoch}: loss {loss:.4f}"
        if chooses:
            shown = (f"recall@{max(config.ks)}", config.select_by)
            said += f", {split} " + ", ".join(
                f"{name} {100 * metrics[name]:.2f}" for name in shown
            )
            said += ", best" if progress.bad_epochs == 0 else ""
        processes.say(f"{said} ({examples_per_second:,.0f} ex/s)")
        self.save()

    def run(self) -> TrainState:
        """Trains until complete, then reports the best epoch."""
        try:
            while not self.is_complete():
                examples_per_second = self.train_epoch()
                if self.is_to_evaluate():
                    self.end_epoch(examples_per_second)
                else:
                    self.save()
            self.report()
        except interrupt.Stopped as stopped:
            step = self.progress.step
            if self.checkpoints.latest_step() != step:
                self.save()
            self.checkpoints.close()
            raise interrupt.Stopped(
                stopped.number, f"saved at step {step}; the same command continues"
            ) from None
        return self.state

    def report(self) -> None:
        """Evaluates the best epoch on test; prints the table and records the results.

        Where test chose the epoch, metrics.jsonl holds its metrics already.
        """
        config, progress = self.config, self.progress
        params = self.state.params
        if progress.best_step not in (0, progress.step):
            wanted = {"params": layouts.layout_of(params)}
            restored = self.checkpoints.restore(wanted, progress.best_step)
            params = restored["params"]
        test, run = evaluate_best(
            config, progress, self.splits, self.evaluate["test"], params
        )
        if config.select_on != "test" or not progress.best_step:
            self.writer.write(
                progress.best_step or progress.step,
                {f"test/{name}": value for name, value in test.items()},
            )
        if processes.is_main_process():
            self.record(run)
