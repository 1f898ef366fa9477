"""Epochs of steps, each followed by an evaluation and a checkpoint."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data import batches
from srgnn_jax.devices import layouts, processes
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.evaluate.workdir import evaluate_best, make_evaluator
from srgnn_jax.model.losses import Loss
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.records import MetricsWriter
from srgnn_jax.train import interrupt, warm_start
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import TrainState, init_state, train_step

# A learning rate that has decayed to this share is too low to change anything.
LEAST_RATE = 1e-3
# Called before the first epoch and after each one, also on resuming: does it end here?
Stops = Callable[[Progress], bool]


class Diverged(UserError):
    """The loss of a run, or a parameter, is not finite."""


@dataclasses.dataclass
class Run:
    """One run in one workdir: what its epochs share, and its progress."""

    config: ConfigDict
    splits: config_lib.Splits
    devices: layouts.Devices
    model: nn.Module
    loss: Loss
    checkpoints: Checkpoints
    writer: MetricsWriter
    progress: Progress

    def __post_init__(self):
        config, devices, train = self.config, self.devices, self.splits.train
        self.received: Callable[[], int] = lambda: 0
        self.signal_checks = 0
        self.saved_at = time.monotonic()
        self.finite_step = self.progress.step
        self.steps_per_epoch = batches.steps_per_epoch(len(train), config.batch_size)
        self.with_clicks = devices.hold_clicks(train.items)
        # Otherwise each batch brings its own clicks.
        held = len(train.items) <= devices.max_clicks
        self.steps_per_call = devices.steps_per_call if held else 1
        self.schedule = config_lib.make_schedule(
            config, self.steps_per_epoch, self.progress.first_epoch
        )
        optimizer = adam_with_l2(self.schedule, config.l2)
        step = functools.partial(
            train_step,
            model=self.model,
            optimizer=optimizer,
            seed=config.seed,
            averaging=config.averaging,
            loss=self.loss,
            score_padding=config.score_padding,
            **devices.step_options,
        )
        self.train_step = devices.compile(step, updates_state=True)
        self.evaluate = {
            split: make_evaluator(
                config, self.model, those, devices, self.check_signals
            )
            for split, those in self.splits.evaluated.items()
        }
        self.state: TrainState = devices.make(
            functools.partial(
                init_state, self.model, optimizer, config.seed, config.averaging > 0
            )
        )

    def restore(self) -> None:
        step, epoch = self.progress.step, self.progress.epoch
        restored = self.checkpoints.restore(layouts.layout_of(self.state), step)
        self.state = self.devices.lay_out(restored)
        done = self.is_complete()
        what = "the run is complete:" if done else "continuing from the checkpoint of"
        processes.say(f"{what} step {step}, epoch {epoch}")

    def begin(self, parent: warm_start.Parent) -> None:
        sessions, rule = self.splits.train_sessions, self.config.new_items
        self.state = warm_start.begin(parent, self.state, self.devices, sessions, rule)
        self.save()

    def is_complete(self) -> bool:
        config, progress = self.config, self.progress
        return not self.is_to_evaluate() and bool(
            progress.epoch >= config.epochs
            or (config.max_steps and progress.step >= config.max_steps)
            or (config.patience and progress.bad_epochs >= config.patience)
            or self.has_decayed()
        )

    def has_decayed(self) -> bool:
        """Whether the learning rate of the next epoch is too low to change anything."""
        config = self.config
        rate = float(self.schedule(self.progress.epoch * self.steps_per_epoch))
        # float32 may round a rate that decays exactly to the bound to just above it.
        return rate <= 1.001 * LEAST_RATE * config.learning_rate

    def is_to_evaluate(self) -> bool:
        """Whether the epoch's steps are done but its evaluation is not."""
        progress = self.progress
        return progress.step == (progress.epoch + 1) * self.steps_per_epoch

    def check_finite(self, params: bool = False) -> None:
        """Raises Diverged if the loss, or with `params` the state, is not finite."""
        step, loss = self.progress.step, float(self.state.loss)
        try:
            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss}")
            if params:
                check_finite(self.state)
        except ValueError as error:
            known = self.finite_step
            since = f" (finite up to step {known})" if known else ""
            raise Diverged(
                f"{error} at step {step}{since}; the last checkpoint is kept. Try a "
                "smaller config.learning_rate or another config.seed, with another "
                "--workdir"
            ) from error
        self.finite_step = step

    def save(self) -> None:
        self.check_finite(params=True)
        self.writer.flush()
        self.checkpoints.save(self.state, self.progress)
        self.saved_at = time.monotonic()

    def may_ask_others(self, count: int) -> bool:
        """Whether processes may communicate now, which makes the devices wait."""
        return jax.process_count() == 1 or count % self.config.log_every_steps == 0

    def check_signals(self) -> None:
        """Raises Stopped if a process of the run got a signal; called every batch."""
        self.signal_checks += 1
        if self.may_ask_others(self.signal_checks):
            self.stop_if_signalled()

    def stop_if_signalled(self, message: str = "") -> None:
        """Raises Stopped if a process of the run got a signal."""
        if number := int(max(processes.from_all(self.received()))):
            raise interrupt.Stopped(number, message)

    def is_time_to_save(self) -> bool:
        """Whether a checkpoint is due, by the step or by the main process's clock."""
        config, step = self.config, self.progress.step
        if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0:
            return True
        seconds = 60 * config.checkpoint_every_minutes
        if not (seconds and self.may_ask_others(step)):
            return False
        return bool(processes.from_all(time.monotonic() - self.saved_at >= seconds)[0])

    def train_epoch(self) -> float:
        """Trains until the epoch ends, or `max_steps`; returns examples per second."""
        config, progress, train = self.config, self.progress, self.splits.train
        devices, epoch = self.devices, progress.epoch
        first = progress.step - epoch * self.steps_per_epoch
        done = begin = logged = first * config.batch_size
        of_epoch = functools.partial(
            batches.train_batches,
            *(train, config.batch_size, config.seed, epoch, first),
            *(devices.shards, devices.max_positions, devices.tiering),
        )
        with processes.progress_bar(
            config.progress, total=len(train), initial=done, desc=processes.COMPILING
        ) as bar:
            # So that nothing is compiled in the middle of the epoch.
            for batch in batches.one_of_each_layout(of_epoch(), devices.tiering):
                self.train_step.prepare(self.state, *self.in_one_call([batch]))
            processes.begin(bar, f"epoch {epoch + 1}/{config.epochs}")
            start = logged_at = time.perf_counter()
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
                    metrics = {
                        "train/loss": loss,
                        "train/learning_rate": float(self.schedule(step - 1)),
                        "train/examples_per_second": rate,
                    }
                    self.writer.write(step, metrics)
                    logged, logged_at = done, now
                    bar.set_postfix(loss=f"{loss:.4f}")
                if step == config.max_steps:
                    break
                if not self.is_to_evaluate() and self.is_time_to_save():
                    self.save()
                self.check_signals()
        jax.block_until_ready(self.state)
        return (done - begin) / (time.perf_counter() - start)

    def steps_of_next_call(self) -> int:
        """Returns how many steps can be taken before something else has to be done."""
        config, step = self.config, self.progress.step
        every = config.log_every_steps, config.checkpoint_every_steps
        until = [n - step % n for n in every if n]
        left = [config.max_steps - step] if config.max_steps else []
        return min(self.steps_per_call, *until, *left)

    def in_one_call(self, several: list[batches.Batch]) -> tuple[Any, batches.Batch]:
        """Returns the training step's arguments for some batches of one layout."""
        batch = several[0]
        if self.steps_per_call > 1:
            batch = batches.stack(several, self.steps_per_call)
        return self.with_clicks(batch)

    def take_loss(self) -> float:
        """Adds the running sums to the epoch's and resets them; returns their mean."""
        self.check_finite()
        loss, examples = float(self.state.loss), float(self.state.examples)
        # Separate buffers, as the next step donates both.
        loss_sum, number = (self.devices.put(np.zeros((), np.float32)) for _ in "12")
        self.state = self.state._replace(loss=loss_sum, examples=number)
        self.progress.epoch_loss += loss
        self.progress.epoch_examples += examples
        return loss / examples

    def end_epoch(self, examples_per_second: float) -> None:
        config, progress, split = self.config, self.progress, self.config.select_on
        if float(self.state.examples):
            self.take_loss()
        # A checkpoint saved during the evaluation is of an epoch yet to be evaluated.
        found = {} if split == "last" else self.evaluate[split](self.state.params)
        metrics = {k: v for k, v in found.items() if k != "examples_per_second"}
        loss = progress.end_epoch(metrics, config.select_by)
        record = {
            "epoch": progress.epoch,
            "train/loss": loss,
            "train/examples_per_second": examples_per_second,
        }
        record |= {f"{split}/{name}": value for name, value in found.items()}
        self.writer.write(progress.step, record)
        summary = f"epoch {progress.epoch}: loss {loss:.4f}"
        if metrics:
            shown = (f"recall@{max(config.ks)}", config.select_by)
            values = ", ".join(f"{name} {100 * metrics[name]:.2f}" for name in shown)
            summary += f", {split} {values}" + ", best" * (progress.bad_epochs == 0)
        # It is 0 if the run was interrupted after the epoch's last step.
        rate = f" ({examples_per_second:,.0f} ex/s)" if examples_per_second else ""
        processes.say(summary + rate)
        self.save()

    def report_decay(self) -> None:
        """Prints that the run ended, or never began, because of the learning rate."""
        progress, epochs = self.progress, self.config.epochs
        if not self.has_decayed() or progress.epoch >= epochs:
            return
        message = (
            "the learning rate has decayed to a thousandth: the run ends after "
            f"{progress.epoch} of at most {epochs} epochs"
        )
        if not progress.epoch:
            message = (
                "the learning rate has decayed to a thousandth in the "
                f"{progress.first_epoch} epochs before this run: nothing is trained; "
                "set config.warm_start_schedule='anew'"
            )
        processes.say(message)

    def run(self, stops: Stops | None = None) -> results_json.Results | None:
        with interrupt.deferred() as self.received:
            try:
                while not ((stops and stops(self.progress)) or self.is_complete()):
                    examples_per_second = self.train_epoch()
                    if self.is_to_evaluate():
                        self.end_epoch(examples_per_second)
                    else:
                        self.save()
                self.report_decay()
                return None if stops else self.report()
            except interrupt.Stopped as stopped:
                step = self.progress.step
                if self.checkpoints.latest_step() != step:
                    self.save()
                self.checkpoints.close()
                raise interrupt.Stopped(
                    stopped.number, f"saved at step {step}; the same command continues"
                ) from None

    def report(self) -> results_json.Results | None:
        """Evaluates the best epoch on test, prints the table, records the metrics."""
        config, progress, params = self.config, self.progress, self.state.params
        if not len(self.splits.evaluated["test"]):
            processes.say("nothing was kept for test: the run is only for recommending")
            return None
        if progress.best_step not in (0, progress.step):
            params, _ = restore_best(
                self.checkpoints, progress, self.model, self.devices
            )
        evaluate = self.evaluate["test"]
        test, results = evaluate_best(config, progress, self.splits, evaluate, params)
        name = "joined" if config.joined else "test"
        # If test chose the epoch, it is recorded already.
        if config.joined or config.select_on != "test" or not progress.best_step:
            step = progress.best_step or progress.step
            self.writer.write(step, {f"{name}/{k}": value for k, value in test.items()})
        return results
