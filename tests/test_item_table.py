"""The item table: softmax, its hand-written gradient, lookups and ranks, in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srgnn_jax.model import ranking
from srgnn_jax.model.item_table import ItemTable, item_scores
from srgnn_jax.model.losses import cross_entropy


def random_problem(batch=6, items=23, size=5, scale=1.0):
    rng = np.random.default_rng(0)
    session = jnp.array(rng.normal(size=(batch, size)) * scale, jnp.float32)
    table = jnp.array(rng.normal(size=(items, size)), jnp.float32)
    # Two examples share a target: their gradients must add up.
    target = jnp.array(rng.integers(1, items, batch)).at[1].set(4).at[2].set(4)
    return session, table, target


def table_of(rows, num_items=None, **options):
    return ItemTable(rows, rows.shape[0] if num_items is None else num_items, **options)


def full_softmax(session, rows, target, score_padding=False, **options):
    """Looks up the targets and scores, like a step."""
    table = table_of(rows, score_padding=score_padding, **options)
    (found,), table = table.lookup(target)
    return cross_entropy(session, table, found, found[:, None][:, :0])


def top_k(session, rows, k, max_scores=2**23, recall=1.0, **options):
    return table_of(rows, max_scores=max_scores, **options).top_k(session, k, recall)


def reference(session, table, target, score_padding):
    scores = session @ table.T
    if not score_padding:
        scores, target = scores[:, 1:], target - 1
    return optax.softmax_cross_entropy_with_integer_labels(scores, target)


# 23 items and 6 sessions: whole, in halves, in blocks of 5 rows, row by row.
@pytest.mark.parametrize(
    ("score_padding", "max_scores"),
    [(False, 10_000), (False, 100), (True, 10_000), (True, 30), (False, 1)],
)
def test_full_softmax_matches_reference(score_padding, max_scores):
    session, table, target = random_problem()
    weight = jnp.array([0.3, 1.0, 2.0, 0.0, 0.7, 0.1])

    def ours(*arguments):
        return full_softmax(*arguments, max_scores=max_scores)

    def weighted(loss):
        return lambda s, t: jnp.sum(weight * loss(s, t, target, score_padding))

    np.testing.assert_allclose(
        ours(session, table, target, score_padding),
        reference(session, table, target, score_padding),
        rtol=1e-5,
    )
    grad = jax.jit(jax.grad(weighted(ours), (0, 1)))(session, table)
    expected = jax.grad(weighted(reference), (0, 1))(session, table)
    for a, b in zip(grad, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_row_0_gets_a_gradient_only_where_it_is_scored():
    session, table, target = random_problem()

    def row_0(score_padding):
        return jax.grad(
            lambda t: full_softmax(session, t, target, score_padding).sum()
        )(table)[0]

    assert not row_0(False).any()
    assert row_0(True).any()


def largest_array(jaxpr):
    """Returns the size of the largest array in a traced computation."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [
        largest_array(getattr(value, "jaxpr", value))
        for eqn in jaxpr.eqns
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        )
        if hasattr(value, "jaxpr") or hasattr(value, "eqns")
    ]
    return max(sizes + inner)


@pytest.mark.parametrize(("max_scores", "bounded"), [(2_000, True), (10**6, False)])
def test_blocks_never_hold_all_scores(max_scores, bounded):
    session, table = jnp.zeros((64, 2)), jnp.zeros((500, 2))
    target = jnp.ones(64, jnp.int32)

    def loss(session, table):
        return full_softmax(session, table, target, max_scores=max_scores).sum()

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(session, table)
    assert (largest_array(traced.jaxpr) <= 2_100) == bounded


def test_full_softmax_of_huge_scores_is_finite():
    session, table, target = random_problem(scale=1e4)
    loss, grad = jax.value_and_grad(lambda s: full_softmax(s, table, target).sum())(
        session
    )
    expected = reference(session, table, target, False).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert jnp.isfinite(grad).all()


def test_lookup_adds_its_gradient_to_that_of_the_table():
    _, table, _ = random_problem()
    rows = jnp.array([3, 0, 3, 22])
    weight = jnp.arange(20.0).reshape(4, 5)

    def ours(table):
        (found,), same = table_of(table).lookup(rows)
        return (weight * found).sum() + (same.rows**3).sum()

    def expected(table):
        return (weight * table[rows]).sum() + (table**3).sum()

    np.testing.assert_allclose(
        jax.grad(ours)(table), jax.grad(expected)(table), rtol=1e-6
    )


