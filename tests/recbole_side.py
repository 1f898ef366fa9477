"""Computes with RecBole; recreate_golden.py runs it in RecBole's environment.

    python tests/recbole_side.py FOLDER

FOLDER holds the inputs and receives the outputs:
    golden/*.npz -> recreated/*.npz    forward, gradients and Adam from the same inputs
    exported.npz -> exported_scores.npy    weights loaded with strict=True, and sessions
    -> ml100k/*.pth, ml100k.npz, ml100k.json    an epoch of training on ml-100k
"""

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

# RecBole 1.2.1 uses names that NumPy 2 has dropped, and files that torch now refuses to
# unpickle by default.
_DROPPED = {"float_": float, "bool8": np.bool_, "unicode_": str, "complex_": complex}
for _name, _kind in _DROPPED.items():
    setattr(np, _name, _kind)
torch.load = functools.partial(torch.load, weights_only=False)

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.sequential_recommender.srgnn import SRGNN  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402


def make_model(num_items: int, embedding_size: int, step: int, loss_type: str) -> SRGNN:
    config = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": 50,
        "device": torch.device("cpu"),
        "embedding_size": embedding_size,
        "step": step,
        "loss_type": loss_type,
    }
    return SRGNN(config, SimpleNamespace(num=lambda _: num_items))


def load(model: SRGNN, weights: dict[str, np.ndarray]) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict(tensors, strict=True)


def part(file, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix + "/"): file[name]
        for name in file.files
        if name.startswith(prefix + "/")
    }


def interaction(inputs: dict[str, np.ndarray], t: int) -> dict[str, torch.Tensor]:
    fields = {
        "item_seq": "item_id_list",
        "item_seq_len": "item_length",
        "target": "item_id",
        "negative": "neg_item_id",
    }
    return {
        fields[name]: torch.from_numpy(values[t].astype(np.int64))
        for name, values in inputs.items()
    }


def recreate(source: Path, destination: Path) -> None:
    """Recomputes a golden file from its weights, batches and settings."""
    file = np.load(source)
    cfg = {name: value.item() for name, value in part(file, "cfg").items()}
    model = make_model(
        cfg["num_items"],
        cfg["embedding_dim"],
        cfg["num_steps"],
        "BPR" if cfg["bpr"] else "CE",
    )
    load(model, part(file, "param"))
    inputs = part(file, "in")

    def arrays(prefix, of):
        return {
            f"{prefix}/{name}": of(p).detach().numpy().copy()
            for name, p in model.named_parameters()
        }

    found = {
        name: file[name]
        for name in file.files
        if name.split("/")[0] in ("param", "in", "cfg")
    }
    first = interaction(inputs, 0)
    alias, matrix, items, _ = model._get_slice(first["item_id_list"])
    loss = model.calculate_loss(first)
    loss.backward()
    out = {
        "A": matrix,
        "items": items.int(),
        "alias": alias.int(),
        "seq_output": model(first["item_id_list"], first["item_length"]),
        "predict": model.predict(first),
        "full_sort_predict": model.full_sort_predict(first),
        "loss": loss,
    }
    found |= {f"out/{name}": value.detach().numpy() for name, value in out.items()}
    found |= arrays("grad", lambda p: p.grad)
    adam = torch.optim.Adam(model.parameters(), lr=cfg["lr"], weight_decay=cfg["l2"])
    losses = []
    for t in range(len(inputs["item_seq"])):
        adam.zero_grad()
        loss = model.calculate_loss(interaction(inputs, t))
        loss.backward()
        adam.step()
        losses.append(loss.item())
    found["traj/loss"] = np.array(losses, np.float32)
    found |= arrays("after", lambda p: p)
    np.savez(destination, **found)


def score_exported(source: Path, destination: Path) -> None:
    """Loads weights that params_to_torch wrote, and scores sessions with them."""
    file = np.load(source)
    weights = part(file, "weights")
    num_items, d = weights["item_embedding.weight"].shape
    model = make_model(num_items, d, file["step"].item(), "CE")
    load(model, weights)
    inputs = {name: file[name][None] for name in ("item_seq", "item_seq_len")}
    with torch.no_grad():
        np.save(destination, model.full_sort_predict(interaction(inputs, 0)).numpy())


def ml100k_config(epochs: int, checkpoint_dir: Path) -> Config:
    """Returns RecBole's own configuration for ml-100k, on the CPU."""
    return Config(
        model="SRGNN",
        dataset="ml-100k",
        config_dict={
            "epochs": epochs,
            # Cross entropy draws no negatives, and RecBole must be told so.
            "train_neg_sample_args": None,
            "use_gpu": False,
            "show_progress": False,
            "checkpoint_dir": str(checkpoint_dir),
        },
    )


def train_on_ml100k(folder: Path) -> None:
    """Trains an epoch; saves the checkpoint, test result and scores of 64 users."""
    config = ml100k_config(1, folder / "ml100k")
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    torch.manual_seed(0)
    model = SRGNN(config, train.dataset)
    trainer = Trainer(config, model)
    trainer.fit(train, valid, show_progress=False)
    result = trainer.evaluate(test, load_best_model=True, show_progress=False)
    (folder / "ml100k.json").write_text(json.dumps(dict(result)))
    users = test.dataset.inter_feat[:64]
    with torch.no_grad():
        scores = model.full_sort_predict(users)
    np.savez(
        folder / "ml100k.npz",
        item_seq=users["item_id_list"].numpy().astype(np.int32),
        item_seq_len=users["item_length"].numpy().astype(np.int32),
        target=users["item_id"].numpy().astype(np.int32),
        item_tokens=dataset.field2id_token["item_id"].astype(str),
        scores=scores.numpy(),
    )


def main(folder: Path) -> None:
    (folder / "recreated").mkdir()
    for source in sorted((folder / "golden").glob("*.npz")):
        recreate(source, folder / "recreated" / source.name)
    score_exported(folder / "exported.npz", folder / "exported_scores.npy")
    train_on_ml100k(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Popped, because RecBole's Config complains about unknown arguments.
    main(Path(sys.argv.pop()).resolve())
