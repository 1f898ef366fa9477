"""A custom layer, readout and loss: each works in every mode.

The code is that of docs/own_model.md.
"""

import functools
import importlib.util
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax import GNN, SRGNN, Recommender, connection_matrix, train_and_evaluate
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.workdir import evaluate_workdir
from srgnn_jax.main import custom_parts
from srgnn_jax.model.srgnn import init_params
from srgnn_jax.runs.checkpoint import Checkpoints
from srgnn_jax.serve import export
from tests.command import srgnn
from tests.tiny import old_run, tiny_config

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "own_model.md"
EXAMPLES = re.findall(r"```python\n(# \w+\.py\n.*?)```", PAGE.read_text(), re.DOTALL)


def example(name, folder, monkeypatch):
    """Returns the model, losses and config of an example file on the page."""
    (source,) = (text for text in EXAMPLES if text.startswith(f"# {name}.py"))
    assert len(source.splitlines()) < 25
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Flax looks up the module of a class by its name.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return *custom_parts(module), module.get_config()


@pytest.mark.slow  # all modes of one example take half a minute
@pytest.mark.parametrize("name", ["layer", "readout", "loss"])
def test_an_example_goes_through_every_mode(name, tmp_path, monkeypatch):
    model, losses, given = example(name, tmp_path, monkeypatch)
    config = tiny_config(tmp_path)
    config.update(loss_type=given.loss_type, epochs=1)
    whole = train_and_evaluate(config, str(tmp_path / "whole"), "", model, losses)
    config.max_steps = 3
    train_and_evaluate(config, str(tmp_path / "parts"), "", model, losses)
    config.max_steps = 0
    parts = train_and_evaluate(config, str(tmp_path / "parts"), "", model, losses)
    jax.tree.map(np.testing.assert_array_equal, whole.state, parts.state)
    workdir = str(tmp_path / "whole")
    assert evaluate_workdir(workdir, None, model)["recall@20"] > 0.5
    recommender = Recommender.load(workdir, model)
    (found,) = recommender.recommend([["item3", "item4"]], k=5)
    assert len(set(found.items)) == 5
    export.export_workdir(workdir, str(tmp_path / "exported"), k=5, model=model)
    if model is not None:
        for use in (
            lambda: Recommender.load(workdir),
            lambda: evaluate_workdir(workdir),
            lambda: train_and_evaluate(config, workdir),
        ):
            with pytest.raises(UserError, match=r"of the model SRGNN\(.*pass what"):
                use()
    else:
        with pytest.raises(UserError, match=r"sampled.*get_losses"):
            train_and_evaluate(config, workdir)
    if name == "readout":
        with pytest.raises(UserError, match="click_weights"):
            recommender.explain(["item3"])


@pytest.mark.slow  # trains, recommends and exports in processes
def test_a_config_file_hands_its_model_in(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    model, _, _ = example("layer", tmp_path, monkeypatch)
    workdir = f"--workdir={tmp_path / 'run'}"
    here = [f"--config={tmp_path / 'layer.py'}"]
    data = [
        f"--config.data_dir={config.data_dir}",
        f"--config.prepared_dir={config.prepared_dir}",
        "--config.test_days=0.35",
        "--config.max_steps=1",
        "--config.select_on=last",
        "--config.embedding_size=8",
        "--config.parallel=jit",
    ]
    trained = srgnn(*here, *data, workdir)
    assert trained.returncode == 0, trained.stderr
    sessions = tmp_path / "sessions.jsonl"
    sessions.write_text('{"session": ["item3", "item4"]}\n')
    asked = ["--mode=recommend", workdir, f"--sessions={sessions}"]
    assert '"items"' in srgnn(*asked, *here).stdout
    monkeypatch.setattr(export, "LENGTHS", ())
    export.export_workdir(
        str(tmp_path / "run"), str(tmp_path / "out"), k=5, model=model
    )
    with pytest.raises(UserError, match=r"of the model SRGNN\(gnn=MeanOfNeighbours\)"):
        Recommender.load(str(tmp_path / "run"))


def test_a_checkpoint_names_its_model_and_refuses_other_sizes(tmp_path):
    workdir = old_run(tmp_path)
    assert Checkpoints(workdir).progress().model == "SRGNN"

    def wider(config, num_items):
        return SRGNN(num_items, config.embedding_size + 2)

    with pytest.raises(UserError, match=r"gnn/b_hh.*\(24,\).*\(30,\)"):
        Recommender.load(workdir, wider)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda config, num_items: object(), "object.*lacks num_items"),
        (lambda config, num_items: SRGNN(num_items + 1, 8), "num_items"),
    ],
)
def test_what_is_no_model_is_refused(make, message, tmp_path):
    config = tiny_config(tmp_path)
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, str(tmp_path / "run"), model=make)


