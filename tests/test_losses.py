"""Compares BPR with its formula."""

import jax.numpy as jnp
import numpy as np

from srgnn_jax.model import losses
from srgnn_jax.model.item_table import ItemTable


def test_bpr_is_minus_log_sigmoid_of_the_difference():
    session = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    target = jnp.array([[0.5, 0.5], [1.0, 1.0]])
    negative = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    difference = np.array([1.5 - 2.0, -0.5 - 1.0])
    expected = -np.log(1e-10 + 1 / (1 + np.exp(-difference)))
    table = ItemTable(target, 2)
    np.testing.assert_allclose(
        losses.bpr(session, table, target, negative[:, None]), expected, rtol=1e-6
    )
    twice = jnp.stack([negative, target], axis=1)
    np.testing.assert_allclose(
        losses.bpr(session, table, target, twice),
        (expected - np.log(1e-10 + 0.5)) / 2,
        rtol=1e-6,
    )