def rank_of(scores, target):
    """Ranks the targets by given scores [V, B]."""
    scored = jnp.arange(len(scores)) > 0
    target_score = scores[target, jnp.arange(scores.shape[1])]
    return ranking.count_not_below(scores, target_score, scored)


def test_rank_matches_sorting():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 8)).astype(np.float32)
    target = rng.integers(1, 50, 8)
    ranks = rank_of(jnp.array(scores), jnp.array(target))
    for b in range(8):
        order = 1 + np.argsort(-scores[1:, b])
        assert order[ranks[b] - 1] == target[b]


@pytest.mark.parametrize("rows", [1, 7, 23, 100])
def test_ranks_do_not_depend_on_how_many_rows_are_compared_at_a_time(rows, monkeypatch):
    session, table, target = random_problem()
    scores = item_scores(session, table)
    expected = [
        1 + int((np.array(scores)[1:, b] > float(scores[row, b])).sum())
        for b, row in enumerate(target.tolist())
    ]
    monkeypatch.setattr(ranking, "COUNTED_ROWS", rows)
    assert rank_of(scores, target).tolist() == expected


def test_padding_row_is_never_ranked():
    scores = jnp.array([[99.0], [1.0], [2.0]])
    assert rank_of(scores, jnp.array([2])).tolist() == [1]


@pytest.mark.parametrize("value", [0.0, jnp.nan, jnp.inf, -jnp.inf])
def test_equal_scores_rank_the_target_last(value):
    scores = jnp.full((40, 3), value)
    assert rank_of(scores, jnp.array([1, 20, 39])).tolist() == [39] * 3


def test_ties_and_nan_count_against_the_target():
    scores = jnp.array([[0.0], [1.0], [3.0], [3.0], [jnp.nan], [5.0]])
    # Ahead of row 2: row 5 is better, row 3 is equal, row 4 cannot be compared.
    assert rank_of(scores, jnp.array([2])).tolist() == [4]
    assert rank_of(scores, jnp.array([4])).tolist() == [5]


@pytest.mark.parametrize("max_scores", [10_000, 100, 30, 1])
def test_ranks_are_those_of_all_scores(max_scores):
    session, table, target = random_problem()
    # Equal rows tie exactly, whatever their blocks; a NaN row beats all.
    table = table.at[7].set(table[4]).at[20].set(table[4]).at[11].set(jnp.nan)
    expected = rank_of(item_scores(session, table), target)
    ranks = table_of(table, max_scores=max_scores).target_rank(session, target)
    assert ranks.tolist() == expected.tolist()
    assert (ranks[1:3] >= 4).all()


def test_bfloat16_products_are_close_and_sums_stay_float32():
    session, table, target = random_problem(batch=64, items=500, size=32, scale=0.2)

    def loss(compute_dtype, max_scores):
        return jax.value_and_grad(
            lambda s, t: full_softmax(
                s, t, target, max_scores=max_scores, compute_dtype=compute_dtype
            ).mean(),
            (0, 1),
        )(session, table)

    exact, gradient = loss(None, 10**6)
    for max_scores in (10**6, 3_000):
        rounded, rounded_gradient = loss("bfloat16", max_scores)
        assert rounded.dtype == jnp.float32
        assert 0 < abs(rounded - exact) < 2e-3 * exact
        for ours, theirs in zip(rounded_gradient, gradient, strict=True):
            assert ours.dtype == jnp.float32
            assert abs(ours - theirs).max() < 0.02 * abs(theirs).max()


def sorted_top_k(scores, k):
    """Sorts the scores [V, B] of rows from 1 on; the lower row wins ties."""
    order = 1 + np.argsort(-np.asarray(scores)[1:], axis=0, kind="stable")[:k].T
    return np.take_along_axis(np.asarray(scores).T, order, axis=1), order


