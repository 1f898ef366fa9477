"""Runs that are stopped, killed or lose their disk end as if undisturbed."""

import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tqdm import tqdm

from srgnn_jax import config as config_lib
from srgnn_jax.configs import click_log
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import evaluator
from srgnn_jax.evaluate import workdir as workdir_module
from srgnn_jax.evaluate.workdir import evaluate_workdir
from srgnn_jax.runs import checkpoint
from srgnn_jax.runs.workdir import make_workdir, only_run
from srgnn_jax.train import epochs, interrupt
from srgnn_jax.train.loop import train_and_evaluate
from tests.command import PROCESSES
from tests.kill_and_resume import assert_same, kill_and_resume, outcome
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


@pytest.fixture(autouse=True)
def may_be_interrupted():
    """Enables Ctrl-C, which a shell disables for its background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of an undisturbed run of the same config."""
    folder = tmp_path_factory.mktemp("whole")
    train_and_evaluate(tiny_config(folder), str(folder / "run"))
    return outcome(folder / "run")


def assert_ends_like(workdir, whole, config):
    """Compares with the undisturbed run, except for the folders of its data."""
    found = outcome(workdir)
    places = {name: config[name] for name in config_lib.MAY_DIFFER}
    for which in ("last", "best"):
        progress, state = whole[which]
        stored = {**progress["config"], **places, "mesh_shape": [0, 0]}
        whole = {**whole, which: ({**progress, "config": stored}, state)}
    assert_same(found, whole)


