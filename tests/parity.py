"""Measures how far the JAX model is from recordings of a PyTorch SR-GNN.

A *recording* is a flat mapping of names to arrays, as in the files of tests/golden:
`param/*` the weights before training, `in/*` [T batches, ...], `out/*` the outputs for
the first batch, `grad/*` its gradients, `traj/loss` and `after/*` the losses and
weights of T steps of Adam, and `cfg/*`. `torch_srgnn.record` makes one from a live
`TorchSRGNN`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srgnn_jax.convert import params_from_torch
from srgnn_jax.model import graph
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.train.optimizer import adam_with_l2, step_decay

# Bounds on differences in float32, per quantity; float64 is ten times tighter.
FLOAT32_BOUNDS = {
    "connection matrices": 0.0,
    "hidden states": 2e-6,
    "session embeddings": 2e-6,
    "scores": 2e-6,
    "predict": 2e-6,
    "loss, relative": 1e-6,
    "gradients, of the largest entry": 1e-5,
    "loss trajectory": 1e-5,
    "parameters after Adam": 2e-5,
}
FLOAT64_BOUNDS = {name: bound / 10 for name, bound in FLOAT32_BOUNDS.items()}


def exceeded(
    found: Mapping[str, float], bounds: Mapping[str, float]
) -> dict[str, float]:
    """Returns the quantities whose difference exceeds the bound."""
    return {name: value for name, value in found.items() if not value <= bounds[name]}


def difference(ours: Any, theirs: Any) -> float:
    """Returns the largest absolute difference; NaN counts as infinite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max(initial=0.0))


def tree_difference(ours: Any, theirs: Any) -> float:
    """Returns the largest absolute difference over two trees of arrays."""
    return max(jax.tree.leaves(jax.tree.map(difference, ours, theirs)))


def part(recording: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the entries under a prefix such as "grad", without the prefix."""
    return {
        name.removeprefix(prefix + "/"): recording[name]
        for name in recording
        if name.startswith(prefix + "/")
    }


def by_item(nodes: np.ndarray, matrix: np.ndarray) -> list[dict[tuple, float]]:
    """Returns each session's matrix entries by pairs of items."""
    sessions = []
    for items, rows in zip(np.asarray(nodes), np.asarray(matrix), strict=True):
        real = np.flatnonzero(items)
        assert len(set(items[real])) == len(real), "an item has two nodes"
        between = rows[np.ix_(real, real)]
        assert np.count_nonzero(rows) == np.count_nonzero(between), (
            "padding has an edge"
        )
        sessions.append(
            {(items[u], items[v]): float(rows[u, v]) for u in real for v in real}
        )
    return sessions


def matrix_difference(item_seq, theirs: dict[str, np.ndarray]) -> float:
    """Compares both connection matrices, matching nodes by their items."""
    # A new function each time: jit would not see what a test has replaced since.
    nodes, alias, matrix = jax.jit(lambda x: graph.connection_matrix(x))(item_seq)
    clicked = np.asarray(item_seq) > 0
    for seen_nodes, seen_alias in (nodes, alias), (theirs["items"], theirs["alias"]):
        seen = np.take_along_axis(np.asarray(seen_nodes), np.asarray(seen_alias), 1)
        assert (seen[clicked] == np.asarray(item_seq)[clicked]).all()
    largest = 0.0
    for ours_half, theirs_half in zip(
        np.split(np.asarray(matrix), 2, axis=-1),
        np.split(theirs["A"], 2, axis=-1),
        strict=True,
    ):
        for ours_session, theirs_session in zip(
            by_item(nodes, ours_half),
            by_item(theirs["items"], theirs_half),
            strict=True,
        ):
            assert ours_session.keys() == theirs_session.keys()
            for pair, value in ours_session.items():
                largest = max(largest, abs(value - theirs_session[pair]))
    return largest


def differences(recording: Mapping[str, Any]) -> dict[str, float]:
    """Returns our differences from a recording, with the keys of `FLOAT32_BOUNDS`.

    Computed in the dtype of its weights, so float64 needs `jax.enable_x64`.
    """
    cfg = {name: value.item() for name, value in part(recording, "cfg").items()}
    out = part(recording, "out")
    source = "recbole" if "param/item_embedding.weight" in recording else "original"
    readout = "attention" if cfg.get("nonhybrid", 0) else "hybrid"
    loss_type = "BPR" if cfg.get("bpr", 0) else "CE"
    model = SRGNN(cfg["num_items"], cfg["embedding_dim"], cfg["num_steps"], readout)

    def imported(prefix: str) -> dict[str, Any]:
        return params_from_torch(part(recording, prefix), source, readout)

    def loss_of(params, batch):
        return model.apply(
            {"params": params},
            batch["item_seq"],
            batch["item_seq_len"],
            batch["target"],
            batch["negative"] if loss_type == "BPR" else None,
            loss_type,
            source == "recbole",
            method="calculate_loss",
        )

    def states_by_position(module, item_seq):
        embedded = module.item_embedding()[item_seq]
        _, alias, matrix = graph.connection_matrix(item_seq, embedded.dtype)
        hidden = module.propagate(matrix, embedded)
        hidden = jnp.take_along_axis(hidden, alias[:, :, None], axis=1)
        return jnp.where(item_seq[:, :, None] > 0, hidden, 0)

    @jax.jit
    def forward(params, batch):
        sessions = batch["item_seq"], batch["item_seq_len"]
        variables = {"params": params}
        return {
            "hidden": model.apply(variables, sessions[0], method=states_by_position),
            "session": model.apply(variables, *sessions),
            "scores": model.apply(variables, *sessions, method="full_sort_predict"),
            "predict": model.apply(
                variables, *sessions, batch["target"], method="predict"
            ),
        }

    params = jax.tree.map(jnp.asarray, imported("param"))
    batches = part(recording, "in")
    first = {name: values[0] for name, values in batches.items()}
    ours = forward(params, first)
    found = {"connection matrices": matrix_difference(first["item_seq"], out)}
    if "seq_hidden" in out:
        is_click = first["item_seq"][:, :, None] > 0
        theirs = np.where(is_click, out["seq_hidden"], 0)
        found["hidden states"] = difference(ours["hidden"], theirs)
    if "scores" in out:
        found["scores"] = difference(ours["scores"][:, 1:], out["scores"])
    if "full_sort_predict" in out:
        found["scores"] = difference(ours["scores"], out["full_sort_predict"])
        found["session embeddings"] = difference(ours["session"], out["seq_output"])
        found["predict"] = difference(ours["predict"], out["predict"])

    schedule = step_decay(
        cfg["lr"],
        cfg.get("lr_decay_epochs", 0),
        cfg.get("lr_decay", 1.0),
        cfg.get("steps_per_epoch", 1),
    )
    optimizer = adam_with_l2(schedule, cfg["l2"])

    @jax.jit
    def train_step(params, state, batch):
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, gradients

    state, losses, gradients = optimizer.init(params), [], []
    for t in range(len(batches["target"])):
        batch = {name: values[t] for name, values in batches.items()}
        params, state, loss, gradient = train_step(params, state, batch)
        losses.append(loss)
        gradients.append(gradient)
    found["loss, relative"] = difference(losses[0], out["loss"]) / abs(out["loss"])
    theirs = imported("grad")
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    found["gradients, of the largest entry"] = (
        tree_difference(gradients[0], theirs) / largest
    )
    found["loss trajectory"] = difference(losses, recording["traj/loss"])
    found["parameters after Adam"] = tree_difference(params, imported("after"))
    return found
