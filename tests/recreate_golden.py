"""Recreates the golden files with RecBole and compares them: `make parity`.

RecBole 1.2.1 needs old versions of everything, so it is installed into its own
environment, .venv-recbole. There, recbole_side.py recomputes the golden files from the
same inputs, loads weights that we export, and trains an epoch on ml-100k. This script
compares all of it with the golden files and with our model. It exits with 1 if any
difference exceeds the bounds of parity.py.
"""

import functools
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import jax
import numpy as np

from srgnn_jax import config as config_lib
from srgnn_jax.configs import recbole_ml100k
from srgnn_jax.convert import load_torch_checkpoint, params_from_torch, params_to_torch
from srgnn_jax.devices import layouts
from srgnn_jax.evaluate.workdir import make_evaluator
from srgnn_jax.model.srgnn import SRGNN
from tests import parity

TESTS = Path(__file__).parent
ENVIRONMENT = TESTS.parent / ".venv-recbole"
PYTHON = ENVIRONMENT / "bin" / "python"


def install_recbole() -> None:
    """Makes the environment, unless it is already complete."""
    done = ENVIRONMENT / "complete"
    if done.exists():
        return
    print(f"installing RecBole 1.2.1 into {ENVIRONMENT.name}", flush=True)
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet"]
    requirements = ["-r", TESTS / "recbole-requirements.txt"]
    subprocess.run([*pip, *requirements], check=True)
    subprocess.run([*pip, "--no-deps", "recbole==1.2.1"], check=True)
    done.touch()


def export_weights(path: Path) -> np.ndarray:
    """Writes a new model's weights and some sessions; returns our scores of them."""
    rng = np.random.default_rng(0)
    item_seq_len = rng.integers(1, 13, 32).astype(np.int32)
    item_seq = rng.integers(1, 40, (32, 12)).astype(np.int32)
    item_seq *= np.arange(12) < item_seq_len[:, None]
    model = SRGNN(num_items=40, embedding_size=16, step=2)
    variables = jax.jit(model.init)(jax.random.key(0), item_seq, item_seq_len)
    weights = params_to_torch(variables["params"], "recbole")
    np.savez(
        path,
        step=model.step,
        item_seq=item_seq,
        item_seq_len=item_seq_len,
        **{f"weights/{name}": array for name, array in weights.items()},
    )
    return scores_of(model, variables["params"], item_seq, item_seq_len)


def scores_of(model: SRGNN, params, item_seq, item_seq_len) -> np.ndarray:
    """Scores all items for each session."""
    predict = jax.jit(functools.partial(model.apply, method="full_sort_predict"))
    return np.asarray(predict({"params": params}, item_seq, item_seq_len))


class Report:
    """Prints comparisons and remembers whether all of them passed."""

    def __init__(self):
        self.holds = True

    def line(self, what: str, found: float, bound: float) -> None:
        """Prints one comparison, which passes if `found` is at most `bound`."""
        holds = found <= bound
        self.holds &= holds
        verdict = "ok" if holds else "DIFFERS"
        print(f"{what:<64}{found:>10.1e} <= {bound:.0e}  {verdict}", flush=True)


def compare_golden(folder: Path, report: Report) -> None:
    """Compares the recreated files with the golden ones and with our model."""
    for path in sorted((folder / "golden").glob("*.npz")):
        with np.load(path) as file:
            golden = dict(file)
        with np.load(folder / "recreated" / path.name) as file:
            recreated = dict(file)
        assert golden.keys() == recreated.keys()
        for kind, bound in (
            ("out", 2e-6),
            ("grad", 1e-6),
            ("traj", 1e-5),
            ("after", 2e-5),
        ):
            ours, theirs = parity.part(golden, kind), parity.part(recreated, kind)
            largest = max(parity.difference(ours[n], theirs[n]) for n in ours)
            report.line(f"{path.stem}: golden file, {kind}", largest, bound)
        for name, found in parity.differences(recreated).items():
            bound = parity.FLOAT32_BOUNDS[name]
            report.line(f"{path.stem}: ours, {name}", found, bound)


def compare_ml100k(folder: Path, report: Report) -> None:
    """Imports the model that RecBole trained and evaluates it with its protocol."""
    (path,) = (folder / "ml100k").glob("*.pth")
    checkpoint = load_torch_checkpoint(path)
    params = params_from_torch(checkpoint, checkpoint.source)
    with np.load(folder / "ml100k.npz") as file:
        outputs = dict(file)
    config = recbole_ml100k.get_config()
    (config.data_dir,) = map(
        str, ENVIRONMENT.glob("lib/*/*/recbole/dataset_example/ml-100k")
    )
    config.prepared_dir = str(folder / "prepared")
    data = config_lib.load_data(config)
    examples = config_lib.make_splits(config, data).evaluated["test"]
    model = config_lib.make_model(config, data.vocabulary.num_items)

    tokens = ["[PAD]", *data.vocabulary.ids]
    different = sum(a != b for a, b in zip(tokens, outputs["item_tokens"], strict=True))
    report.line("ml-100k: items numbered differently", different, 0)
    ours = {
        (*examples.items[start : start + length].tolist(), target)
        for start, length, target in zip(
            examples.starts, examples.lengths, examples.targets.tolist(), strict=True
        )
    }
    theirs = [
        (*row[:length].tolist(), target)
        for row, length, target in zip(
            outputs["item_seq"],
            outputs["item_seq_len"],
            outputs["target"].tolist(),
            strict=True,
        )
    ]
    missing = sum(example not in ours for example in theirs)
    report.line("ml-100k: test examples of 64 users that we lack", missing, 0)
    scores = scores_of(model, params, outputs["item_seq"], outputs["item_seq_len"])
    largest = parity.difference(scores, outputs["scores"])
    report.line("ml-100k: scores of 64 users, after import", largest, 1e-5)

    evaluate = make_evaluator(config, model, examples, layouts.find_devices("jit"))
    found = evaluate(params)
    for name, theirs_rounded in json.loads(
        (folder / "ml100k.json").read_text()
    ).items():
        if name in found:
            print(
                f"ml-100k: {name}: ours {found[name]:.4f}, RecBole's {theirs_rounded}"
            )
            off = abs(round(found[name], 4) - theirs_rounded)
            report.line(f"ml-100k: {name}, after rounding", off, 1e-9)


def main() -> int:
    """Returns the exit code."""
    install_recbole()
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "golden").mkdir()
        for path in (TESTS / "golden").glob("recbole_*.npz"):
            shutil.copy(path, folder / "golden")
        ours = export_weights(folder / "exported.npz")
        print("RecBole computes and trains an epoch (a few minutes)", flush=True)
        command = [PYTHON, "-W", "ignore", TESTS / "recbole_side.py", folder]
        # RecBole leaves logs in its working directory.
        subprocess.run(command, check=True, cwd=folder)
        theirs = np.load(folder / "exported_scores.npy")
        report.line(
            "scores of exported weights, loaded with strict=True",
            parity.difference(ours, theirs),
            2e-6,
        )
        compare_golden(folder, report)
        compare_ml100k(folder, report)
    print("parity with RecBole holds" if report.holds else "parity with RecBole FAILS")
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main())
