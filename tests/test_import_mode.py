"""A PyTorch checkpoint becomes a workdir: evaluated, trained on, with known items."""

import jax
import numpy as np
import pytest

from srgnn_jax import config as config_lib
from srgnn_jax.configs import default
from srgnn_jax.convert import params_to_torch
from srgnn_jax.convert.import_mode import import_checkpoint
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices.layouts import Devices
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.workdir import evaluate_workdir
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.runs.workdir import only_run
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.loop import train_and_evaluate
from tests.tiny import ITEMS, tiny_config
from tests.torch_files import Call, Global, tensors, write_pth, write_safetensors


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


@pytest.fixture
def data(config):
    return config_lib.load_data(config)


def make_checkpoint(folder, config, num_items=ITEMS + 1, seed=3):
    """Returns random parameters, and the path of their RecBole checkpoint."""
    model = config_lib.make_model(config, num_items)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_params(model, 0)),
    )
    weights = params_to_torch(params, "recbole")
    path = write_safetensors(folder / "weights.safetensors", weights)
    return params, str(path)


def imported_params(workdir, like, step=0):
    checkpoints = Checkpoints(workdir)
    wanted = Devices().layout({"params": jax.eval_shape(lambda: like)})
    params = checkpoints.restore(wanted, step)["params"]
    checkpoints.close()
    return params


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_workdir_is_evaluated_and_trained_on(tmp_path, config, capsys, averaging):
    config.select_on, config.averaging = "last", averaging
    params, path = make_checkpoint(tmp_path, config)
    workdir = tmp_path / "run"
    import_checkpoint(config, str(workdir), path)
    assert "imported 21 item rows of 8 numbers" in capsys.readouterr().out
    found = imported_params(workdir, params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert 0 < evaluate_workdir(str(workdir))["recall@5"] < 1
    assert "step 0: no epoch is complete" in capsys.readouterr().out
    # The first step starts from the weights: Adam moves each by the learning rate.
    config.max_steps = 1
    state = train_and_evaluate(config, str(workdir))
    assert "continuing from the checkpoint of step 0" in capsys.readouterr().out
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.params, params)
    assert all(
        0 < step < 1.001 * config.learning_rate for step in jax.tree.leaves(moved)
    )


@pytest.mark.parametrize("source", ["recbole", "recbole_gnn"])
def test_the_checkpoint_decides_the_model(tmp_path, config, source, capsys):
    params, _ = make_checkpoint(tmp_path, config)
    recbole = Global("recbole.config.configurator", "Config")
    root = {
        "config": Call(recbole, state={"final_config_dict": {"step": 3}}),
        "state_dict": tensors(params_to_torch(params, source)),
    }
    path = write_pth(tmp_path / "SRGNN.pth", root)
    config.embedding_size = 5
    config.readout = "local"
    config.update(normalize=True, reverse_positions=3, softmax_attention=True)
    import_checkpoint(config, str(tmp_path / "run"), str(path))
    shown = capsys.readouterr().out
    expected = {
        "embedding_size": 8,
        "readout": "hybrid",
        "step": 3,
        "normalize": False,
        "reverse_positions": 0,
        "softmax_attention": False,
    }
    for field, value in expected.items():
        assert f"config.{field}: {value}, as in the checkpoint" in shown
    assert config.embedding_size == 5
    checkpoints = Checkpoints(tmp_path / "run")
    stored = checkpoints.progress().config
    checkpoints.close()
    assert {field: stored[field] for field in expected} == expected
    assert Recommender.load(tmp_path / "run").model.step == 3


def test_rows_are_matched_by_raw_id(tmp_path, config, data, capsys):
    params, path = make_checkpoint(tmp_path, config, num_items=ITEMS + 3)
    ids = [*reversed(data.vocabulary.ids), "gone1", "gone2"]
    names = tmp_path / "ids.txt"
    names.write_text("\n".join(["[PAD]", *ids]) + "\n")
    workdir = tmp_path / "run"
    import_checkpoint(config, str(workdir), path, str(names))
    assert "dropped 2 item rows" in capsys.readouterr().out
    expected = np.asarray(params["item_embedding"])
    expected = np.concatenate([expected[:1], expected[ITEMS:0:-1]])
    found = imported_params(workdir, {**params, "item_embedding": expected})
    np.testing.assert_array_equal(found["item_embedding"], expected)
    assert Recommender.load(workdir).vocabulary.ids == data.vocabulary.ids


def test_vocabulary_file_alone(tmp_path, config):
    _, path = make_checkpoint(tmp_path, config, num_items=4)
    names = tmp_path / "ids.txt"
    names.write_bytes("b\r\n\u00e4 \u2028x\r\na".encode())
    import_checkpoint(default.get_config(), str(tmp_path / "run"), path, str(names))
    saved = Vocabulary.load(tmp_path / "run" / "vocabulary.parquet")
    assert saved.ids == ["b", "\u00e4 \u2028x", "a"]
    checkpoints = Checkpoints(tmp_path / "run")
    progress = checkpoints.progress()
    checkpoints.close()
    assert progress.num_items == 4
    assert progress.vocabulary == saved.fingerprint()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", "b"], "2 item ids, the weights have 20 item rows"),
        (["a", "", "c"], r"ids.txt, line 2: an item id is empty"),
        (
            ["[PAD]", "a", "b", "a"],
            r"ids.txt, line 4: 'a' is on line 2 too",
        ),
        (None, "cannot read --vocabulary=.*ids.txt: No such file"),
        (
            [f"other{n}" for n in range(ITEMS)],
            "20 of the data set's 20 items have no row",
        ),
    ],
)
def test_vocabulary_files_that_do_not_fit(tmp_path, config, lines, message):
    _, path = make_checkpoint(tmp_path, config)
    names = tmp_path / "ids.txt"
    if lines is not None:
        names.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        import_checkpoint(config, str(tmp_path / "run"), path, str(names))
    assert not (tmp_path / "run").exists()


def test_other_refusals(tmp_path, config):
    _, path = make_checkpoint(tmp_path, config, num_items=7)
    workdir = str(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"7 item rows .* click_log has 21.*--vocabulary"
    ):
        import_checkpoint(config, workdir, path)
    with pytest.raises(UserError, match="no item ids: name the data set"):
        import_checkpoint(default.get_config(), workdir, path)
    _, path = make_checkpoint(tmp_path, config)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the workdir"):
        import_checkpoint(config, str(tmp_path / "file" / "run"), path)
    import_checkpoint(config, workdir, path)
    with pytest.raises(UserError, match="holds a run already; choose another"):
        import_checkpoint(config, workdir, path)


def test_a_workdir_in_which_a_run_begins_is_refused(tmp_path, config):
    _, path = make_checkpoint(tmp_path, config)
    workdir = tmp_path / "run"
    workdir.mkdir()
    with only_run(workdir), pytest.raises(UserError, match="another run is training"):
        import_checkpoint(config, str(workdir), path)
    assert not (workdir / "vocabulary.parquet").exists()
