"""Several processes, started as a user would, are one run; a lost one ends the rest."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

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

pytestmark = pytest.mark.slow


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
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "srgnn_jax.main", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(config, workdir, *flags):
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
        )
        for number in range(2)
    ]


def records(workdir):
    """What a run recorded, but for what depends on the clock, by step and keys."""
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
    return records(workdir)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-5)


def test_two_processes_of_four_devices_are_one_of_eight(config, one_process, tmp_path):
    runs = start_two(config, tmp_path, "--config.max_steps=42")
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert_same(records(tmp_path), one_process)
    # Only the first prints and records.
    assert "epoch 3:" in outputs[0]
    assert "epoch" not in outputs[1]


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
        assert "gone" in output or "another task died" in output
    finally:
        for run in runs:
            with contextlib.suppress(ProcessLookupError):
                run.kill()
    again = start_two(config, tmp_path, "--config.max_steps=42")
    outputs = [run.communicate(timeout=300)[0] for run in again]
    assert [run.returncode for run in again] == [0, 0], outputs
    assert "continuing from the checkpoint" in outputs[0]
    found = records(tmp_path)
    assert_same({k: v for k, v in found.items() if k in one_process}, one_process)


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
