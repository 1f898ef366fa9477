"""Model inputs are checked where their values are known, not clamped in jit."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from srgnn_jax.data.sessions import Examples, Sessions, Vocabulary, check_rows
from srgnn_jax.devices import layouts
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate.evaluator import Evaluator
from srgnn_jax.model.graph import check_sessions
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.runs.checkpoint import Checkpoints, restore_best
from srgnn_jax.serve.recommend import Recommender

V = 10
SEQ = np.array([[1, 2, 3, 2, 0], [9, 0, 0, 0, 0]])
LEN = np.array([4, 1])

# item_seq, item_seq_len, and the error that they give.
WRONG = {
    "beyond the table": ([[1, 10, 0]], [2], "item_seq holds 1 to 10"),
    "negative": ([[-1, 2, 0]], [2], "item_seq holds -1 to 2"),
    "zero in the middle": ([[1, 0, 2]], [3], "item_seq holds 0 to 2"),
    "zero first": ([[0, 1, 2]], [3], "item_seq holds 0 to 2"),
    "only padding": ([[0, 0, 0]], [1], "item_seq holds 0 to 0"),
    "length 0": ([[1, 2, 0]], [0], "item_seq_len holds 0 to 0, not 1 to 3"),
    "negative length": ([[1, 2, 0]], [-1], "item_seq_len holds -1"),
    "length beyond the array": ([[1, 2, 3]], [4], "item_seq_len holds 4 to 4"),
    "items beyond the length": ([[1, 2, 3]], [2], "beyond item_seq_len"),
    "fractions": ([[1.0, 2.0]], [2], "item_seq holds float"),
    "truth values": ([[True, True]], [2], "item_seq holds bool"),
    "fractional lengths": ([[1, 2]], [2.0], "item_seq_len holds float"),
    "one session alone": ([1, 2], [2], r"item_seq has shape \(2,\)"),
    "a rank too many": ([[[1, 2]]], [2], r"item_seq has shape \(1, 1, 2\)"),
    "a length for all": ([[1, 2]], 2, r"item_seq_len has shape \(\)"),
    "too many lengths": ([[1, 2]], [2, 2], r"item_seq_len has shape \(2,\)"),
}
METHODS = ("__call__", "full_sort_predict", "predict", "calculate_loss")


@pytest.fixture(scope="module")
def model_and_params():
    model = SRGNN(V, 4)
    return model, init_params(model, 0)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("as_array", [np.array, jnp.array])
def test_wrong_sessions(kind, as_array):
    item_seq, item_seq_len, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        check_sessions(as_array(item_seq), as_array(item_seq_len), V)


def test_right_sessions_and_empty_batches():
    check_sessions(SEQ, LEN, V, target=np.array([1, 9]), negative=None)
    check_sessions(np.zeros((0, 5), np.int32), np.zeros(0, np.int32), V)


@pytest.mark.parametrize(
    ("name", "shape"), [("target", (2, 1)), ("target", (4,)), ("negative", (4,))]
)
def test_items_of_another_shape_than_the_sessions(name, shape):
    with pytest.raises(ValueError, match=rf"{name} has shape \({shape[0]},"):
        check_sessions(SEQ, LEN, V, **{name: np.ones(shape, int)})
    check_sessions(SEQ, LEN, V, negative=np.ones((2, 3), int))


def test_negatives_of_other_sessions_are_refused(model_and_params):
    """Four items for two sessions are not two for each."""
    model, params = model_and_params
    arguments = SEQ, LEN, np.array([1, 2]), np.array([3, 4, 5, 6]), "BPR"
    with pytest.raises((ValueError, TypeCheckError)):
        model.apply({"params": params}, *arguments, method="calculate_loss")


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_model_checks(model_and_params, kind, method):
    model, params = model_and_params
    item_seq, item_seq_len, _ = WRONG[kind]
    item_seq, item_seq_len = np.array(item_seq), np.array(item_seq_len)
    more = [np.ones(1, int)] if method in METHODS[2:] else []
    # In tests, types and ranks are also checked by the annotations, before the method.
    with pytest.raises((ValueError, TypeCheckError)):
        model.apply({"params": params}, item_seq, item_seq_len, *more, method=method)


@pytest.mark.parametrize("item", [0, -1, V])
@pytest.mark.parametrize("what", ["item", "target", "negative"])
def test_items_beside_the_sessions(model_and_params, item, what):
    model, params = model_and_params
    wrong, right = np.array([item, 1]), np.array([1, 2])
    arguments = {
        "item": ([wrong], {"method": "predict"}),
        "target": ([wrong], {"method": "calculate_loss"}),
        "negative": ([right, wrong], {"method": "calculate_loss", "loss_type": "BPR"}),
    }
    more, how = arguments[what]
    with pytest.raises(ValueError, match=f"{what} holds .* not 1 to {V - 1}"):
        model.apply({"params": params}, SEQ, LEN, *more, **how)


def test_the_check_changes_nothing_and_is_silent_while_traced(model_and_params):
    model, params = model_and_params
    # NumPy arrays are not traced.
    checked = jax.jit(lambda p: model.apply({"params": p}, SEQ, LEN))(params)
    traced = jax.jit(model.apply)({"params": params}, SEQ, LEN)
    np.testing.assert_allclose(checked, traced, rtol=1e-5)
    # Parameters may be drawn with inputs of zeros.
    zeros = np.zeros((1, 2), int), np.ones(1, int)
    jax.eval_shape(lambda: model.init(jax.random.key(0), *zeros))
    one = jax.vmap(lambda seq: model.apply({"params": params}, seq[None], LEN[:1]))
    jax.eval_shape(one, SEQ)
    loss = jax.grad(lambda p: model.apply({"params": p}, SEQ, LEN).sum())
    jax.eval_shape(loss, params)


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [([0], [0]), ([0], [-1]), ([-1], [1]), ([0], [4]), ([3], [1]), ([9], [1])],
)
def test_examples_that_reach_out_of_their_clicks(starts, lengths):
    with pytest.raises(ValueError, match="does not lie within 4 clicks"):
        Examples(np.arange(1, 5), np.array(starts), np.array(lengths))
    Examples(np.arange(1, 5), np.array([0, 2]), np.array([3, 1]))


def test_examples_of_unequal_numbers():
    # In tests, the annotations are checked first.
    with pytest.raises((ValueError, TypeCheckError)):
        Examples(np.arange(1, 5), np.array([0, 1]), np.array([1]))


def test_a_given_pair_without_a_prefix():
    pairs = Sessions.from_lists([[1, 2], [3]], last_only=True)
    with pytest.raises(ValueError, match="example 1, 0 clicks"):
        pairs.examples()


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3], [0, -1]])
def test_offsets_of_sessions(offsets):
    with pytest.raises(ValueError, match="offsets"):
        Sessions(np.array([1, 2, 3]), np.array(offsets, int))


@pytest.mark.parametrize("rows", [[0], [1, -1], [V], [1.0], ["1"]])
def test_rows_that_are_none(rows):
    with pytest.raises(ValueError, match=r"item rows must be|is not an item row"):
        check_rows(np.array(rows), V)
    check_rows(np.arange(1, V), V)
    check_rows(np.zeros(0, int), V)


@pytest.mark.parametrize("item", [0, -1, V])
def test_evaluation_of_items_that_the_model_has_not(model_and_params, item):
    model, _ = model_and_params
    examples = Sessions.from_lists([[1, 2], [3, item]]).examples()
    with pytest.raises(ValueError, match=f"{item} is not an item row"):
        Evaluator(model, examples, (5,), 10, layouts.Devices(1))


def spoiled(params, value=np.nan):
    bias = params["gnn"]["b_hh"].at[3].set(value)
    return {**params, "gnn": {**params["gnn"], "b_hh": bias}}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_recommending_from_numbers_that_are_not_finite(model_and_params, value):
    model, params = model_and_params
    vocabulary = Vocabulary([f"i{n}" for n in range(1, V)])
    with pytest.raises(ValueError, match="the parameter gnn/b_hh holds NaN"):
        Recommender(model, spoiled(params, value), vocabulary)
    Recommender(model, params, vocabulary)


def test_a_checkpoint_of_numbers_that_are_not_finite(model_and_params, monkeypatch):
    """All modes that read a workdir restore like this."""
    model, params = model_and_params
    monkeypatch.setattr(Checkpoints, "restore", lambda *_: {"params": spoiled(params)})
    progress = types.SimpleNamespace(best_step=7, step=9, model="SRGNN")
    read = getattr(restore_best, "__wrapped__", restore_best)
    with pytest.raises(UserError, match=r"checkpoint of step 7 .* gnn/b_hh holds NaN"):
        read(Checkpoints, progress, model, layouts.Devices(1))


@pytest.mark.parametrize("items", [V - 2, V])
def test_a_vocabulary_of_another_size(model_and_params, items):
    model, params = model_and_params
    vocabulary = Vocabulary([f"i{n}" for n in range(items)])
    with pytest.raises(ValueError, match=f"vocabulary has {items + 1} item rows"):
        Recommender(model, params, vocabulary)
