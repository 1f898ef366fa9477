"""Training: sets up data, model and workdir for the runs of one or several seeds."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping

from ml_collections import ConfigDict

from srgnn_jax import config as config_lib
from srgnn_jax.data.counts import counts_table
from srgnn_jax.data.frames import Clicks
from srgnn_jax.devices import processes
from srgnn_jax.evaluate.workdir import record, report_seeds
from srgnn_jax.model.losses import Loss
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.records import MetricsWriter
from srgnn_jax.runs.workdir import (
    check_kind,
    load_vocabulary,
    make_workdir,
    only_run,
    save_vocabulary,
)
from srgnn_jax.train import warm_start
from srgnn_jax.train.epochs import Run, Stops
from srgnn_jax.train.trained import Trained


def train_and_evaluate(
    config: ConfigDict,
    workdir: str,
    command: str = "",
    model: config_lib.MakeModel | None = None,
    losses: Mapping[str, Loss] | None = None,
    clicks: Clicks | None = None,
) -> Trained | None:
    """Prepares the data, trains and evaluates; resumes the run of the workdir, if any.

    Args:
      config: see configs/default.py.
      workdir: folder for checkpoints, metrics.jsonl, counts.json and results.json.
      command: the command line, for results.json.
      model: makes a model other than plain `SRGNN`; see `config.make_model`.
      losses: more losses that `config.loss_type` may name.
      clicks: clicks of a frame, instead of files.

    Returns:
      The state after the last step, and what the best epoch reached on test; None if
      `config.epochs` is 0 and there is no warm start.

    Raises:
      UserError: something the user can fix, such as a missing file.
      Stopped: SIGTERM or Ctrl-C came during training; everything done is saved.
    """
    config_lib.validate(config)
    loss = config_lib.find_loss(config, losses)
    if config.runs == 1 or not (config.epochs or config.warm_start):
        return train_one(config, workdir, command, model, loss, clicks)
    folder = make_workdir(workdir)
    check_kind(folder, several=True)
    seeds = range(config.seed, config.seed + config.runs)
    each = []
    for seed in seeds:
        processes.say(f"\nseed {seed}, of {seeds[0]} to {seeds[-1]}")
        one = config_lib.with_seed(config, seed)
        own = str(folder / f"seed_{seed}")
        trained = train_one(one, own, command, model, loss, clicks)
        assert trained is not None  # As it trains, or begins with another run.
        each.append(trained)
    if each[0].metrics:
        report_seeds(folder, seeds)
    return Trained.of_several(each, workdir)


def train_one(
    config: ConfigDict,
    workdir: str,
    command: str,
    make: config_lib.MakeModel | None,
    loss: Loss,
    clicks: Clicks | None = None,
    stops: Stops | None = None,
) -> Trained | None:
    """Does what `train_and_evaluate` does, for a single run of a valid config.

    With `stops`, which may end the run after any epoch, test is not evaluated.
    """
    devices = config_lib.find_devices(config)
    with processes.main_process_first():
        data = config_lib.load_data(config, clicks)
    splits = config_lib.make_splits(config, data)
    counts = {**data.counts, **splits.counts}
    about_data = "\n".join(data.notes), counts_table(counts, data.published)
    processes.say("\n\n".join(filter(None, about_data)))
    model = config_lib.make_model(config, data.vocabulary.num_items, make)
    folder = make_workdir(workdir)
    check_kind(folder, several=False)
    is_main = processes.is_main_process()
    with only_run(folder), contextlib.closing(Checkpoints(folder)) as checkpoints:
        progress = config_lib.start_of_run(config, data, model)
        resumes = checkpoints.latest_step() is not None
        if resumes:
            # Before writing anything: the workdir may belong to another run.
            stored = checkpoints.progress()
            config_lib.check_same_run(stored, progress)
            progress = dataclasses.replace(stored, config=progress.config)
        if is_main:
            (folder / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
        if config.epochs == 0 and not config.warm_start:
            return None
        vocabulary = data.vocabulary.with_clicks(splits.train_sessions.items)
        parent = None
        if config.warm_start and resumes:
            vocabulary = load_vocabulary(folder, progress.vocabulary)
        elif config.warm_start:
            parent = warm_start.find_parent(config, folder, model, vocabulary)
            vocabulary.is_new = parent.rows[1:] < 0
            progress = parent.hand_on(progress, config.warm_start_schedule)
            processes.say(warm_start.line(progress))
        splits = dataclasses.replace(splits, is_new=vocabulary.new_rows)
        checkpoints.continue_from(progress.step if resumes else None)
        if is_main:
            save_vocabulary(folder, vocabulary)
        writer = MetricsWriter(folder, progress.step, is_main)
        with contextlib.closing(writer), processes.together():
            run = Run(
                config, splits, devices, model, loss, checkpoints, writer, progress
            )
            if resumes:
                run.restore()
            elif parent is not None:
                run.begin(parent)
            results = run.run(stops)
            if is_main and results:
                record(folder, config, data, splits, command, results)
            # One that came among the baselines.
            run.stop_if_signalled("this run is complete; the same command continues")
            test = results["test"] if results else {}
            return Trained(run.state, workdir, test)
