"""Several processes, started like a user's, are one run; a lost one ends the rest."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from srgnn_jax.devices import processes
from srgnn_jax.errors import UserError
from srgnn_jax.serve.recommend import Recommender
from tests.tiny import write_log

ROOT = Path(__file__).parents[1]
CONFIG = """
from srgnn_jax.configs import click_log


def get_config():
    c = click_log.get_config()
    c.data_dir, c.prepared_dir = {data!r}, {prepared!r}
    c.test_days, c.embedding_size, c.batch_size = 0.35, 8, 32
    c.learning_rate, c.epochs, c.patience, c.log_every_steps = 0.01, 400, 0, 1
    c.checkpoint_every_steps = 5
    return c
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_log(folder / "data" / "log.csv")
    path = folder / "config.py"
    data, prepared = str(folder / "data"), str(folder / "prepared")
    path.write_text(CONFIG.format(data=data, prepared=prepared))
    return path


def start(config, workdir, devices, *flags):
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
    }
    # Compile as users' processes do.
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "srgnn_jax.main", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(config, workdir, *flags, only_first=(), only_second=()):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            config,
            workdir,
            4,
            f"--coordinator_address=localhost:{port}",
            "--num_processes=2",
            f"--process_id={number}",
            *flags,
            *(only_first, only_second)[number],
        )
        for number in range(2)
    ]


