"""Exports a trained model: StableHLO, weights, vocabulary and a loader.

    <output>/manifest.json         how it was made, and a hash of every other file
    <output>/top_k_<length>.bin    `jax.export`: sessions of a length -> items
    <output>/weights.npz           the parameters, by path
    <output>/vocabulary.json       raw ids and clicks of the item rows
    <output>/recommender.py        the loader, `srgnn_jax.serve.exported`
    <output>/neighbours.npz        if joined: the sessions to find neighbours among,
    <output>/session_knn.py        and the code that finds them

`card` adds what a model hub wants.

`jax.export` guarantees compatibility for six months. The checkpoint remains the source:
the same command exports it again.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import srgnn_jax
from srgnn_jax import config as config_lib
from srgnn_jax.devices import tiers
from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import joined, session_knn
from srgnn_jax.evaluate.results_json import FIELDS_OF_PLACES as PLACES
from srgnn_jax.model.layers import Params
from srgnn_jax.runs.progress import model_name
from srgnn_jax.serve import exported
from srgnn_jax.serve.card import write_card
from srgnn_jax.serve.recommend import Recommender

PLATFORMS = ("cpu", "cuda", "tpu")
# Sessions are padded to one of these lengths, or to the model's maximum length.
LENGTHS = (4, 16, 64)


def export_workdir(
    workdir: str,
    output: str,
    *,
    k: int = 20,
    model: config_lib.MakeModel | None = None,
) -> None:
    """Exports the best checkpoint of a workdir, for lists of at most `k` items.

    The folder `output` must be new, empty, or an earlier export, which is replaced. For
    `model` see `Recommender.load`.

    Raises:
      UserError: the workdir or the folder cannot be used, flatbuffers is missing, or
        the model cannot be exported.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("--mode=export needs flatbuffers: pip install flatbuffers")
    if k < 1:
        raise UserError(f"k is {k}; lists have at least one item")
    # If it is a link, its target is replaced.
    folder = pathlib.Path(output).expanduser().resolve()
    _check_output(folder)
    run_folder = pathlib.Path(workdir).expanduser()
    recommender = Recommender.load(workdir, model)
    progress, step = recommender.progress, recommender.step
    made, max_length = recommender.model, recommender.max_length
    neighbours = recommender.neighbours
    lengths = [*(n for n in LENGTHS if n < max_length), max_length]
    k = min(k, made.num_items - 1)
    try:
        functions = {
            n: export_top_k(made, recommender.params, n, k, neighbours is not None)
            for n in lengths
        }
    # A custom layer may do what StableHLO, or a length, does not support.
    except Exception as error:
        what = model_name(made)
        raise UserError(f"{what} cannot be exported: {reason(error)}") from error
    manifest = {
        "k": k,
        "max_length": max_length,
        "lengths": lengths,
        "num_items": made.num_items,
        "joined": neighbours is not None,
        "platforms": PLATFORMS,
        "srgnn_jax": srgnn_jax.__version__,
        "jax": jax.__version__,
        "calling_convention": functions[max_length].calling_convention_version,
        "step": step,
        "data": progress.data,
        "vocabulary": progress.vocabulary,
        # The paths of this machine are private.
        "config": {k: v for k, v in progress.config.items() if k not in PLACES},
    }
    unfinished = folder.parent / f"{folder.name}.{os.getpid()}.unfinished"
    try:
        unfinished.mkdir(parents=True)
        write_card(unfinished, recommender, run_folder, manifest)
        _write(unfinished, recommender, functions, manifest)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write --output={output}: {reason(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"exported step {step} of {workdir} to {folder}, for lists of {k} items")


def _check_output(folder: pathlib.Path) -> None:
    """Refuses a folder with files that replacing an earlier export would remove."""
    if not folder.exists():
        return
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        # Python caches the loader.
        own = {"manifest.json", "__pycache__", *manifest["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        own = set()
    found = folder.iterdir() if folder.is_dir() else [folder]
    if lost := next((path for path in found if path.name not in own), None):
        raise UserError(
            f"{lost} is not part of an export, and would be lost; choose another "
            "--output"
        )


def _write(
    folder: pathlib.Path,
    recommender: Recommender,
    functions: dict[int, jax.export.Exported],
    manifest: dict[str, Any],
) -> None:
    for n, function in functions.items():
        (folder / f"top_k_{n}.bin").write_bytes(function.serialize())
    weights = traverse_util.flatten_dict(recommender.params, sep="/")
    np.savez(folder / "weights.npz", **jax.tree.map(np.asarray, weights))
    ids, clicks = recommender.vocabulary.ids, recommender.vocabulary.clicks
    vocabulary = {"items": ids, "clicks": None if clicks is None else clicks.tolist()}
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    shutil.copy(str(exported.__file__), folder / "recommender.py")
    if recommender.neighbours is not None:
        recommender.neighbours.save(folder / joined.FILE)
        shutil.copy(str(session_knn.__file__), folder / "session_knn.py")
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({**manifest, "files": hashes}, indent=1)
    (folder / "manifest.json").write_text(text)


def export_top_k(
    model: nn.Module, params: Params, length: int, k: int, is_joined: bool = False
) -> jax.export.Exported:
    """Exports the function that finds the best items: scores and rows, [B, K].

    It takes the parameters (here only their shapes matter), item_seq [B, L],
    item_seq_len [B], whether each item may be listed [V], and item rows to leave out
    [B, M], 0 = padding. B and M are not fixed. If `is_joined`, it also takes shares
    [B, V]; see `joined.add_up`. Scores are -inf where no item is left.
    """

    def one(params, item_seq, item_seq_len, allowed, seen, *shares):
        tier = item_seq[None], item_seq_len[None]
        session, table = tiers.encode(model, params, [tier])
        scores = table.scores(session)[:, 0]
        if shares:
            scores = jnp.where(allowed.at[0].set(False), scores, -jnp.inf)
            scores = joined.add_up(scores[:, None], shares[0][:, None])[:, 0]
        listed = allowed.at[seen].set(False).at[0].set(False)
        return jax.lax.top_k(jnp.where(listed, scores, -jnp.inf), k)

    batch, seen = jax.export.symbolic_shape("b, m")
    arguments = [
        jax.eval_shape(lambda: params),
        jax.ShapeDtypeStruct((batch, length), np.int32),
        jax.ShapeDtypeStruct((batch,), np.int32),
        jax.ShapeDtypeStruct((model.num_items,), np.bool_),
        jax.ShapeDtypeStruct((batch, seen), np.int32),
    ]
    if is_joined:
        arguments.append(jax.ShapeDtypeStruct((batch, model.num_items), np.float32))
    axes = (None, 0, 0, None, 0, 0)[: len(arguments)]
    function = jax.jit(jax.vmap(one, in_axes=axes))
    return jax.export.export(function, platforms=PLATFORMS)(*arguments)
