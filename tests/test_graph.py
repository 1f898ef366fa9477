"""Compares session graphs with the published example and with plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srgnn_jax.model import graph


def by_item(item_seq):
    """Builds {item: {neighbour: weight}}, incoming and outgoing, edge by edge."""
    clicks = [item for item in item_seq if item]
    edges = set(itertools.pairwise(clicks))
    incoming = {v: {u for u, w in edges if w == v} for v in clicks}
    outgoing = {u: {w for v, w in edges if v == u} for u in clicks}

    def weight(neighbours):
        return float(np.float32(1) / np.float32(max(neighbours, 1)))

    def weigh(sets):
        return {i: dict.fromkeys(s, weight(len(s))) for i, s in sets.items()}

    return weigh(incoming), weigh(outgoing)


def rows_by_item(nodes, matrix):
    """Reads a connection matrix back into {item: {neighbour: weight}}."""
    return {
        int(item): {
            int(nodes[j]): float(matrix[i, j]) for j in np.flatnonzero(matrix[i])
        }
        for i, item in enumerate(nodes)
        if item
    }


def test_published_example():
    nodes, alias, a = graph.connection_matrix(jnp.array([[1, 2, 3, 2, 4]]))
    incoming = rows_by_item(nodes[0], a[0, :, :5])
    outgoing = rows_by_item(nodes[0], a[0, :, 5:])
    assert incoming == {1: {}, 2: {1: 0.5, 3: 0.5}, 3: {2: 1.0}, 4: {2: 1.0}}
    assert outgoing == {1: {2: 1.0}, 2: {3: 0.5, 4: 0.5}, 3: {2: 1.0}, 4: {}}
    assert list(nodes[0, alias[0]]) == [1, 2, 3, 2, 4]


@pytest.mark.parametrize("length", [1, 2, 12])
def test_random_sessions_match_plain_python(length):
    rng = np.random.default_rng(length)
    item_seq = rng.integers(1, 6, (32, length))
    item_seq_len = rng.integers(1, length + 1, 32)
    item_seq[np.arange(length) >= item_seq_len[:, None]] = 0
    nodes, alias, a = jax.jit(graph.connection_matrix)(jnp.array(item_seq))
    assert a.shape == (32, length, 2 * length)
    for b in range(32):
        incoming, outgoing = by_item(item_seq[b].tolist())
        assert rows_by_item(nodes[b], a[b, :, :length]) == incoming
        assert rows_by_item(nodes[b], a[b, :, length:]) == outgoing
        n = item_seq_len[b]
        assert (nodes[b][alias[b, :n]] == item_seq[b, :n]).all()


def test_each_distinct_item_is_one_node():
    nodes, _, _ = graph.connection_matrix(jnp.array([[7, 7, 9, 7, 9, 0, 0]]))
    assert sorted(nodes[0].tolist()) == [0, 0, 0, 0, 0, 7, 9]


def test_empty_slots_have_no_connections():
    nodes, _, a = graph.connection_matrix(jnp.array([[7, 7, 9, 7, 0, 0]]))
    empty = nodes[0] == 0
    assert not a[0][empty].any()
    assert not a[0].reshape(6, 2, 6)[:, :, empty].any()