def at_call(function, number, do):
    """Wraps a function to call `do` before its call of this number, counted from 1."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number:
            do()
        return function(*arguments, **named)

    return wrapped


def stop(number=signal.SIGTERM):
    return lambda: signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_step_saves_it_and_the_run_goes_on(
    config, tmp_path, whole, monkeypatch, number
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "update", at_call(tqdm.update, 7, stop(number)))
        with pytest.raises(
            interrupt.Stopped, match="saved at step 7; the same"
        ) as error:
            train_and_evaluate(config, str(workdir))
    assert error.value.number == number
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["7"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train_and_evaluate(config, str(workdir))
    assert_ends_like(workdir, whole, config)


def test_a_signal_waits_for_the_end_of_a_call_of_several_steps(
    config, tmp_path, monkeypatch
):
    # Logging after every fifth step cuts calls short: 3, 2, 3, 2, ...
    config.steps_per_call = 3
    train_and_evaluate(config, str(tmp_path / "whole"))
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "update", at_call(tqdm.update, 3, stop()))
        with pytest.raises(interrupt.Stopped, match="saved at step 8; the same"):
            train_and_evaluate(config, str(workdir))
    train_and_evaluate(config, str(workdir))
    assert_same(outcome(workdir), outcome(tmp_path / "whole"))


@pytest.mark.slow  # runs processes that compile as users' do
def test_several_steps_a_call_change_no_bit(config, tmp_path):
    for config.steps_per_call in (1, 3):
        subprocess.run(
            command_of(config, tmp_path / f"run_{config.steps_per_call}"),
            cwd=ROOT,
            env={**ENVIRONMENT, "XLA_FLAGS": ""},
            check=True,
            capture_output=True,
        )
    assert_ends_like(tmp_path / "run_3", outcome(tmp_path / "run_1"), config)


def batch_of_evaluation(monkeypatch, number, do):
    """Calls `do` before a batch of evaluation, counted over all evaluations."""
    batches = evaluator.batches.eval_batches
    calls = 0

    def wrapped(*arguments):
        nonlocal calls
        for batch in batches(*arguments):
            calls += 1
            if calls == number:
                do()
            yield batch

    monkeypatch.setattr(evaluator.batches, "eval_batches", wrapped)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_signal_in_an_evaluation_saves_the_epoch_that_it_is_of(
    config, tmp_path, whole, monkeypatch, epochs
):
    config.epochs = epochs
    workdir = tmp_path / "run"
    for _ in range(2):
        with monkeypatch.context() as patch:
            batch_of_evaluation(patch, 1, stop())
            with pytest.raises(interrupt.Stopped, match="saved at step"):
                train_and_evaluate(config, str(workdir))
        with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
            progress = checkpoints.progress()
        assert progress.epoch == progress.best_step == 0
    # However the run continues, this epoch is evaluated and not trained again.
    config.max_steps = progress.step
    train_and_evaluate(config, str(workdir))
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        assert checkpoints.progress().best_step == progress.step
    config.max_steps, config.epochs = 0, 2
    train_and_evaluate(config, str(workdir))
    # The evaluation on test at the stop is recorded too.
    records = outcome(workdir)["records"]
    extra = [r for r in records if r not in whole["records"]]
    assert all(r["step"] == progress.step and "test/mrr@20" in r for r in extra)
    assert len(records) == len(whole["records"]) + len(extra)
    assert_ends_like(workdir, {**whole, "records": records}, config)


def test_a_signal_in_the_last_evaluation_is_heeded(
    config, tmp_path, whole, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(epochs.Run, "report", at_call(epochs.Run.report, 1, stop()))
        with pytest.raises(interrupt.Stopped, match="saved at step"):
            train_and_evaluate(config, str(tmp_path / "run"))
    train_and_evaluate(config, str(tmp_path / "run"))
    assert_ends_like(tmp_path / "run", whole, config)


@pytest.mark.slow
def test_a_signal_among_the_baselines_ends_a_run_of_several(
    config, tmp_path, monkeypatch
):
    config.runs = 2
    asked = at_call(workdir_module.baseline_metrics, 1, stop())
    monkeypatch.setattr(workdir_module, "baseline_metrics", asked)
    with pytest.raises(interrupt.Stopped, match="this run is complete"):
        train_and_evaluate(config, str(tmp_path / "runs"))
    (seed,) = (tmp_path / "runs").glob("seed_*")
    assert (seed / "results.json").exists()


def test_a_second_signal_ends_the_process():
    code = (
        "import os, signal\n"
        "from srgnn_jax.train import interrupt\n"
        "with interrupt.deferred() as received:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(received(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "15\n"
    assert done.returncode == -signal.SIGINT


def command_of(config, workdir, *flags):
    """Returns the command line for a config of `tiny_config`."""
    plain = click_log.get_config().to_dict()
    return [
        *(sys.executable, "-m", "srgnn_jax.main", "--config=configs/click_log.py"),
        *(f"--config.{k}={v}" for k, v in config.items() if v != plain[k]),
        *(f"--workdir={workdir}", *flags),
    ]


@pytest.mark.slow  # a process that trains
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_in_one_line(config, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command_of(config, workdir, "--config.epochs=100000", "--config.patience=0"),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (workdir / "metrics.jsonl").exists() or not (
            (workdir / "metrics.jsonl").read_text()
        ):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    # Synthetic clicks are from 1970, which causes a warning.
    lines = [line for line in errors.splitlines() if line]
    (line,) = (line for line in lines if not line.startswith("WARNING: times are"))
    assert line.startswith(f"{signal.Signals(number).name}: saved at step ")
    assert line.endswith("; the same command continues")


def saved_steps(monkeypatch):
    """Returns a list to which each saved step will be added."""
    steps = []
    save = checkpoint.Checkpoints.save

    def noted(self, state, progress):
        steps.append(progress.step)
        save(self, state, progress)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", noted)
    return steps


def test_checkpoints_by_the_clock(config, tmp_path, whole, monkeypatch):
    steps = saved_steps(monkeypatch)
    clock = iter(range(0, 10**6, 20))  # 20 seconds per reading
    fake = SimpleNamespace(
        monotonic=lambda: float(next(clock)), perf_counter=time.perf_counter
    )
    monkeypatch.setattr(epochs, "time", fake)
    config.checkpoint_every_minutes = 1.5
    train_and_evaluate(config, str(tmp_path / "run"))
    end = whole["last"][0]["step"]
    assert steps[:2] == [5, 10]
    assert {end // 2, end} < set(steps)
    assert_ends_like(tmp_path / "run", whole, config)


def test_a_clock_that_is_not_asked_for_saves_nothing(config, tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    config.epochs = 1
    train_and_evaluate(config, str(tmp_path / "run"))
    assert len(steps) == 1


def damage(workdir, step):
    path = workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    config, tmp_path, whole, caplog
):
    workdir = tmp_path / "run"
    config.checkpoint_every_steps, config.max_steps = 4, 7
    train_and_evaluate(config, str(workdir))
    config.max_steps = 0
    damage(workdir, 7)
    train_and_evaluate(config, str(workdir))
    assert "checkpoints/7 is damaged: state/manifest.ocdbt" in caplog.text
    assert list((workdir / "checkpoints").glob("damaged-7-*"))
    found = outcome(workdir)
    # Records that only the stop at step 7 made are gone.
    assert found["records"] == whole["records"]
    assert_ends_like(workdir, whole, config)


def test_nothing_is_written_where_no_checkpoint_can_be_used(config, tmp_path):
    workdir = tmp_path / "run"
    config.max_steps = 3
    train_and_evaluate(config, str(workdir))
    damage(workdir, 3)
    files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for do in (functools.partial(train_and_evaluate, config), evaluate_workdir):
        with pytest.raises(UserError, match=r"checkpoints/3 is damaged: .* restore it"):
            do(str(workdir))
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == files


def test_a_damaged_best_checkpoint_is_named(config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    original = evaluator.Evaluator.with_lists
    values = iter([0.5, 0.1, 0.1])

    def falling(self, params, k):
        means, *rest = original(self, params, k)
        return {**means, "mrr@20": next(values)}, *rest

    monkeypatch.setattr(evaluator.Evaluator, "with_lists", falling)
    train_and_evaluate(config, str(workdir))
    best = min(int(path.name) for path in (workdir / "checkpoints").iterdir())
    damage(workdir, best)
    with pytest.raises(UserError, match=rf"checkpoints/{best} is damaged"):
        evaluate_workdir(str(workdir))


@contextlib.contextmanager
def small_disk(folder):
    """Mounts a tmpfs of one megabyte; skips the test if that is not possible."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fail_to_save(config, workdir, message, limit=None):
    """Trains in a separate process, in which it must fail.

    Orbax's writers of the other arrays would wait in vain during the next tests.
    """
    process = PROCESSES.Process(target=_fail, args=(config, workdir, message, limit))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def _fail(config, workdir, message, limit):
    if limit:  # In bytes per file, from the first save on.
        limits = limit, resource.RLIM_INFINITY
        do = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        save = checkpoint.Checkpoints.save
        checkpoint.Checkpoints.save = at_call(save, 1, do)
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, workdir)