# 700 items and 20 sessions: whole, in 2 or 9 blocks, in blocks of fewer than k rows.
@pytest.mark.parametrize(
    ("k", "max_scores"),
    [(1, 14_000), (7, 14_000), (100, 14_000), (7, 7_000), (100, 1_600), (7, 120)],
)
def test_top_k_is_that_of_sorting(k, max_scores, monkeypatch):
    monkeypatch.setattr(ranking, "FEW_ROWS", 0)
    session, table, _ = random_problem(batch=20, items=700)
    # Equal rows tie exactly, even in distant groups and blocks.
    table = table.at[jnp.array([3, 4, 90, 350, 699])].set(table[200])
    best, row = jax.jit(top_k, static_argnums=(2, 3))(session, table, k, max_scores)
    expected, order = sorted_top_k(item_scores(session, table), k)
    np.testing.assert_allclose(best, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(row, order)


def test_top_k_gives_no_score_to_rows_that_do_not_count():
    session, table, _ = random_problem(items=700)
    expected, order = sorted_top_k(item_scores(session, table[:12]), 20)
    for max_scores in (10_000, 500):
        best, row = jax.jit(top_k, static_argnums=(2, 3))(
            session, table, 20, max_scores, num_items=jnp.int32(12)
        )
        assert best.shape == (6, 20)
        np.testing.assert_array_equal(row[:, :11], order)
        np.testing.assert_allclose(best[:, :11], expected, rtol=1e-5)
        assert (best[:, 11:] == -jnp.inf).all()
    best, _ = top_k(session, table[:12], 20)
    assert best.shape == (6, 12)


@pytest.mark.parametrize("max_scores", [10_000, 200])
def test_top_k_of_a_split_table_is_that_of_the_whole(max_scores):
    session, table, _ = random_problem(items=701)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("items",))
    filled_up = jnp.pad(table, [(0, 3), (0, 0)], constant_values=100)
    spec = jax.sharding.PartitionSpec

    def of_part(session, table):
        return top_k(session, table, 200, max_scores, num_items=701, axis_name="items")

    split = jax.shard_map(
        of_part,
        mesh=mesh,
        in_specs=(spec(), spec("items")),
        out_specs=spec(),
        check_vma=False,
    )
    best, row = jax.jit(split)(session, filled_up)
    expected, order = sorted_top_k(item_scores(session, table), 200)
    np.testing.assert_allclose(best, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(row, order)


def test_top_k_of_many_items_sorts_few_of_them():
    session, table = jnp.ones((16, 3)), jnp.ones((40_000, 3))
    traced = jax.make_jaxpr(lambda s, t: top_k(s, t, 20))(session, table)
    sizes = [
        eqn.invars[0].aval.shape[-1]
        for eqn in traced.jaxpr.eqns
        if eqn.primitive.name == "top_k"
    ]
    assert len(sizes) == 2
    assert max(sizes) < 2_000


def test_approximate_top_k_is_asked_of_the_hardware():
    session, table, _ = random_problem(items=700)
    _, row = top_k(session, table, 10, recall=0.9)
    _, order = sorted_top_k(item_scores(session, table), 10)
    found = [
        len({*a} & {*b}) for a, b in zip(row.tolist(), order.tolist(), strict=True)
    ]
    assert np.mean(found) >= 9
    traced = jax.make_jaxpr(lambda s, t: top_k(s, t, 10, recall=0.9))(session, table)
    assert "approx_top_k" in str(traced)


@pytest.mark.parametrize("max_scores", [10_000, 30])
@pytest.mark.parametrize("score_padding", [False, True])
def test_log_sum_exp_is_that_of_the_softmax(score_padding, max_scores):
    session, table, _ = random_problem()

    @jax.jit
    def log_sum_exp(session, table, num_items):
        options = {"score_padding": score_padding, "max_scores": max_scores}
        return table_of(table, num_items, **options).log_sum_exp(session)

    total = log_sum_exp(session, table, jnp.int32(20))
    scores = item_scores(session, table)[0 if score_padding else 1 : 20]
    np.testing.assert_allclose(total, jax.nn.logsumexp(scores, axis=0), rtol=1e-5)


@pytest.mark.parametrize("split", [False, True])
def test_all_scores_and_their_gradient_are_those_of_the_product(split):
    session, rows, _ = random_problem(items=22)
    weight = jnp.arange(22.0 * 6).reshape(22, 6)
    devices = 4 if split else 1
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("items",))
    spec = jax.sharding.PartitionSpec
    filled_up = jnp.pad(rows, [(0, -22 % devices), (0, 0)], constant_values=100)

    def loss(session, rows):
        table = table_of(rows, 22, axis_name="items" if split else None)
        scores = table.scores(session)
        return (weight * scores).sum(), scores

    gradient = jax.shard_map(
        jax.grad(loss, (0, 1), has_aux=True),
        mesh=mesh,
        in_specs=(spec(), spec("items")),
        out_specs=((spec(), spec("items")), spec()),
        check_vma=False,
    )
    (d_session, d_rows), scores = jax.jit(gradient)(session, filled_up)
    np.testing.assert_allclose(scores, rows @ session.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_session, weight.T @ rows, rtol=1e-5)
    np.testing.assert_allclose(d_rows[:22], weight @ session, rtol=1e-5, atol=1e-4)
    assert not np.asarray(d_rows[22:]).any()
