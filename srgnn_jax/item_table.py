"""The item table: its rows looked up, scored and ranked, in blocks where it is huge.

Every function also works on one device's rows of a table that is split by rows over the
devices of a mesh axis, all of the same number: device i holds the rows from i * R on.
It is then told the axis's name and V, as the last device's rows may go beyond V; rows
from V on only fill up and are never scored. Without an axis R = V.

Axes: B batch, N lookups, V item rows (row 0 is the padding item), R rows of V that this
device holds, D embedding.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

AnyArray = Array | np.ndarray
# Scores that are held at a time: 8 Mi floats are 32 MiB.
MAX_SCORES = 2**23
# Rows that are compared with the target at a time.
COUNTED_ROWS = 2048
# Below, the search for the best items is done session by session, row by row.
FEW_SESSIONS = 16
FEW_ROWS = 8192


def _here(
    rows: Int[AnyArray, " N"], table: Float[Array, "R D"], axis_name: str | None
) -> Int[Array, " N"]:
    """Returns where each row lies in this device's part, R where it does not."""
    if axis_name is None:
        return jnp.asarray(rows)
    held = table.shape[0]
    index = rows - jax.lax.axis_index(axis_name) * held
    return jnp.where((index >= 0) & (index < held), index, held)


def _sum(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _gather(
    rows: Int[AnyArray, " N"], table: Float[Array, "R D"], axis_name: str | None
) -> Float[Array, "N D"]:
    index = _here(rows, table, axis_name)
    if axis_name is None:
        return table[index]
    return _sum(table.at[index].get(mode="fill", fill_value=0), axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "R D"],
    rows: Int[AnyArray, " N"],
    axis_name: str | None = None,
) -> tuple[Float[Array, "N D"], Float[Array, "R D"]]:
    """Looks rows up.

    Args:
      table: the item table.
      rows: the rows to look up.
      axis_name: mesh axis that the table is split over, or None.

    Returns:
      The rows, and the table itself. Whoever goes on with the returned table has the
      gradient of the looked-up rows added into that of its later use: automatic
      differentiation would make a whole table of zeros to scatter into, and a third
      one for the sum.
    """
    return _gather(rows, table, axis_name), table


def _lookup_forward(table, rows, axis_name):
    return lookup(table, rows, axis_name), _here(rows, table, axis_name)


def _lookup_backward(axis_name, index, cotangent):
    d_rows, d_table = cotangent
    return d_table.at[index].add(d_rows, mode="drop"), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def item_scores(
    session: Float[Array, "B D"],
    table: Float[Array, "R D"],
    compute_dtype: str | None = None,
) -> Float[Array, "R B"]:
    """Returns the score of every item row for every session, items first.

    Items come first because the gradient of the table is then written row by row, and
    sums over items are sums over whole rows: on CPU a third of the time of [B, V]. Of
    one session both lie alike, and XLA reads the table faster as the second factor.
    """
    if session.shape[0] == 1:
        return product(session, table.T, compute_dtype).T
    return product(table, session.T, compute_dtype)