@pytest.mark.slow  # trains in a full folder, which takes twenty seconds
def test_a_full_disk(config, tmp_path, whole):
    with small_disk(tmp_path / "disk") as disk:
        workdir = disk / "run"
        config.max_steps, config.checkpoint_every_steps = 4, 2
        train_and_evaluate(config, str(workdir))
        free = shutil.disk_usage(disk).free
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(max(free - 20_000, 0)))
        config.max_steps = 0
        fail_to_save(config, str(workdir), "No space left on device")
        ballast.unlink()
        with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
            assert checkpoints.progress().step >= 4
        train_and_evaluate(config, str(workdir))
        found = outcome(workdir)
    for which in ("last", "best"):
        assert found[which][0]["step"] == whole[which][0]["step"]
        jax.tree.map(np.testing.assert_array_equal, found[which][1], whole[which][1])


def test_files_that_may_not_grow(config, tmp_path):
    """Like a full disk, but works where none can be mounted."""
    workdir = tmp_path / "run"
    config.max_steps = 2
    train_and_evaluate(config, str(workdir))
    config.max_steps = 3
    message = r"cannot write .*run/checkpoints \(File too large"
    fail_to_save(config, str(workdir), message, limit=2_000)
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
        assert checkpoints.progress().step == 2
    assert int(train_and_evaluate(config, str(workdir)).step) == 3


@pytest.mark.slow
def test_a_command_whose_files_may_not_grow_ends_in_one_line(config, tmp_path):
    workdir = tmp_path / "run"
    config.embedding_size, config.max_steps = 64, 4
    code = (
        "import resource\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))\n"
        "from srgnn_jax.main import main\n"
        "main()\n"
    )
    train_and_evaluate(config, str(workdir))
    command = command_of(config, workdir, "--config.max_steps=8")
    command[1:3] = ["-c", code]
    # The limit would cut off JAX's compilation cache too.
    environment = {**ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = f"error: cannot write a checkpoint to {workdir}/checkpoints (File too large)"
    assert said in done.stderr


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "counts.json", "lock", "vocabulary.parquet"]
)
def test_what_cannot_be_written_in_the_workdir_is_named(config, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"run/{name}"):
        train_and_evaluate(config, str(tmp_path / "run"))


