"""metrics.jsonl: complete lines, none twice, even if a killed run resumes."""

import contextlib
import errno
import json
import os
import pathlib

import pytest

from srgnn_jax.errors import UserError, reason
from srgnn_jax.runs import workdir
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.records import MetricsWriter


def write(workdir, *records):
    with contextlib.closing(MetricsWriter(workdir, 9)) as writer:
        for step, metrics in records:
            writer.write(step, metrics)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_one_object_a_line(tmp_path):
    lines = write(tmp_path, (1, {"train/loss": 0.5}), (2, {"train/loss": 0.25}))
    assert lines == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25}]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_same_step_and_keys_are_not_written_twice(tmp_path):
    write(tmp_path, (1, {"a": 1.0}), (1, {"a": 2.0}), (1, {"b": 3.0}))
    lines = write(tmp_path, (1, {"a": 4.0}), (2, {"a": 5.0}))
    assert lines == [
        {"step": 1, "a": 1.0},
        {"step": 1, "b": 3.0},
        {"step": 2, "a": 5.0},
    ]


def test_half_a_line_is_dropped(tmp_path):
    write(tmp_path, (1, {"a": 1.0}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    lines = write(tmp_path, (2, {"a": 2.0}))
    assert lines == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path, 9)) as writer:
        writer.write(1, {"a": 1.0})
        assert (tmp_path / "metrics.jsonl").read_text().endswith("\n")


def test_a_line_that_is_no_record_is_named(tmp_path):
    write(tmp_path, (1, {"a": 1.0}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("garbage\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: .*garbage"):
        write(tmp_path, (2, {"a": 2.0}))


def test_a_disabled_writer_leaves_the_workdir_alone(tmp_path):
    writer = MetricsWriter(tmp_path, 9, enabled=False)
    writer.write(1, {"train/loss": 2.0})
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("the quota is used up"), "the quota is used up"),
        (OSError(), "OSError"),
        (ValueError("first line\nsecond line"), "first line"),
        (ValueError("a: b [os_error_code='28']"), os.strerror(28)),
    ],
)
def test_what_an_error_says_is_one_line_and_never_none(error, said):
    assert reason(error) == said


def test_errors_without_a_code_are_told_wherever_a_workdir_is_written(
    tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError("the quota is used up")

    def lock():
        with workdir.only_run(tmp_path):
            pass

    def save():
        Checkpoints(tmp_path).save({}, Progress({}, "", "", 3))

    # Its imports have to read files before that fails.
    write(tmp_path)
    for owner, name, do in (
        (pathlib.Path, "mkdir", lambda: workdir.make_workdir(str(tmp_path / "run"))),
        (pathlib.Path, "open", lambda: MetricsWriter(tmp_path, 9)),
        (pathlib.Path, "mkdir", save),
        (pathlib.Path, "open", lock),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(UserError, match="the quota is used up"):
                do()
