"""A search for settings: many runs, of which validation alone chooses the best.

    <workdir>/trial_0007   the workdir of a trial, a run like any other
    <workdir>/search.log   the journal of all trials
    <workdir>/best.py      a config with the settings of the best trial
    <workdir>/plots        plots, if matplotlib is installed

After a kill at any moment, the same command continues; with one worker, it tries the
same trials as without the kill. Starting the same command several times shares the
work.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data.counts import counts_table
from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import results_json
from srgnn_jax.model.losses import Loss
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.progress import Progress, model_name
from srgnn_jax.runs.workdir import FOLDER, make_workdir, seed_folders
from srgnn_jax.train import search_report, space, study
from srgnn_jax.train.epochs import Diverged
from srgnn_jax.train.loop import train_one
from srgnn_jax.train.search_config import (
    accepts,
    check_config,
    facts,
    own_settings,
    searched,
    with_params,
)

# Tries of a trial in a row that save nothing new, before it counts as failed.
MOST_STARTS = 5


def search(
    config: ConfigDict,
    workdir: str,
    ranges: Mapping[str, Any] | None = None,
    trials: int = 50,
    minutes: float = 0.0,
    fixed: Collection[str] = (),
    command: str = "",
    model: config_lib.MakeModel | None = None,
    losses: Mapping[str, Loss] | None = None,
    source: str = "",
) -> pathlib.Path | None:
    """Finds the settings that are best on validation; continues an earlier search.

    The first trial has the config's own settings if they lie in the ranges. Test is
    evaluated once, for the best trial, at the end.

    Args:
      config: see configs/default.py; sets everything that is not searched.
      workdir: folder of the search.
      ranges: what to choose from, by field; see `space`. None: `space.DEFAULT`.
      trials: how many to try, including those of earlier calls.
      minutes: no epoch starts after this time; 0: no limit.
      fixed: fields that are not searched, whatever `ranges` says.
      command: the command line, for results.json of the best trial.
      model: makes a model other than plain `SRGNN`; see `config.make_model`.
      losses: more losses that `config.loss_type` may name.
      source: text of the config file that defines `model` or `losses`, for best.py.

    Returns:
      The workdir of the best trial; None if other workers are still running trials.

    Raises:
      UserError: something the user can fix, such as a value that the config refuses.
      Stopped: SIGTERM or Ctrl-C came while a trial trained; everything done is saved.
    """
    until = time.monotonic() + 60 * minutes if minutes else None
    check_config(config)
    if jax.process_count() > 1:
        raise UserError(
            "a search cannot run across several processes; start the same command in "
            "each, without --distributed, and they share the trials"
        )
    ranges = searched(ranges, config, fixed, losses)
    folder = make_workdir(workdir)
    if (folder / FOLDER).is_dir() or seed_folders(folder):
        raise UserError(f"{folder} holds a run; a search needs another --workdir")
    data = config_lib.load_data(config)
    splits = config_lib.make_splits(config, data)
    num_items = data.vocabulary.num_items
    name = model_name(config_lib.make_model(config, num_items, model))
    accepted = functools.partial(accepts, config, num_items, model, losses)
    with _file_errors(folder):
        with study.lock(folder / "lock"):
            own = own_settings(config, ranges)
            first = own if own and accepted(own) else None
            opened = study.open_study(folder, config.seed, ranges, accepted, first)
            about = {**facts(config, ranges), "data": data.fingerprint, "model": name}
            study.check_same_search(opened, about)
        processes.say(counts_table({**data.counts, **splits.counts}, data.published))
        worker = _Worker(config, folder, opened, ranges, trials, until, model, losses)
        worker.work()
        with study.lock(folder / "lock"):
            return worker.finish(command, source)


@dataclasses.dataclass
class _Worker:
    """One process that works on a search; there may be others."""

    config: ConfigDict
    folder: pathlib.Path
    study: study.Study
    ranges: space.Space
    trials: int
    until: float | None  # of the monotonic clock
    model: config_lib.MakeModel | None
    losses: Mapping[str, Loss] | None

    def work(self) -> None:
        """Runs one trial after another until all are done or time is up."""
        with processes.progress_bar(
            self.config.progress, total=self.trials, desc="search", unit=" trials"
        ) as bar:
            while not self.time_is_up():
                bar.n = len(study.trials(self.study, *study.ENDED))
                bar.refresh()
                with contextlib.ExitStack() as stack:
                    trial = self.take(stack)
                    if trial is None:
                        return
                    self.try_out(trial)
                    ended = study.trials(self.study)[trial.number]
                    if ended.state.name in study.ENDED:
                        line = search_report.line(ended, self.config.select_by)
                        with bar.external_write_mode():
                            processes.say(line)

    def time_is_up(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def take(self, stack: contextlib.ExitStack) -> study.Trial | None:
        """Returns a new trial or one that a process left; None if all are taken.

        While the stack is open, no other worker takes it.
        """
        with study.lock(self.folder / "lock"):
            for left in study.trials(self.study, "RUNNING"):
                if held := self.hold(left.number):
                    stack.enter_context(held)
                    return study.ask(self.study, self.ranges, left)
                study.note_others(self.study)
            number = len(study.trials(self.study))
            if number >= self.trials:
                return None
            # No other worker takes what is not in the journal yet.
            stack.enter_context(self.hold(number) or contextlib.nullcontext())
            return study.ask(self.study, self.ranges)

    def workdir(self, number: int) -> pathlib.Path:
        return self.folder / f"trial_{number:04}"

    def hold(self, number: int) -> TextIO | None:
        """Locks a trial for this process; None if another process works on it."""
        folder = make_workdir(str(self.workdir(number)))
        with contextlib.suppress(BlockingIOError):
            return study.lock(folder / "worker", wait=False)
        return None

    def try_out(self, trial: study.Trial) -> None:
        """Trains a trial to its end and records its result or why it failed."""
        folder = self.workdir(trial.number)
        config = with_params(self.config, trial.params)
        loss = config_lib.find_loss(config, self.losses)
        try:
            # A trial that was killed while drawing gets its other values unchecked.
            config_lib.validate(config)
        except UserError as error:
            return study.fail(trial, str(error))
        # Those of an evaluation before the trial's end are not its own.
        (folder / results_json.FILE).unlink(missing_ok=True)
        judge = _Judge(trial, self)
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            step = checkpoints.latest_step() or 0
        if study.count_starts(trial, step) > MOST_STARTS:
            why = f"the process died {MOST_STARTS} times in a row"
            return study.fail(trial, f"{why}, as it does when memory runs out")
        try:
            with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
                train_one(config, str(folder), "", self.model, loss, stops=judge)
        except Diverged as error:
            return study.fail(trial, str(error).partition(";")[0])
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "RESOURCE_EXH" not in str(error):
                raise
            return study.fail(trial, f"out of memory ({reason(error)[:200]})")
        if judge.is_poor:
            study.prune(trial)
        elif not judge.is_late:
            epoch, best = judge.progress.best_epoch, judge.progress.best_metrics
            found = {"epoch": epoch, "metrics": best}
            study.complete(trial, best[config.select_by], found)
        return None

    def finish(self, command: str, source: str) -> pathlib.Path | None:
        """Evaluates the best trial on test and reports, unless others still work."""
        for left in study.trials(self.study, "RUNNING"):
            with self.hold(left.number) or contextlib.nullcontext() as held:
                if held is None:
                    processes.say(
                        "other workers are still running trials; the last of them "
                        "evaluates the best trial on test"
                    )
                    return None
        best = search_report.best_trials(self.study)
        if not best:
            why = "the same command continues"
            if failed := study.trials(self.study, "FAIL"):
                why = search_report.line(failed[0], "")
            raise UserError(f"no trial in {self.folder} is complete; {why}")
        folder = self.workdir(best[0].number)
        config = with_params(self.config, best[0].params)
        if not (folder / results_json.FILE).exists():
            loss = config_lib.find_loss(config, self.losses)
            with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
                train_one(config, str(folder), command, self.model, loss)
        search_report.report(self.study, self.folder, config, self.trials, source)
        return folder


@dataclasses.dataclass
class _Judge:
    """Decides after each epoch of a trial whether it ends there; a `Stops`."""

    trial: study.Trial
    worker: _Worker
    progress: Progress = dataclasses.field(init=False)  # the last one it saw
    is_poor: bool = False
    is_late: bool = False

    def __call__(self, progress: Progress) -> bool:
        self.progress, config = progress, self.worker.config
        folder = self.worker.workdir(self.trial.number)
        lines = results_json.read_lines(folder / "metrics.jsonl")
        metric = f"valid/{config.select_by}"
        study.report(self.trial, {x["epoch"]: x[metric] for x in lines if "epoch" in x})
        if progress.epoch >= config.epochs:
            return False
        self.is_poor = study.is_poor(self.trial, progress.epoch)
        self.is_late = not self.is_poor and self.worker.time_is_up()
        return self.is_poor or self.is_late


@contextlib.contextmanager
def _file_errors(folder: pathlib.Path) -> Iterator[None]:
    """Raises UserError if a file of the search cannot be read or written inside."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {reason(error)}; the trials so far are kept: "
            "fix this, and the same command continues"
        ) from error