def test_a_workdir_that_turns_read_only(config, tmp_path, monkeypatch):
    def read_only(self, *arguments, **named):
        raise OSError(30, "Read-only file system", str(self))

    config.epochs = 0
    train_and_evaluate(config, str(tmp_path / "prepared_before"))
    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(UserError, match=r"counts.json: Read-only file system"):
        train_and_evaluate(config, str(tmp_path / "run"))


def test_prepared_data_that_vanishes(config, tmp_path, whole, monkeypatch):
    def vanish():
        shutil.rmtree(config.prepared_dir)

    config.max_steps = 7
    with monkeypatch.context() as patch:
        patch.setattr(tqdm, "update", at_call(tqdm.update, 3, vanish))
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not Path(config.prepared_dir).exists()
    # It is prepared again, as long as the raw log exists.
    config.max_steps = 0
    state = train_and_evaluate(config, str(tmp_path / "run"))
    assert int(state.step) == whole["last"][0]["step"]
    shutil.rmtree(config.prepared_dir)
    shutil.rmtree(config.data_dir)
    with pytest.raises(UserError, match=r"config\.data_dir = .* does not exist"):
        train_and_evaluate(config, str(tmp_path / "run"))


def test_two_runs_in_one_workdir(config, tmp_path):
    config.epochs = 1
    with only_run(make_workdir(str(tmp_path / "run"))):
        with pytest.raises(UserError, match=rf"another run .*process {os.getpid()} on"):
            train_and_evaluate(config, str(tmp_path / "run"))
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"lock"}
    train_and_evaluate(config, str(tmp_path / "run"))
    with only_run(tmp_path / "run"):
        evaluate_workdir(str(tmp_path / "run"))


def test_a_dead_runs_lock_does_not_block(tmp_path):
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('process 7 on elsewhere', file=file, flush=True)\n"
        "print(flush=True)\n"
        "time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="process 7"), only_run(tmp_path):
            pass
        other.kill()
    assert (tmp_path / "lock").read_text()
    with only_run(tmp_path):
        pass


def test_divergence_names_the_steps_and_keeps_the_last_good_checkpoint(
    config, tmp_path, monkeypatch
):
    config.checkpoint_every_steps, config.log_every_steps = 3, 2
    with monkeypatch.context() as patch:

        def spoil(self, batch):
            params = {**self.state.params}
            params["item_embedding"] = params["item_embedding"].at[3].set(np.nan)
            self.state = self.state._replace(params=params)

        def after_step(run):
            if run.progress.step == 4:
                spoil(run, None)

        check = epochs.Run.check_signals
        patch.setattr(
            epochs.Run, "check_signals", lambda run: (after_step(run), check(run))
        )
        with pytest.raises(
            UserError,
            match=r"loss is nan at step 6 \(finite up to step 4\); .* smaller",
        ):
            train_and_evaluate(config, str(tmp_path / "run"))
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "run")) as checkpoints:
        assert checkpoints.latest_step() == 3


def test_a_parameter_that_is_not_finite_is_not_saved(config, tmp_path, monkeypatch):
    """The loss before the last update is finite; the parameters after it are not."""
    config.checkpoint_every_steps, config.l2 = 2, 0.0
    schedule = config_lib.make_schedule

    def diverging(*arguments):
        schedule(*arguments)
        return lambda step: np.inf * (step >= 3) + 0.01

    monkeypatch.setattr(config_lib, "make_schedule", diverging)
    with pytest.raises(UserError, match="holds NaN or infinity at step 4"):
        train_and_evaluate(config, str(tmp_path / "run"))
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / "run")) as checkpoints:
        assert checkpoints.latest_step() == 2


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(tmp_path):
    _, hits = kill_and_resume(tmp_path, kills=5, loss_type="BPR")
    assert hits.total() == 5
