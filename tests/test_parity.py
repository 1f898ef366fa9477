"""The model reproduces both PyTorch codes, from recordings and live."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srgnn_jax.convert import load_torch_checkpoint, params_from_torch, params_to_torch
from srgnn_jax.data.batches import Batch
from srgnn_jax.model import gnn, graph, srgnn
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.srgnn import SRGNN
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import TrainState, train_step
from tests import parity

GOLDEN = Path(__file__).parent / "golden"
SHARED_GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden"


def recording(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    "name",
    ["original_step1", "original_step3_nonhybrid", "recbole_ce", "recbole_bpr_step2"],
)
def test_recorded_numbers_of_both_codes(name):
    found = parity.differences(recording(name))
    assert not parity.exceeded(found, parity.FLOAT32_BOUNDS)
    # Each file records at least seven quantities: none was skipped.
    assert len(found) >= 7


# The recordings were computed in float32.
@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (0, "float64"),
        (3, "float64"),
        *(
            pytest.param(number, dtype, marks=pytest.mark.slow)
            for dtype in ("float64", "float32")
            for number in range(5)
            if (number, dtype) not in [(0, "float64"), (3, "float64")]
        ),
    ],
)
def test_live_torch_model(number, dtype):
    torch = pytest.importorskip("torch")
    from tests import torch_srgnn

    case = torch_srgnn.CASES[number]
    recorded = torch_srgnn.record(**case, dtype=getattr(torch, dtype), seed=number)
    with jax.enable_x64(dtype == "float64"):
        found = parity.differences(recorded)
    bounds = {"float32": parity.FLOAT32_BOUNDS, "float64": parity.FLOAT64_BOUNDS}
    assert not parity.exceeded(found, bounds[dtype])
    assert found.keys() == parity.FLOAT32_BOUNDS.keys()


def test_step_that_training_takes():
    """Tests the whole training step, not only the loss and optimizer inside it."""
    recorded = recording("recbole_ce")
    inputs = parity.part(recorded, "in")
    params = params_from_torch(parity.part(recorded, "param"), "recbole")
    num_items, d = params["item_embedding"].shape
    optimizer = adam_with_l2(recorded["cfg/lr"].item(), recorded["cfg/l2"].item())
    step = jax.jit(
        functools.partial(
            train_step,
            model=SRGNN(num_items, d),
            optimizer=optimizer,
            seed=0,
            score_padding=True,
        )
    )
    params = jax.tree.map(jnp.asarray, params)
    zero = jnp.zeros(())
    state = TrainState(
        jnp.zeros((), jnp.int32), params, optimizer.init(params), zero, zero
    )
    steps, batch = inputs["target"].shape
    width = inputs["item_seq"].shape[2]
    for t in range(steps):
        rows = np.pad(inputs["item_seq"][t], ((0, 0), (0, 1)))
        length = inputs["item_seq_len"][t]
        rows[np.arange(batch), length] = inputs["target"][t]
        start = np.arange(batch, dtype=np.int32) * (width + 1)
        whole = Batch(start[None], length[None], start[None], ((batch, width),))
        state = step(state, rows.reshape(-1), whole)
    mean_loss = float(state.loss) / float(state.examples)
    assert mean_loss == pytest.approx(recorded["traj/loss"].mean(), abs=1e-5)
    after = params_from_torch(parity.part(recorded, "after"), "recbole")
    assert parity.tree_difference(state.params, after) < 2e-5


def turn_gate_round(monkeypatch):
    joined = gnn._joined

    def turned(params):
        d = params["w_hh"].shape[0]
        sign = jnp.ones(3 * d).at[d : 2 * d].set(-1)
        gates = {k: sign * params[k] for k in ("w_ih", "w_hh", "b_ih", "b_hh")}
        return joined({**params, **gates})

    monkeypatch.setattr(gnn, "_joined", turned)


def swap_matrices(monkeypatch):
    matrices = graph.normalised_connections
    monkeypatch.setattr(
        graph, "normalised_connections", lambda edges: matrices(edges)[::-1]
    )


def decouple_l2(monkeypatch):
    decoupled = functools.partial(optax.adamw, eps=1e-8)
    monkeypatch.setattr(
        parity, "adam_with_l2", lambda lr, l2: decoupled(lr, weight_decay=l2)
    )


def leave_row_0_in(monkeypatch):
    monkeypatch.setattr(
        srgnn,
        "ItemTable",
        lambda rows, items, score_padding, **options: ItemTable(
            rows, items, True, **options
        ),
    )


def alias_by_position(monkeypatch):
    monkeypatch.setattr(
        graph,
        "node_alias",
        lambda item_seq: jnp.broadcast_to(
            jnp.arange(item_seq.shape[1], dtype=jnp.int32), item_seq.shape
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "shows_in"),
    [
        (turn_gate_round, "hidden states"),
        (swap_matrices, "hidden states"),
        (decouple_l2, "parameters after Adam"),
        (leave_row_0_in, "loss, relative"),
        (alias_by_position, "hidden states"),
    ],
)
def test_deliberate_breakage_is_seen(break_it, shows_in, monkeypatch):
    break_it(monkeypatch)
    # A repeated item may then have two nodes; compare the numbers anyway.
    monkeypatch.setattr(parity, "matrix_difference", lambda *_: 0.0)
    found = parity.differences(recording("original_step1"))
    assert shows_in in parity.exceeded(found, parity.FLOAT32_BOUNDS)


@pytest.mark.parametrize(
    ("break_it", "shows_in"),
    [(swap_matrices, "1.0"), (alias_by_position, "two nodes")],
)
def test_breakage_of_the_graph_is_seen_in_the_matrices(break_it, shows_in, monkeypatch):
    recorded = recording("recbole_ce")
    out = parity.part(recorded, "out")
    assert parity.matrix_difference(recorded["in/item_seq"][0], out) == 0
    break_it(monkeypatch)
    try:
        found = str(parity.matrix_difference(recorded["in/item_seq"][0], out))
    except AssertionError as error:
        found = str(error)
    assert shows_in in found


@pytest.mark.parametrize("readout", ["hybrid", "attention"])
@pytest.mark.parametrize("source", ["recbole", "original"])
def test_exported_weights_load_strictly_and_score_alike(source, readout):
    torch = pytest.importorskip("torch")
    from tests import torch_srgnn

    rng = np.random.default_rng(3)
    item_seq, item_seq_len = torch_srgnn.random_sessions(rng, (1, 8, 6), 30)
    sessions = item_seq[0].astype(np.int32), item_seq_len[0].astype(np.int32)
    ours = SRGNN(num_items=30, embedding_size=7, step=2, readout=readout)
    params = jax.jit(ours.init)(jax.random.key(0), *sessions)["params"]
    exported = params_to_torch(params, source)

    # RecBole only has a hybrid model, which must score the same.
    theirs = torch_srgnn.TorchSRGNN(
        30, 7, 2, readout == "hybrid" or source == "recbole", source, seed=1
    )
    theirs.load_state_dict(
        {name: torch.from_numpy(array) for name, array in exported.items()}, strict=True
    )
    with torch.no_grad():
        expected = theirs.full_sort_predict(
            *map(torch.from_numpy, (item_seq[0], item_seq_len[0]))
        )
    scores = jax.jit(functools.partial(ours.apply, method="full_sort_predict"))(
        {"params": params}, *sessions
    )
    assert parity.difference(scores, expected) < 2e-6


def test_checkpoint_that_recbole_saved():
    path = SHARED_GOLDEN / "recbole_ml100k.pth"
    if not path.exists():
        pytest.skip(f"needs {path.name} in the shared folder")
    checkpoint = load_torch_checkpoint(path)
    assert checkpoint.source == "recbole"
    assert checkpoint.config["loss_type"] == "CE"
    assert checkpoint.config["step"] == 1
    params = params_from_torch(checkpoint, checkpoint.source)
    with np.load(SHARED_GOLDEN / "recbole_ml100k_outputs.npz") as file:
        outputs = dict(file)
    num_items, d = params["item_embedding"].shape
    ours = SRGNN(num_items, d, checkpoint.config["step"])
    scores = jax.jit(functools.partial(ours.apply, method="full_sort_predict"))(
        {"params": params}, outputs["item_seq"], outputs["item_seq_len"]
    )
    assert parity.difference(scores, outputs["scores"]) < 1e-5

    def top10(scores):
        return np.argsort(-np.asarray(scores)[:, 1:], axis=1, kind="stable")[:, :10]

    np.testing.assert_array_equal(top10(scores), top10(outputs["scores"]))
