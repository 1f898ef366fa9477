"""Exports stand alone: they give the same lists without the package."""

import contextlib
import io
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.serve import card, export, exported
from srgnn_jax.serve.hub import push_to_hub
from srgnn_jax.serve.recommend import Recommender
from tests.command import run_command
from tests.tiny import old_run

pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")

SESSIONS = [
    ["item3", "item4", "nope", "item4"],
    [],
    ["nope", "nope", "item 8"],
    *([f"item{n % 20}" for n in range(length)] for length in (1, 5, 17, 70, 300)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run, exported from the command line."""
    folder = tmp_path_factory.mktemp("exported")
    workdir = old_run(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run_command(mode="export", workdir=workdir, output=folder / "out")
    assert "for lists of 20 items" in said.getvalue()
    return folder


def test_the_loader_alone_gives_the_same_lists(folder):
    """With recommender.py, but without the package."""
    blocked = ["srgnn_jax", "flax", "optax", "orbax", "polars", "jaxtyping", "tqdm"]
    code = (
        "import json, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        "from recommender import Recommender\n"
        "recommender = Recommender.load('.')\n"
        f"found = recommender.recommend({SESSIONS})\n"
        f"short = recommender.recommend({SESSIONS[:2]}, k=3)\n"
        f"recommender.recommend({SESSIONS[:2]}, exclude_seen=True)\n"
        "print(json.dumps([found, short]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "out", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, short = json.loads(done.stdout)
    expected = Recommender.load(folder / "run").recommend(SESSIONS)
    for (items, scores, unknown, fallback), ours in zip(found, expected, strict=True):
        assert items == ours.items
        np.testing.assert_allclose(scores, ours.scores, atol=1e-5)
        assert (unknown, fallback) == (ours.unknown, ours.fallback)
    assert [one[0] for one in short] == [one.items[:3] for one in expected[:2]]
    assert [one[3] for one in found[:3]] == [False, True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"exclude_seen": True},
        {"candidates": ["item7", "item3", "nope", "item12", "item7"]},
        {"candidates": ["item3", "item4"], "exclude_seen": True, "k": 2},
        {"candidates": [f"item{n}" for n in range(19)], "exclude_seen": True},
    ],
)
def test_what_may_be_listed_is_what_the_package_lists(folder, options):
    ours = Recommender.load(folder / "run").recommend(SESSIONS, **options)
    found = exported.Recommender.load(folder / "out").recommend(SESSIONS, **options)
    for one, expected in zip(found, ours, strict=True):
        assert one.items == expected.items
        np.testing.assert_allclose(one.scores, expected.scores, atol=1e-5)
        assert (one.unknown, one.fallback) == (expected.unknown, expected.fallback)


def test_candidates_that_leave_nothing_are_refused(folder, caplog):
    recommender = exported.Recommender.load(folder / "out")
    for wrong, message in [
        ([], "there are no candidates"),
        (["nope"], "none of 1 candidates is known: 'nope'"),
        ("item3", "candidates: 'item3' is not a list of item ids"),
    ]:
        with pytest.raises(ValueError, match=message):
            recommender.recommend([[]], candidates=wrong)
    recommender.recommend([[]], candidates=["item3", "nope"])
    assert "1 of 2 candidates is unknown: 'nope'" in caplog.text


def test_what_is_no_session_is_refused(folder):
    recommender = exported.Recommender.load(folder / "out")
    assert recommender.recommend([[" item3 "]]) == recommender.recommend([["item3"]])
    for wrong, message in [
        ("item3", "'item3' is not a list of sessions"),
        (["item3"], "session 0: 'item3' is not a list of item ids"),
        ([[1.5]], "session 0: an item id is 1.5; ids must be text or integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            recommender.recommend(wrong)


def test_a_k_beyond_the_exported_one_is_refused(folder):
    with pytest.raises(ValueError, match="k is 21; this export gives 1 to 20 items"):
        exported.Recommender.load(folder / "out").recommend([[]], k=21)


def test_the_manifest_names_versions_platforms_and_fingerprints(folder):
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    vocabulary = Vocabulary.load(folder / "run" / "vocabulary.parquet")
    assert manifest["vocabulary"] == vocabulary.fingerprint()
    files = {path.name for path in (folder / "out").iterdir() if path.is_file()}
    assert {*manifest["files"], "manifest.json"} == files
    assert manifest["jax"]
    assert manifest["calling_convention"]


def test_a_hub_of_models_finds_weights_a_config_and_a_card(folder):
    weights = load_file(folder / "out" / "model.safetensors")
    params = Recommender.load(folder / "run").params
    flat = traverse_util.flatten_dict(params, sep=".")
    assert weights.keys() == flat.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, flat[name])
    config = json.loads((folder / "out" / "config.json").read_text())
    assert (config["model_type"], config["num_items"]) == ("srgnn", 21)
    assert config["config"]["embedding_size"] == 8
    for file in ("config.json", "manifest.json"):
        settings = json.loads((folder / "out" / file).read_text())["config"]
        assert not [name for name in settings if "_dir" in name]
    page = (folder / "out" / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: srgnn_jax\n")
    assert "20 items, D = 8" in page
    assert "None were recorded" in page


def test_the_card_has_the_results_of_its_own_step(tmp_path):
    runs = [{"best_step": 7, "test": {"recall@20": 0.5, "mrr@20": 0.1725}}]
    found = {"protocol": {"select_on": "valid"}, "runs": runs}
    others = ("config", "data", "mean", "standard_deviation")
    found |= {name: {} for name in others}
    results_json.write(tmp_path / "results.json", found)
    manifest = {
        "config": {"name": "shop", "dataset": "click_log", "embedding_size": 8},
        **{"num_items": 21, "step": 7, "k": 20},
    }
    written = card.card(manifest, card._results(tmp_path, 7))
    assert "| mrr@20 | 17.25 |" in written
    assert "chosen on valid." in written
    assert card._results(tmp_path, 8) is None


def test_an_export_is_made_again_in_its_place_and_a_changed_file_is_told(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(export, "LENGTHS", ())
    output = tmp_path / "out"
    (tmp_path / "link").symlink_to("out")
    for path in (output, output, tmp_path / "link"):
        export.export_workdir(str(folder / "run"), str(path), k=5)
        assert exported.Recommender.load(output).manifest["k"] == 5
        with (output / "vocabulary.json").open("a") as file:
            file.write(" ")
        with pytest.raises(ValueError, match=r"vocabulary\.json is not the file that"):
            exported.Recommender.load(output)
        (output / "__pycache__").mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}
    assert (tmp_path / "link").is_symlink()


def test_what_cannot_be_exported_is_told(folder, tmp_path):
    with pytest.raises(UserError, match="k is 0"):
        export.export_workdir(str(folder / "run"), str(tmp_path / "new"), k=0)


@pytest.mark.parametrize(
    "manifest", [None, "{}", '{"files": {"top_k_4.bin": ""}}', "["]
)
def test_no_file_is_lost_to_an_export(folder, tmp_path, manifest):
    (tmp_path / "mine").write_text("precious")
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"is not part of an export.*choose another"):
        export.export_workdir(str(folder / "run"), str(tmp_path))
    assert (tmp_path / "mine").read_text() == "precious"
    with pytest.raises(UserError, match=r"mine is not part of an export"):
        export.export_workdir(str(folder / "run"), str(tmp_path / "mine"))


class Hub:
    """A fake huggingface_hub that records its calls."""

    def __init__(self, error=None):
        self.said, self.error = [], error

    def HfApi(self, **options):
        self.said.append(options)
        return self

    def create_repo(self, repo_id, **options):
        self.said.append((repo_id, options))

    def upload_folder(self, **options):
        if self.error:
            raise self.error
        self.said.append(options)
        return types.SimpleNamespace(commit_url="https://hub.example/me/shop/commit/1")


def test_an_export_is_put_on_a_hub(folder, tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = push_to_hub(folder / "out", "me/shop", private=True, token="secret")
    assert found == "https://hub.example/me/shop/commit/1"
    made, repository, uploaded = hub.said
    assert made == {"token": "secret"}
    assert repository == ("me/shop", {"private": True, "exist_ok": True})
    assert uploaded["folder_path"] == folder / "out"
    assert (uploaded["repo_id"], uploaded["delete_patterns"]) == ("me/shop", "*")

    hub.error = OSError("401 Client Error\nof a long request")
    with pytest.raises(UserError, match=r"cannot upload to me/shop: 401 Client Error$"):
        push_to_hub(folder / "out", "me/shop")
    with pytest.raises(UserError, match="is not an exported folder"):
        push_to_hub(tmp_path, "me/shop")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'srgnn_jax\[hub\]'"):
        push_to_hub(folder / "out", "me/shop")
