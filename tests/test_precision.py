"""Products are exact by default, as the lowered steps show."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from srgnn_jax.data.batches import train_batches
from srgnn_jax.evaluate.evaluator import rank_step
from srgnn_jax.model.gnn import gnn_cell
from srgnn_jax.model.srgnn import SRGNN, init_params
from srgnn_jax.serve.export import export_top_k
from srgnn_jax.serve.step import recommend_step
from srgnn_jax.train.optimizer import adam_with_l2
from srgnn_jax.train.step import init_state, train_step
from tests.tiny import random_examples

ITEMS = 30
HIGHEST, HIGH, DEFAULT = "HIGHEST", "HIGH", "DEFAULT"


def precisions(step, *arguments):
    """Returns the precision of each factor of each product in a lowered step."""
    return precisions_in(jax.jit(step).lower(*arguments).as_text())


def precisions_in(text):
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    found = [re.search(r"precision = \[(\w+), (\w+)\]", line) for line in products]
    assert products
    assert all(found), products
    assert "convolution" not in text
    return [precision for match in found for precision in match.groups()]


def lowered(step, compute_dtype):
    model = SRGNN(ITEMS, 8, 2, reverse_positions=3, compute_dtype=compute_dtype)
    params = init_params(model, 0)
    examples = random_examples(ITEMS, 40)
    batch = next(train_batches(examples, 8, 0, 0))
    clicks = jnp.asarray(examples.items)
    if step.startswith("train"):
        optimizer = adam_with_l2(0.1, 0.1)
        state = init_state(model, optimizer, 0)
        most = {"max_scores": 50} if step == "train in blocks" else {}
        step = functools.partial(
            train_step, model=model, optimizer=optimizer, seed=0, **most
        )
        return precisions(step, state, clicks, batch)
    if step == "evaluate":
        step = functools.partial(rank_step, model=model, k=5)
        return precisions(step, params, clicks, batch)
    if step == "recommend":
        step = functools.partial(
            recommend_step,
            model=model,
            k=5,
            max_scores=2**20,
            score_padding=False,
            as_probabilities=True,
            recall=1.0,
        )
        item_seq = jnp.ones((2, 4), jnp.int32)
        return precisions(
            step, params, params["item_embedding"], None, None, item_seq, None
        )
    if step == "export":
        return precisions_in(export_top_k(model, params, 4, 3).mlir_module())
    step = functools.partial(gnn_cell, compute_dtype=compute_dtype)
    return precisions(step, params["gnn"], jnp.ones((2, 4, 8)), jnp.ones((2, 4, 8)))


@pytest.mark.parametrize(
    "step", ["train", "train in blocks", "evaluate", "recommend", "export", "cell"]
)
def test_every_product_is_exact(step):
    assert set(lowered(step, None)) == {HIGHEST}


@pytest.mark.parametrize(
    ("compute_dtype", "precision"), [("tensorfloat32", HIGH), ("bfloat16", DEFAULT)]
)
def test_other_products_are_as_asked(compute_dtype, precision):
    found = lowered("train", compute_dtype)
    # Only products of weights with weights stay exact.
    assert set(found) == {precision, HIGHEST}
    assert found.count(precision) > found.count(HIGHEST)
