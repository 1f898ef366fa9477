"""Training: epochs of steps, each followed by an evaluation and a checkpoint."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data import batches
from srgnn_jax.data.counts import counts_table
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.workdir import evaluate_best, make_evaluator
from srgnn_jax.model.losses import Loss
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.records import MetricsWriter
from srgnn_jax.runs.workdir import (
    check_kind,
    make_workdir,
    only_run,
    save_counts,
    save_vocabulary,
)
from srgnn_jax.train import interrupt
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.several import train_several
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
        return train_several(
            config,
            make_workdir(workdir),
            functools.partial(
                train_and_evaluate, command=command, model=model, losses=losses
            ),
        )
    devices = config_lib.find_devices(config)
    with processes.main_process_first():
        data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    processes.say(counts_table({**data.counts, **splits.counts}, data.published))
    made = config_lib.make_model(config, data.vocabulary.num_items, model)
    task = _Task(config, data, splits, devices, made, loss)
    folder = make_workdir(workdir)
    check_kind(folder, several=False)
    with only_run(folder), contextlib.closing(Checkpoints(folder)) as checkpoints:
        return _train_in(folder, checkpoints, task, command)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What a run works on: all that is made from a config."""

    config: ConfigDict
    data: Dataset
    splits: config_lib.Splits
    devices: layouts.Devices
    model: nn.Module
    loss: Loss


def _train_in(
    folder: pathlib.Path, checkpoints: Checkpoints, task: _Task, command: str
) -> TrainState | None:
    """Trains in a workdir that no other run uses."""
    config, data, splits = task.config, task.data, task.splits
    is_main = processes.is_main_process()
    progress = config_lib.start_of_run(config, data, task.model)
    resumes = checkpoints.latest_step() is not None
    if resumes:
        # Before anything is written into what may be another run's workdir.
        stored = checkpoints.progress()
        config_lib.check_same_run(stored, progress)
        progress = dataclasses.replace(stored, config=progress.config)
    if is_main:
        save_counts(folder, {**data.counts, **splits.counts})
    if config.epochs == 0:
        return None
    checkpoints.continue_from(progress.step if resumes else None)
    if is_main:
        clicks = splits.train_sessions.items
        save_vocabulary(folder, data.vocabulary.with_clicks(clicks))
    writer = MetricsWriter(folder, is_main, progress.step)
    with contextlib.closing(writer), processes.together():
        run = _Run(task, checkpoints, writer, progress)
        if resumes:
            run.restore()
        results = run.run()
        if is_main:
            results_json.record(folder, config, data, splits, command, results)
        return run.state


