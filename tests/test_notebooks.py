"""Notebooks run from top to bottom, and are stored without what they print."""

import base64
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))

# What makes a run tiny, after the notebook's own settings.
SMALL = """
config.prepared_dir = "prepared"
config.train_fraction, config.embedding_size, config.epochs = 0.1, 16, 2
config.batch_size, config.learning_rate = 256, 0.01
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_that_it_printed_is_stored(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"].keys() <= {"tags"}
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "clear all outputs before you commit"
            assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_to_do_where_it_is_not_installed_is_told(path, monkeypatch):
    inputs = pytest.importorskip("IPython.core.inputtransformer2")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if "install" in c["metadata"].get("tags", []))
    code = inputs.TransformerManager().transform_cell("".join(cell["source"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="on Colab set REPOSITORY above"):
        exec(code, {})


def test_the_code_of_how_it_works_prints_what_it_says(capsys):
    page = (ROOT / "docs" / "how_it_works.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    said = re.findall(r"^print\(.*\)  # (\[[^]]*\])", code, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == 3


def execute(name, settings, checks, folder):
    """Runs a notebook in a folder, with more settings, and checks in its last cell.

    Returns:
      All text that it printed, and its pictures.
    """
    pytest.importorskip("ipykernel")
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(nbformat.v4.new_code_cell(settings))
    notebook.cells = [*cells, nbformat.v4.new_code_cell(checks)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(folder)}
    # Neither the eight devices nor the backend of the tests.
    for variable in ("XLA_FLAGS", "MPLBACKEND"):
        environment.pop(variable, None)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    text = "".join(output.get("text", "") for output in outputs)
    pictures = [
        base64.b64decode(output.data["image/png"])
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    return text, pictures


@pytest.mark.slow  # trains
def test_train_on_tpu(tmp_path):
    lost = "config.max_steps = 7\n"
    lost += "from srgnn_jax.train.loop import train_and_evaluate\n"
    lost += "train_and_evaluate(config, WORKDIR)\nconfig.max_steps = 0"
    checks = """
assert run["steps"] == trained.step > 7
assert trained.metrics["recall@20"] == means["recall@20"]
assert run["test"]["recall@20"] == means["recall@20"] > 0.4
assert run["test"]["mrr@20"] == means["mrr@20"] > 0.2
"""
    text, pictures = execute("train_on_tpu", SMALL + lost, checks, tmp_path)
    assert "continuing from the checkpoint of step 7, epoch 0" in text
    assert [len(picture) > 10_000 for picture in pictures] == [True, True]
    assert "\r" not in text


@pytest.mark.slow  # trains
def test_own_clicks(tmp_path):
    checks = """
assert recommended["session"].n_unique() == len(clicks.sessions())
assert recommended.group_by("session").len()["len"].unique().to_list() == [5]
assert len(why.parts) == len(session)
assert trained.metrics["recall@20"] > 0.2
"""
    text, pictures = execute("own_clicks", SMALL, checks, tmp_path)
    assert "clicks.parquet: session from 'session'" in text
    assert "STAN test" in text
    assert [len(picture) > 10_000 for picture in pictures] == [True]


@pytest.mark.slow  # trains
def test_recommend(tmp_path):
    checks = """
assert found.unknown == explanation.unknown == ["never seen"]
assert len(found.items) == 10 and not set(found.items) & set(session)
assert 0 < found.scores[-1] <= found.scores[0] < 1
assert explanation.items == session[:-1]
assert explanation.item == found.items[0]
assert len(explanation.parts) == len(session) - 1
assert unknown.fallback and not known.fallback
assert set(unknown.items + known.items) <= set(stock)
"""
    _, pictures = execute("recommend", SMALL, checks, tmp_path)
    assert [len(picture) > 10_000 for picture in pictures] == [True]


@pytest.mark.slow  # compiles five models
def test_parity_with_pytorch(tmp_path):
    pytest.importorskip("torch")
    checks = """
assert largest < parity.FLOAT32_BOUNDS["scores"]
assert not any(parity.exceeded(one, parity.FLOAT32_BOUNDS) for one in found)
"""
    text, pictures = execute("parity_with_pytorch", "", checks, tmp_path)
    assert "recbole: 2,000 item rows of 64 numbers, step 1" in text
    assert [len(picture) > 10_000 for picture in pictures] == [True, True]