def numpy_cell(p, a, hidden):
    """Equations 1 to 5, node by node."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    length, d = hidden.shape
    edges_in = hidden @ p["linear_edge_in"]["kernel"] + p["linear_edge_in"]["bias"]
    edges_out = hidden @ p["linear_edge_out"]["kernel"] + p["linear_edge_out"]["bias"]
    found = np.zeros_like(hidden)
    for v in range(length):
        before = sum(a[v, u] * edges_in[u] for u in range(length)) + p["b_iah"]
        after = sum(a[v, length + u] * edges_out[u] for u in range(length)) + p["b_oah"]
        i = np.concatenate([before, after]) @ p["w_ih"] + p["b_ih"]
        h = hidden[v] @ p["w_hh"] + p["b_hh"]
        r, z = sigmoid(i[:d] + h[:d]), sigmoid(i[d : 2 * d] + h[d : 2 * d])
        n = np.tanh(i[2 * d :] + r * h[2 * d :])
        found[v] = (1 - z) * hidden[v] + z * n
    return found


def test_the_documented_form_is_that_of_the_equations():
    step, rng = 3, np.random.default_rng(3)
    with jax.enable_x64(True):
        # Rows of any sum, and of any sign.
        a = rng.normal(size=(3, 6, 12))
        hidden = rng.normal(size=(3, 6, 5))
        gnn = GNN(embedding_size=5, step=step)
        shapes = jax.eval_shape(gnn.init, jax.random.key(0), a, hidden)["params"]
        params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
        found = jax.jit(gnn.apply)({"params": params}, a, hidden)
        cell = functools.partial(gnn.apply, method=gnn.GNNCell)
        once = jax.jit(cell)({"params": params}, a, hidden)
    for b in range(3):
        expected = hidden[b]
        for n in range(step):
            expected = numpy_cell(params, a[b], expected)
            if n == 0:
                np.testing.assert_allclose(once[b], expected, atol=1e-12)
        np.testing.assert_allclose(found[b], expected, atol=1e-12)


def test_flax_sees_the_layers():
    item_seq, length = jnp.array([[1, 2, 3, 2, 4]]), jnp.array([5])
    model = SRGNN(9, 4)
    variables = {"params": init_params(model, 0)}
    apply = functools.partial(model.apply, capture_intermediates=True, mutable=True)
    _, captured = jax.jit(apply)(variables, item_seq, length)
    seen = captured["intermediates"]
    (hidden,) = seen["gnn"]["__call__"]
    _, _, a = connection_matrix(item_seq)
    embedded = variables["params"]["item_embedding"][item_seq]
    gnn = {"params": variables["params"]["gnn"]}
    expected = jax.jit(GNN(4).apply)(gnn, a, embedded)
    np.testing.assert_allclose(hidden, expected, rtol=1e-6)
    assert seen["readout"]["linear_two"]["__call__"][0].shape == (1, 5, 4)
    assert seen["readout"]["click_weights"][0].shape == (1, 5)
    wide = {"width": 200}
    table = model.tabulate(jax.random.key(0), item_seq, length, console_kwargs=wide)
    assert all(name in table for name in ("gnn", "readout", "item_embedding"))
