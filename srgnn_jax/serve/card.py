"""Writes what a model hub wants in an exported folder: weights, config, model card.

<output>/model.safetensors   the parameters, by path
<output>/config.json         the model's fields, and how it was trained
<output>/README.md           the card: the model, its results, how to use it
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from srgnn_jax import tables
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import results_json
from srgnn_jax.serve.exported import CARD
from srgnn_jax.serve.recommend import Recommender

_USE = """## Use

```python
import sys

sys.path.insert(0, "FOLDER")
from recommender import Recommender

Recommender.load("FOLDER").recommend([["81766", "31331"]])
```

`FOLDER` is this folder. The code needs jax, numpy and flatbuffers. A session is a list
of raw item ids, oldest click first.
"""


def write_card(
    folder: pathlib.Path,
    recommender: Recommender,
    workdir: pathlib.Path,
    manifest: dict[str, Any],
) -> None:
    """Writes the three files, with the results in the workdir's results.json."""
    weights = traverse_util.flatten_dict(recommender.params, sep=".")
    arrays = {k: np.ascontiguousarray(v) for k, v in jax.device_get(weights).items()}
    save_file(arrays, folder / "model.safetensors", {"format": "flax"})
    config = {"model_type": "srgnn", **manifest}
    (folder / "config.json").write_text(
        json.dumps(config, indent=1, sort_keys=True) + "\n"
    )
    text = card(manifest, _results(workdir, manifest["step"]))
    (folder / CARD).write_text(text, encoding="utf-8")


def _results(workdir: pathlib.Path, step: int) -> dict[str, Any] | None:
    """Returns the results of a run; None if there are none for this step."""
    try:
        found = results_json.read(workdir / "results.json")
    except (OSError, UserError):
        return None
    runs = found.get("runs", [])
    return found if len(runs) == 1 and runs[0]["best_step"] == step else None


def card(manifest: dict[str, Any], results: dict[str, Any] | None) -> str:
    """Returns the model card in Markdown, with the hub's fields before it."""
    config = manifest["config"]
    name = config.get("name") or config["dataset"]
    parts = [
        "---\nlibrary_name: srgnn_jax\npipeline_tag: other\ntags:\n"
        "- session-based-recommendation\n- graph-neural-network\n- jax\n---\n",
        f"# SR-GNN, {name}\n",
        "SR-GNN (Wu et al., AAAI 2019, https://arxiv.org/abs/1811.00855) predicts the "
        "next click of an anonymous session.\n",
        f"{manifest['num_items'] - 1:,} items, D = {config['embedding_size']}, trained "
        f"on `{config['dataset']}`, step {manifest['step']:,}; lists of up to "
        f"{manifest['k']} items.\n",
        "## Results\n",
        _table(results) if results else "None were recorded with these weights.\n",
        _USE,
    ]
    return "\n".join(parts)


def _table(results: dict[str, Any]) -> str:
    """Renders the test metrics, and how the epoch was chosen."""
    found = results["runs"][0]["test"].items()
    rows = [[name, tables.percent(value)] for name, value in found]
    table = tables.markdown(["on test, percent", ""], rows)
    return f"{table}\n\nThe epoch was chosen on {results['protocol']['select_on']}.\n"