def product(a: Array, b: Array, compute_dtype: str | None) -> Array:
    """Multiplies matrices, in `compute_dtype` with sums in float32, or as they are."""
    if compute_dtype is None:
        return a @ b
    a, b = a.astype(compute_dtype), b.astype(compute_dtype)
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _num_blocks(held: int, batch: int, max_scores: int) -> int:
    return min(held, -(-held * batch // max_scores))


def _block(session, table, i, count, scored_from, num_items, axis_name, compute_dtype):
    """Scores block i of `count` blocks of the rows that this device holds.

    Returns:
      first: the block's first row, counted from this device's first.
      block: its rows [r, D].
      scored: which of them [r] are scored, each in one block only.
      scores: theirs [r, B].
    """
    held = table.shape[0]
    rows = -(-held // count)
    # The last block is as long as the others: it starts early, and its first rows,
    # which the block before holds too, do not count.
    first = jnp.minimum(i * rows, held - rows)
    block = jax.lax.dynamic_slice_in_dim(table, first, rows)
    index = first + jnp.arange(rows)
    row = index
    if axis_name is not None:
        row = row + jax.lax.axis_index(axis_name) * held
    scored = (index >= i * rows) & (row >= scored_from) & (row < num_items)
    return first, block, scored, item_scores(session, block, compute_dtype)


def _without_unscored(scores, scored, num_items, axis_name):
    """Sets the scores of all rows of a table to -inf where they are not scored."""
    held = scores.shape[0]
    # Only row 0 and the last rows, which fill a table up, can be unscored: with V
    # known, a choice for every row, one more pass over all scores, is saved.
    edges = [slice(0, held)]
    if isinstance(num_items, int):
        shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        filled_up = min(held * shards - num_items, held)
        edges = [slice(0, 1), slice(held - filled_up, held)]
    for edge in edges:
        kept = jnp.where(scored[edge, None], scores[edge], -jnp.inf)
        scores = scores.at[edge].set(kept)
    return scores


def full_softmax(
    session: Float[Array, "B D"],
    table: Float[Array, "R D"],
    target_embedding: Float[Array, "B D"],
    score_padding: bool = False,
    max_scores: int = MAX_SCORES,
    *,
    num_items: int | None = None,
    axis_name: str | None = None,
    compute_dtype: str | None = None,
) -> Float[Array, " B"]:
    """Cross entropy of the softmax over items: log sum_v exp(s . e_v) - s . e_target.

    The gradient of the first term is written by hand. With p the softmax, it is
        d / d table = p session,   d / d session = p^T table
    where the division by the softmax's sum moves to the [B, D] side, so that no pass
    over [V, B] is made beside the two products.

    Args:
      session: session embeddings s.
      table: the item table, or this device's rows of it.
      target_embedding: the row of the item that was clicked next, from `lookup`.
      score_padding: whether row 0 takes part in the softmax, as in RecBole; the paper's
        code leaves it out.
      max_scores: where R * B exceeds it, the table is worked through in blocks of rows,
        twice: at most so many scores are ever held, and the numbers are the same but
        for rounding.
      num_items: V, where the table is split.
      axis_name: mesh axis that the table is split over, or None.
      compute_dtype: of the matrix products' factors; None: as they come.

    Source: Wu et al. 2019, equations 8 to 10.
    """
    if num_items is None:
        num_items = table.shape[0]
    static = int(not score_padding), max_scores, num_items, axis_name, compute_dtype
    target_score = jnp.sum(session * target_embedding, axis=-1)
    return _log_sum_exp(session, table, static) - target_score


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _log_sum_exp(session, table, static):
    return _log_sum_exp_forward(session, table, static)[0]


def _log_sum_exp_forward(session, table, static):
    scored_from, max_scores, num_items, axis_name, compute_dtype = static
    batch = session.shape[0]
    count = _num_blocks(table.shape[0], batch, max_scores)
    how = scored_from, num_items, axis_name, compute_dtype

    if count == 1:
        *_, scored, scores = _block(session, table, 0, count, *how)
        scores = _without_unscored(scores, scored, num_items, axis_name)
        maximum = scores.max(axis=0)
        if axis_name is not None:
            maximum = jax.lax.pmax(maximum, axis_name)
        exponentials = jnp.exp(scores - maximum)
        total = exponentials.sum(axis=0)
        if compute_dtype is not None:
            exponentials = exponentials.astype(compute_dtype)
    else:
        exponentials = None  # Too many to keep: the backward pass makes them again.

        def body(i, so_far):
            maximum, total = so_far
            *_, scored, scores = _block(session, table, i, count, *how)
            scores = jnp.where(scored[:, None], scores, -jnp.inf)
            higher = jnp.maximum(maximum, scores.max(axis=0))
            total *= jnp.exp(maximum - higher)
            return higher, total + jnp.exp(scores - higher).sum(axis=0)

        lowest = jnp.full(batch, jnp.finfo(session.dtype).min, session.dtype)
        start = lowest, jnp.zeros(batch, session.dtype)
        maximum, total = jax.lax.fori_loop(0, count, body, start)
        if axis_name is not None:
            own = maximum
            maximum = jax.lax.pmax(own, axis_name)
            total *= jnp.exp(own - maximum)
    total = _sum(total, axis_name)
    residuals = session, table, maximum, total, exponentials
    return jnp.log(total) + maximum, residuals


def _log_sum_exp_backward(static, residuals, cotangent):
    scored_from, max_scores, num_items, axis_name, compute_dtype = static
    session, table, maximum, total, exponentials = residuals
    how = scored_from, num_items, axis_name, compute_dtype
    count = _num_blocks(table.shape[0], session.shape[0], max_scores)
    scale = (cotangent / total)[:, None]
    scaled_session = scale * session
    if count == 1:
        d_table = product(exponentials, scaled_session, compute_dtype)
        d_session = product(exponentials.T, table, compute_dtype)
    else:

        def body(i, so_far):
            d_table, d_session = so_far
            first, block, scored, scores = _block(session, table, i, count, *how)
            exponentials = jnp.where(scored[:, None], jnp.exp(scores - maximum), 0)
            # Rows that do not count add nothing to what the block before has written.
            rows = jax.lax.dynamic_slice_in_dim(d_table, first, block.shape[0])
            rows += product(exponentials, scaled_session, compute_dtype)
            return (
                jax.lax.dynamic_update_slice_in_dim(d_table, rows, first, axis=0),
                d_session + product(exponentials.T, block, compute_dtype),
            )

        start = jnp.zeros_like(table), jnp.zeros_like(session)
        d_table, d_session = jax.lax.fori_loop(0, count, body, start)
    return scale * _sum(d_session, axis_name), d_table


_log_sum_exp.defvjp(_log_sum_exp_forward, _log_sum_exp_backward)


def count_not_below(
    scores: Float[Array, "R B"],
    target_score: Float[Array, " B"],
    scored: Array,
) -> Int[Array, " B"]:
    """Counts the items that are not scored strictly below the target, itself included.

    So ties are resolved against the target, and whatever cannot be compared (NaN, on
    either side) counts against it too: a model whose scores are all equal, or NaN,
    ranks its target last, never first.
    """
    held, batch = scores.shape
    rows = min(COUNTED_ROWS, held)

    def not_below(first, rows):
        part = jax.lax.dynamic_slice_in_dim(scores, first, rows)
        counts = jax.lax.dynamic_slice_in_dim(scored, first, rows)
        return (~(part < target_score) & counts[:, None]).astype(jnp.int32)

    # Some rows at a time: on CPU the comparison's result then stays in the cache, which
    # halves the time.
    blocks = held // rows
    counts = jax.lax.fori_loop(
        0,
        blocks,
        lambda i, counts: counts + not_below(i * rows, rows),
        jnp.zeros((rows, batch), jnp.int32),
    ).sum(axis=0)
    if held > blocks * rows:
        counts += not_below(blocks * rows, held - blocks * rows).sum(axis=0)
    return counts


def target_rank(
    session: Float[Array, "B D"],
    table: Float[Array, "R D"],
    target: Int[AnyArray, " B"],
    max_scores: int = MAX_SCORES,
    *,
    num_items: int | None = None,
    axis_name: str | None = None,
    compute_dtype: str | None = None,
) -> Int[Array, " B"]:
    """Returns the rank (1 = best) of each target among rows 1 to V - 1, by counting.

    The arguments are those of `full_softmax`. See `count_not_below` for ties. Where
    R * B exceeds `max_scores` the blocks are scored twice, first for the targets: a
    target must be compared with the very number that its row's block gives.
    """
    if num_items is None:
        num_items = table.shape[0]
    batch = session.shape[0]
    count = _num_blocks(table.shape[0], batch, max_scores)
    column = jnp.arange(batch)
    index = _here(target, table, axis_name)

    def block(i):
        return _block(
            *(session, table, i, count, 1, num_items, axis_name, compute_dtype)
        )

    def targets_in(first, scored, scores):
        inside = index - first
        held = (inside >= 0) & (inside < scores.shape[0])
        inside = jnp.where(held, inside, 0)
        return jnp.where(held & scored[inside], scores[inside, column], 0)

    if count == 1:
        first, _, scored, scores = block(0)
        target_score = _sum(targets_in(first, scored, scores), axis_name)
        return _sum(count_not_below(scores, target_score, scored), axis_name)

    def find(i, so_far):
        first, _, scored, scores = block(i)
        return so_far + targets_in(first, scored, scores)

    def rank(i, so_far):
        _, _, scored, scores = block(i)
        return so_far + count_not_below(scores, target_score, scored)

    zeros = jnp.zeros(batch, session.dtype)
    target_score = _sum(jax.lax.fori_loop(0, count, find, zeros), axis_name)
    ranks = jax.lax.fori_loop(0, count, rank, jnp.zeros(batch, jnp.int32))
    return _sum(ranks, axis_name)


def log_sum_exp(
    session: Float[Array, "B D"],
    table: Float[Array, "R D"],
    score_padding: bool = False,
    max_scores: int = MAX_SCORES,
    *,
    num_items: int | Int[Array, ""] | None = None,
    axis_name: str | None = None,
    compute_dtype: str | None = None,
) -> Float[Array, " B"]:
    """Returns the logarithm of what the softmax divides by.

    The arguments are those of `full_softmax`, but `num_items` may be traced, and there
    is no gradient written for it.
    """
    if num_items is None:
        num_items = table.shape[0]
    static = int(not score_padding), max_scores, num_items, axis_name, compute_dtype
    return _log_sum_exp_forward(session, table, static)[0]


def top_k(
    session: Float[Array, "B D"],
    table: Float[Array, "R D"],
    k: int,
    max_scores: int = MAX_SCORES,
    *,
    num_items: int | Int[Array, ""] | None = None,
    axis_name: str | None = None,
    compute_dtype: str | None = None,
    recall: float = 1.0,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Finds the items with the highest scores among rows 1 to V - 1, best first.

    Of equal scores the lower row comes first.

    Args:
      session: session embeddings.
      table: the item table, or this device's rows of it.
      k: how many items are wanted.
      max_scores: where R * B exceeds it, the table is worked through in blocks of rows.
      num_items: V, where it is not the table's number of rows; it may be traced.
      axis_name: mesh axis that the table is split over, or None.
      compute_dtype: of the matrix product's factors; None: as they come.
      recall: share of the true items that `jax.lax.approx_max_k` is to find; 1 is
        exact.

    Returns:
      Scores and rows, K = min(k, rows of the whole table). Where fewer rows are scored
      the last scores are -inf, and the rows beside them mean nothing.
    """
    held, batch = table.shape[0], session.shape[0]
    if num_items is None:
        num_items = held
    count = _num_blocks(held, batch, max_scores)

    def best_of(i):
        first, _, scored, scores = _block(
            *(session, table, i, count, 1, num_items, axis_name, compute_dtype)
        )
        if count == 1:
            scores = _without_unscored(scores, scored, num_items, axis_name)
        else:
            scores = jnp.where(scored[:, None], scores, -jnp.inf)
        best, row = _largest(scores, min(k, scores.shape[0]), recall)
        return best, first + row

    def merge(best, row, wanted):
        best, index = jax.lax.top_k(best, min(wanted, best.shape[1]))
        return best, jnp.take_along_axis(row, index, axis=1)

    def body(i, so_far):
        # Rows that came earlier stand first, so that they win ties.
        pairs = zip(so_far, best_of(i), strict=True)
        best, row = (jnp.concatenate(pair, axis=1) for pair in pairs)
        return merge(best, row, min(k, held))

    if count == 1:
        best, row = best_of(0)
    else:
        shape = batch, min(k, held)
        start = jnp.full(shape, -jnp.inf, session.dtype), jnp.zeros(shape, jnp.int32)
        best, row = jax.lax.fori_loop(0, count, body, start)
    if axis_name is None:
        return best, row
    row += jax.lax.axis_index(axis_name) * held
    best, row = (
        jax.lax.all_gather(x, axis_name, axis=1, tiled=True) for x in (best, row)
    )
    return merge(best, row, k)


def _largest(
    scores: Float[Array, "R B"], k: int, recall: float
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Returns the k largest of each column and their rows.

    The k largest lie in the k groups of rows whose maxima are the largest: one cheap
    pass finds the maxima, and only those groups are searched. For few sessions or
    rows that pass costs more than it saves.
    """
    rows, batch = scores.shape
    # Maxima to sort and items to sort are then about equally many.
    size = 2 ** max(round(math.log2(rows / max(k, 1)) / 2), 0)
    groups = rows // size
    if recall < 1 or groups <= k or batch < FEW_SESSIONS or rows < FEW_ROWS:
        if recall < 1:
            best, row = jax.lax.approx_max_k(scores.T, k, recall_target=recall)
        else:
            best, row = jax.lax.top_k(scores.T, k)
        return best, row
    whole = groups * size
    grouped = scores[:whole].reshape(groups, size, batch)
    maxima = grouped
    # By halves, at the speed of memory, but the last few by a reduction: XLA would join
    # halves with the transposition, and read the scores column by column.
    while maxima.shape[1] > 8:
        maxima = jnp.maximum(*jnp.split(maxima, 2, axis=1))
    maxima = maxima.max(axis=1)
    # In the order of their rows, so that the lower one of equal scores is found first.
    chosen = jnp.sort(jax.lax.top_k(maxima.T, k)[1], axis=1)
    row = (chosen[:, :, None] * size + jnp.arange(size)).reshape(batch, k * size)
    rest = jnp.arange(whole, rows, dtype=row.dtype)
    row = jnp.concatenate([row, jnp.tile(rest, (batch, 1))], axis=1)
    in_groups = jax.vmap(lambda g, of_session: grouped[g, :, of_session])
    found = in_groups(chosen, jnp.arange(batch)).reshape(batch, k * size)
    best, index = jax.lax.top_k(jnp.append(found, scores[whole:].T, axis=1), k)
    return best, jnp.take_along_axis(row, index, axis=1)