class _Run:
    """One run in one workdir: what its epochs share, and how far it has come."""

    def __init__(
        self,
        task: _Task,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        progress: Progress,
    ):
        config, devices, self.model = task.config, task.devices, task.model
        self.config, self.devices, self.splits = config, devices, task.splits
        self.checkpoints, self.writer, self.progress = checkpoints, writer, progress
        self.received: Callable[[], int] = lambda: 0
        self.looked_for_signals = 0
        self.saved_at = time.monotonic()
        self.finite_step = progress.step
        self.steps_per_epoch = batches.steps_per_epoch(
            len(self.splits.train), config.batch_size
        )
        self.with_clicks = devices.hold_clicks(self.splits.train.items)
        self.steps_per_call = devices.steps_per_call
        if len(self.splits.train.items) > devices.max_clicks:
            self.steps_per_call = 1  # Each batch brings its own clicks.
        self.schedule = config_lib.make_schedule(config, self.steps_per_epoch)
        optimizer = adam_with_l2(self.schedule, config.l2)
        step = functools.partial(
            train_step,
            model=self.model,
            optimizer=optimizer,
            seed=config.seed,
            loss=task.loss,
            score_padding=config.score_padding,
            **devices.step_options,
        )
        self.train_step = devices.compile(step, updates_state=True)
        self.evaluate = {
            split: make_evaluator(config, task.model, those, devices, self.heed_signals)
            for split, those in self.splits.evaluated.items()
        }
        state = functools.partial(init_state, task.model, optimizer, config.seed)
        self.state = devices.make(state)

    def restore(self) -> None:
        """Takes up the run where its newest checkpoint was saved."""
        step, epoch = self.progress.step, self.progress.epoch
        restored = self.checkpoints.restore(layouts.layout_of(self.state), step)
        self.state = self.devices.lay_out(restored)
        where = f"step {step}, epoch {epoch}"
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

    def may_ask_others(self, count: int) -> bool:
        """Whether several processes are to agree now, for which the devices wait."""
        return not processes.are_several() or count % self.config.log_every_steps == 0

    def heed_signals(self) -> None:
        """Raises Stopped if this process, or another one of the run, got a signal.

        To be called after each batch.
        """
        self.looked_for_signals += 1
        if self.may_ask_others(self.looked_for_signals):
            number = int(max(processes.from_all(self.received())))
            if number:
                raise interrupt.Stopped(number)

    def is_time_to_save(self) -> bool:
        """Whether a checkpoint is due, by the step or by the main process's clock."""
        config, step = self.config, self.progress.step
        if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
            return True
        seconds = 60 * config.checkpoint_every_minutes
        if not (seconds and self.may_ask_others(step)):
            return False
        return bool(processes.from_all(time.monotonic() - self.saved_at >= seconds)[0])

    def check_finite(self) -> None:
        """Raises UserError once the loss that is logged or saved is not finite."""
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
        """Trains to the epoch's end, or `max_steps`; returns examples per second."""
        config, progress, train = self.config, self.progress, self.splits.train
        first = progress.step - progress.epoch * self.steps_per_epoch
        begin = done = first * config.batch_size
        devices = self.devices
        cut = devices.shards, devices.max_positions, devices.tiering
        of_epoch = functools.partial(
            batches.train_batches,
            *(train, config.batch_size, config.seed, progress.epoch, first, *cut),
        )
        # Then nothing is compiled in the middle of the epoch.
        for batch in batches.one_of_each_layout(of_epoch(), devices.tiering):
            self.train_step.prepare(self.state, *self.in_one_call([batch]))
        start = logged_at = time.perf_counter()
        logged = done
        with processes.progress_bar(
            config.progress,
            total=len(train),
            initial=done,
            desc=f"epoch {progress.epoch + 1}/{config.epochs}",
            unit=" examples",
        ) as bar:
            for several in batches.in_calls(of_epoch(), self.steps_of_next_call):
                self.state = self.train_step(self.state, *self.in_one_call(several))
                progress.step += len(several)
                examples = sum(batch.examples for batch in several)
                done += examples
                bar.update(examples)
                step = progress.step
                if step % config.log_every_steps == 0:
                    loss, now = self.take_loss(), time.perf_counter()
                    rate = (done - logged) / (now - logged_at)
                    self.writer.write(
                        step,
                        {
                            "train/loss": loss,
                            "train/learning_rate": float(self.schedule(step - 1)),
                            "train/examples_per_second": rate,
                        },
                    )
                    logged, logged_at = done, now
                    bar.set_postfix(loss=f"{loss:.4f}")
                if step == config.max_steps:
                    break
                if not self.is_to_evaluate() and self.is_time_to_save():
                    self.save()
                self.heed_signals()
        jax.block_until_ready(self.state)
        return (done - begin) / (time.perf_counter() - start)

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
        self.state = self.state._replace(
            loss=self.devices.put(np.zeros((), self.state.loss.dtype)),
            examples=self.devices.put(np.zeros((), self.state.examples.dtype)),
        )
        self.progress.epoch_loss += loss
        self.progress.epoch_examples += examples
        return loss / examples

    def end_epoch(self, examples_per_second: float) -> None:
        """Evaluates where a split chooses, records and saves."""
        config, progress, split = self.config, self.progress, self.config.select_on
        if float(self.state.examples):
            self.take_loss()
        # Until it has come to its end, a checkpoint is of an epoch yet to be evaluated.
        found = {} if split == "last" else self.evaluate[split](self.state.params)
        metrics = {k: v for k, v in found.items() if k != "examples_per_second"}
        loss = progress.end_epoch(metrics, config.select_by)
        self.writer.write(
            progress.step,
            {
                "epoch": progress.epoch,
                "train/loss": loss,
                "train/examples_per_second": examples_per_second,
                **{f"{split}/{name}": value for name, value in found.items()},
            },
        )
        said = f"epoch {progress.epoch}: loss {loss:.4f}"
        if metrics:
            shown = (f"recall@{max(config.ks)}", config.select_by)
            said += f", {split} " + ", ".join(
                f"{name} {100 * metrics[name]:.2f}" for name in shown
            )
            said += ", best" if progress.bad_epochs == 0 else ""
        processes.say(f"{said} ({examples_per_second:,.0f} ex/s)")
        self.save()

    def run(self) -> results_json.Results:
        """Trains until complete, then evaluates the best epoch on test."""
        with interrupt.deferred() as self.received:
            try:
                while not self.is_complete():
                    examples_per_second = self.train_epoch()
                    if self.is_to_evaluate():
                        self.end_epoch(examples_per_second)
                    else:
                        self.save()
                return self.report()
            except interrupt.Stopped as stopped:
                step = self.progress.step
                if self.checkpoints.latest_step() != step:
                    self.save()
                self.checkpoints.close()
                raise interrupt.Stopped(
                    stopped.number, f"saved at step {step}; the same command continues"
                ) from None

    def report(self) -> results_json.Results:
        """Evaluates the best epoch on test, prints the table, records the metrics.

        Where test chose the epoch, metrics.jsonl holds its metrics already.
        """
        config, progress = self.config, self.progress
        params = self.state.params
        if progress.best_step not in (0, progress.step):
            params, _ = restore_best(
                self.checkpoints, progress, self.model, self.devices
            )
        test, results = evaluate_best(
            config, progress, self.splits, self.evaluate["test"], params
        )
        if config.select_on != "test" or not progress.best_step:
            self.writer.write(
                progress.best_step or progress.step,
                {f"test/{name}": value for name, value in test.items()},
            )
        return results