def records(workdir):
    """Returns a run's records except for times, by step and keys."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = {}
    for record in map(json.loads, lines):
        values = {k: v for k, v in record.items() if "second" not in k}
        key = (record["step"], frozenset(values))
        assert key not in found
        found[key] = values
    return found


@pytest.fixture(scope="module")
def one_process(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    run = start(config, workdir, 8, "--config.parallel=mesh", "--config.max_steps=42")
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    return workdir


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-5)


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_of_eight(config, one_process, tmp_path):
    runs = start_two(config, tmp_path, "--config.max_steps=42")
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert_same(records(tmp_path), records(one_process))
    # Only the first process prints and records.
    assert "epoch 3:" in outputs[0]
    assert "epoch" not in outputs[1]


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_both_go_on(config, one_process, tmp_path):
    runs = start_two(config, tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "checkpoints" / "15").is_dir():
            assert time.monotonic() < deadline
            assert [run.poll() for run in runs] == [None, None]
            time.sleep(0.2)
        runs[1].send_signal(signal.SIGKILL)
        output, _ = runs[0].communicate(timeout=60)
        runs[1].communicate()
        assert runs[0].returncode != 0
        # Ours, JAX's, or that of Gloo in XLA, which aborts the process itself.
        said = ("gone", "another task died", "Fatal Python error: Aborted")
        assert any(words in output for words in said), output[-3000:]
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                run.kill()
    again = start_two(config, tmp_path, "--config.max_steps=42")
    outputs = [run.communicate(timeout=300)[0] for run in again]
    assert [run.returncode for run in again] == [0, 0], outputs
    assert "continuing from the checkpoint" in outputs[0]
    found, whole = records(tmp_path), records(one_process)
    assert_same({k: v for k, v in found.items() if k in whole}, whole)


@pytest.mark.slow
def test_two_processes_begin_with_what_one_has_learnt(config, one_process, tmp_path):
    flags = f"--config.warm_start={one_process}", "--config.epochs=0"
    runs = start_two(config, tmp_path, *flags)
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    parent, warm = (Recommender.load(of) for of in (one_process, tmp_path))
    assert warm.progress.parents
    jax.tree.map(np.testing.assert_array_equal, warm.params, parent.params)


@pytest.mark.slow
def test_a_signal_to_one_stops_both(config, tmp_path):
    runs = start_two(config, tmp_path, "--config.checkpoint_every_minutes=0.01")
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "checkpoints" / "5").is_dir():
            assert time.monotonic() < deadline
            assert [run.poll() for run in runs] == [None, None]
            time.sleep(0.2)
        runs[1].send_signal(signal.SIGTERM)
        outputs = [run.communicate(timeout=120)[0] for run in runs]
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                run.kill()
    assert [run.returncode for run in runs] == [143, 143], outputs
    for output in outputs:
        assert "SIGTERM: saved at step" in output


def ended(runs):
    """Returns the output of processes, which must end with an error."""
    try:
        outputs = [run.communicate(timeout=150)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert all(run.returncode for run in runs), outputs
    return outputs


@pytest.mark.slow
def test_where_the_first_cannot_prepare_the_others_end_too(config, tmp_path):
    first, second = ended(
        start_two(config, tmp_path, only_first=["--config.data_dir=nowhere"])
    )
    assert "error: config.data_dir = 'nowhere' does not exist" in first
    assert "error: process 0 has failed" in second or "another task died" in second


@pytest.mark.slow
def test_an_error_in_one_is_told_and_ends_both(config, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        config.read_text() + "\n\ndef get_losses():\n"
        "    import jax\n"
        "    from srgnn_jax.model.losses import Loss\n\n"
        "    def loss(*_):\n"
        "        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')\n\n"
        "    return {'CE': Loss(loss)} if jax.process_index() else {}\n"
    )
    first, second = ended(start_two(broken, tmp_path / "run"))
    assert "Traceback" in second
    assert "RuntimeError: RESOURCE_EXHAUSTED: out of memory" in second
    assert "gone" not in second
    assert "gone" in first or "another task died" in first


GLOO = "Gloo AllGather failed: Read error [127.0.0.1]:1: Connection reset by peer"


@pytest.fixture
def two(monkeypatch):
    """Makes this process one of two; returns the texts that it would end with."""
    ends = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_end_at_once", ends.append)
    return ends


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"UNKNOWN: {GLOO}"),
        RuntimeError(f"FAILED_PRECONDITION: Buffer Definition Event: {GLOO}"),
        RuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: remote error"),
        RuntimeError("UNAVAILABLE: Task 1 heartbeat timeout"),
        RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"),
    ],
)
def test_an_error_of_a_lost_process_says_so(two, error):
    with processes.together():
        raise error
    with processes.together():
        raise UserError("cannot write a checkpoint") from error
    for text in two:
        assert "another process of the run is gone" in text
    assert str(error) in two[0]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4398 bytes"),
        ValueError("the shapes (3,) and (4,) do not match"),
        UserError("the loss is nan at step 3"),
        OSError(28, "No space left on device", "gloo"),
    ],
)
def test_other_errors_are_raised_as_they_are(two, error):
    with pytest.raises(type(error)) as raised, processes.together():
        raise error
    assert raised.value is error
    assert not two


def test_a_lost_process_means_nothing_to_one_that_is_alone(monkeypatch):
    monkeypatch.setattr(processes, "_end_at_once", pytest.fail)
    with pytest.raises(ValueError, match="Gloo"), processes.together():
        raise ValueError(GLOO)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no log"), "error: no log"),
        (RuntimeError("a bug"), "Traceback"),
        (ValueError(GLOO), "another process of the run is gone"),
    ],
)
def test_an_error_ends_a_joined_process_with_its_text(monkeypatch, two, error, said):
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *_, **__: None)
    with processes.joined("localhost:1", 2, 0):
        raise error
    (text,) = two
    assert str(error) in text
    assert said in text


def test_the_others_learn_that_the_main_process_has_failed(monkeypatch):
    sent = []
    monkeypatch.setattr(
        processes, "from_all", lambda value: sent.append(value) or [value]
    )
    with pytest.raises(KeyError), processes.main_process_first():
        raise KeyError
    with processes.main_process_first():
        pass
    assert sent == [False, True]
    monkeypatch.setattr(processes, "is_main_process", lambda: False)
    monkeypatch.setattr(processes, "from_all", lambda value: [False, value])
    inside = []
    with (
        pytest.raises(UserError, match="process 0 has failed"),
        processes.main_process_first(),
    ):
        inside.append(True)
    assert not inside
