"""Checkpoints: damage is noticed, and damaged ones are neither lost nor used."""

import contextlib
import json
import logging
import pathlib
import shutil
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.configs import default
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from srgnn_jax.runs import checkpoint
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import only_run
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state

GOLDEN = pathlib.Path(__file__).parent / "golden"


def make_state(value=0.0, size=3000):
    return {"params": jnp.arange(float(size)) + value, "loss": jnp.zeros(())}


def make_progress(step, **fields):
    return Progress({}, "data", "vocabulary", 3, step=step, **fields)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints: step 1 holds state 1, step 2 holds state 2."""
    folder = tmp_path_factory.mktemp("saved")
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(step), make_progress(step))
    return folder


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def newest(workdir):
    """Returns the step of the newest undamaged checkpoint, and the value it holds."""
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        step = checkpoints.progress().step
        state = checkpoints.restore(layouts.layout_of(make_state()), step)
    return step, float(state["params"][0])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_every_file_that_numbers_come_from_has_its_checksum(workdir):
    folder = workdir / "checkpoints" / "2"
    digests = json.loads((folder / "checksums.json").read_text())
    names = {path.relative_to(folder).as_posix() for path in files(folder)}
    assert names - set(digests) == {
        "checksums.json",
        # Orbax writes these last.
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
    }


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
def test_any_damage_is_named_and_the_one_before_is_used(
    saved, tmp_path, damage, caplog
):
    for number, path in enumerate(files(saved / "checkpoints" / "2")):
        name = path.relative_to(saved / "checkpoints" / "2").as_posix()
        if name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            continue
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        damage(workdir / "checkpoints" / "2" / name)
        caplog.clear()
        assert newest(workdir) == (1, 1.0)
        (warning,) = [r for r in caplog.records if r.name == checkpoint.log.name]
        assert warning.levelno == logging.WARNING
        assert str(workdir / "checkpoints" / "2") in warning.message
        # A flip in the checksums looks like damage to the file that they are for.
        assert name in warning.message or name == checkpoint.CHECKSUMS
        assert "step 1" in warning.message


@pytest.mark.parametrize("content", [None, "", "\x00{", '{"item_handlers": 3}'])
def test_what_has_no_checksum_changes_no_number(workdir, content):
    path = workdir / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    path.unlink() if content is None else path.write_text(content)
    assert newest(workdir) in [(2, 2.0), (1, 1.0)]


def test_half_a_checkpoint_is_not_used(workdir):
    shutil.rmtree(workdir / "checkpoints" / "2" / "state")
    assert newest(workdir) == (1, 1.0)


def test_where_all_are_damaged_each_is_named_and_none_changed(workdir):
    for step in "12":
        truncate(workdir / "checkpoints" / step / "state" / "manifest.ocdbt")
    before = [(path, path.read_bytes()) for path in files(workdir)]
    with pytest.raises(UserError) as error:
        newest(workdir)
    for step in "12":
        assert str(workdir / "checkpoints" / step) in str(error.value)
    assert "state/manifest.ocdbt is not what was saved" in str(error.value)
    assert [(path, path.read_bytes()) for path in files(workdir)] == before


def test_a_damaged_one_that_is_asked_for_is_refused(workdir):
    flip(workdir / "checkpoints" / "1" / "state" / "manifest.ocdbt")
    with (
        contextlib.closing(Checkpoints(workdir)) as checkpoints,
        pytest.raises(UserError, match=r"checkpoints/1 is damaged: state/manifest"),
    ):
        checkpoints.restore(layouts.layout_of(make_state()), 1)


def test_a_run_that_goes_on_sets_the_damaged_aside(workdir):
    folder = workdir / "checkpoints"
    truncate(folder / "2" / "state" / "manifest.ocdbt")
    damaged = [path.read_bytes() for path in files(folder / "2")]
    (folder / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.continue_from(checkpoints.progress().step)
        checkpoints.save(make_state(5), make_progress(2))
    assert newest(workdir) == (2, 5.0)
    (aside,) = folder.glob("damaged-2-*")
    assert [path.read_bytes() for path in files(aside)] == damaged
    assert {path.name for path in folder.iterdir()} == {"1", "2", aside.name}


def test_a_checkpoint_of_the_same_step_is_replaced(workdir):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(make_state(7), make_progress(2, best_step=2))
    assert newest(workdir) == (2, 7.0)


def test_a_save_that_fails_in_the_background_is_told(workdir, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(workdir)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digest", full)
        checkpoints.save(make_state(3), make_progress(3))
        with pytest.raises(UserError, match=r"run/checkpoints \(No space left on dev"):
            checkpoints.close()
    assert newest(workdir) == (2, 2.0)


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    with only_run(tmp_path):
        with (
            pytest.raises(UserError, match=r"another run .*process \d+ on "),
            only_run(tmp_path),
        ):
            pass
        # The refused run has not replaced the first.
        with (
            pytest.raises(UserError, match=r"another run .*process \d+ on "),
            only_run(tmp_path),
        ):
            pass
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    with only_run(tmp_path):
        assert "elsewhere" not in (tmp_path / "lock").read_text()


def test_every_difference_of_another_run_is_listed():
    config = config_lib.to_dict(default.get_config())
    stored = Progress(config, "data", "vocabulary", 3)
    other = {**config, "embedding_size": 7, "l2": 0.5, "progress": False}
    with pytest.raises(UserError) as error:
        config_lib.check_same_run(stored, Progress(other, "data2", "vocabulary2", 4))
    for difference in (
        "config.embedding_size: 100 -> 7",
        "config.l2: 1e-05 -> 0.5",
        "prepared data: 'data' -> 'data2'",
        "item ids: 'vocabulary' -> 'vocabulary2'",
        "item rows: 3 -> 4",
    ):
        assert difference in str(error.value)
    assert "progress" not in str(error.value)


def test_a_field_that_a_stored_config_lacks_has_its_default():
    config = config_lib.to_dict(default.get_config())
    older = {k: v for k, v in config.items() if k not in ("readout", "ks")}
    config_lib.check_same_run(Progress(older, "", "", 3), Progress(config, "", "", 3))
    assert config_lib.from_dict(older).ks == (5, 10, 20)
    other = Progress({**config, "readout": "local"}, "", "", 3)
    with pytest.raises(UserError, match=r"config.readout: '?hybrid'? -> '?local"):
        config_lib.check_same_run(Progress(older, "", "", 3), other)


def test_a_state_is_restored_to_the_bit(tmp_path):
    state = {"params": jax.random.normal(jax.random.key(0), (1000,))}
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, make_progress(1, epoch_loss=0.1 + 0.2))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.progress().epoch_loss == 0.1 + 0.2
        found = checkpoints.restore(layouts.layout_of(state), 1)
    np.testing.assert_array_equal(found["params"], state["params"])


def test_a_run_of_version_0_1_0_is_taken_up(tmp_path):
    """That version wrote the checkpoint, after one epoch of `tiny_config`."""
    with tarfile.open(GOLDEN / "run_0.1.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    recommender = Recommender.load(tmp_path / "run")
    first, second = recommender.recommend([["item3", "item4", "item3"], ["item7"]], k=3)
    assert first.items == ["item16", "item3", "item12"]
    assert second.items == ["item3", "item12", "item9"]
    expected = [0.10929825901985168, 0.09601502865552902, 0.0882553905248642]
    np.testing.assert_allclose(first.scores, expected, rtol=1e-5)
    with contextlib.closing(Checkpoints(tmp_path / "run")) as checkpoints:
        progress = checkpoints.progress()
        config = config_lib.from_dict(progress.config)
        model = config_lib.make_model(config, progress.num_items)
        optimizer = adam_with_l2(config_lib.make_schedule(config, 1), config.l2)
        start = init_state(model, optimizer, 0)
        state = checkpoints.restore(layouts.layout_of(start), progress.step)
    assert progress.model == "SRGNN"
    assert int(state.step) == progress.step == 14
    for moment in jax.tree.leaves(state.opt_state):
        assert np.any(moment)
