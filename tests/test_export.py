"""Exports stand alone: the same lists where the package cannot be imported."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest

from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.errors import UserError
from srgnn_jax.serve.export import export_workdir
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.train.loop import train_and_evaluate
from tests.test_main import srgnn
from tests.tiny import tiny_config

pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")

SESSIONS = [
    ["item3", "item4", "nope", "item4"],
    [],
    ["nope", "nope", "item 8"],
    *([f"item{n % 20}" for n in range(length)] for length in (1, 5, 17, 70, 300)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run, exported by the command line."""
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.redirect_stdout(io.StringIO()):
        train_and_evaluate(tiny_config(folder), str(folder / "run"))
    done = srgnn(
        "--mode=export", f"--workdir={folder / 'run'}", f"--output={folder / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    assert "for lists of 20 items" in done.stdout
    return folder


def elsewhere(folder, code, allowed=("jax", "numpy", "flatbuffers")):
    """Runs code where recommender.py is all there is of the package."""
    blocked = ["srgnn_jax", "flax", "optax", "orbax", "polars", "jaxtyping", "tqdm"]
    assert not {*blocked} & {*allowed}
    setup = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n"
    return subprocess.run(
        [sys.executable, "-c", setup + code],
        cwd=folder / "out",
        capture_output=True,
        text=True,
    )


def test_the_loader_alone_gives_the_same_lists(folder):
    code = (
        "import json\n"
        "from recommender import Recommender\n"
        "recommender = Recommender.load('.')\n"
        f"found = recommender.recommend({SESSIONS})\n"
        f"print(json.dumps([found, recommender.recommend({SESSIONS[:2]}, k=3)]))\n"
    )
    done = elsewhere(folder, code)
    assert done.returncode == 0, done.stderr
    found, short = json.loads(done.stdout)
    expected = Recommender.load(folder / "run").recommend(SESSIONS)
    for (items, scores, unknown, fallback), ours in zip(found, expected, strict=True):
        assert items == ours.items
        np.testing.assert_allclose(scores, ours.scores, atol=1e-5)
        assert (unknown, fallback) == (ours.unknown, ours.fallback)
    assert [one[0] for one in short] == [one.items[:3] for one in expected[:2]]
    assert [one[3] for one in found[:3]] == [False, True, True]


def test_a_k_beyond_the_exported_one_is_refused(folder):
    code = "from recommender import *\nRecommender.load('.').recommend([[]], k=21)"
    assert "k is 21; this export gives 1 to 20 items" in elsewhere(folder, code).stderr


def test_the_manifest_names_versions_platforms_and_fingerprints(folder):
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    vocabulary = Vocabulary.load(folder / "run" / "vocabulary.parquet")
    assert manifest["vocabulary"] == vocabulary.fingerprint()
    files = {path.name for path in (folder / "out").iterdir() if path.is_file()}
    assert {*manifest["files"], "manifest.json"} == files
    assert manifest["jax"]
    assert manifest["calling_convention"]


def test_an_export_is_made_again_in_its_place_and_a_changed_file_is_told(
    folder, tmp_path
):
    output = tmp_path / "out"
    with contextlib.redirect_stdout(io.StringIO()):
        export_workdir(str(folder / "run"), str(output), k=5)
        before = json.loads((output / "manifest.json").read_text())
        with (output / "vocabulary.json").open("a") as file:
            file.write(" ")
        done = elsewhere(tmp_path, "import recommender as r\nr.Recommender.load('.')")
        assert "vocabulary.json is not the file that was exported" in done.stderr
        export_workdir(str(folder / "run"), str(output), k=5)
    assert json.loads((output / "manifest.json").read_text())["k"] == before["k"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_told(folder, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="holds something else; choose another"):
        export_workdir(str(folder / "run"), str(tmp_path))
    assert (tmp_path / "mine").read_text() == "precious"
    with pytest.raises(UserError, match="k is 0"):
        export_workdir(str(folder / "run"), str(tmp_path / "new"), k=0)
