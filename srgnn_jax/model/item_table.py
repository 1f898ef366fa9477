"""The item table: looks rows up, scores and ranks them, in blocks if it is huge.

Everything also works on one device's part of a table that is split by rows over a mesh
axis. Each device holds R rows, device i those from i * R on. The last device's rows may
extend beyond V; rows from V on are padding and are never scored. If the table is whole,
R = V.

Axes: B batch, N lookups, V item rows (row 0 is the padding item), R rows of V that this
device holds, D embedding, K items of a list.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from srgnn_jax.model import softmax
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.layers import normalise, over_devices, product
from srgnn_jax.model.ranking import count_not_below, largest

# Scores to hold at a time: 8 Mi floats are 32 MiB.
MAX_SCORES = 2**23


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """The item table, whole or one device's rows of it, and how it is scored.

    Attributes:
      rows: the embeddings [R, D].
      num_items: V; may be traced, except for gradients.
      score_padding: whether row 0 takes part in the softmax, as in RecBole; the paper's
        code leaves it out.
      max_scores: scores to hold at a time. If R * B exceeds it, the table is processed
        in blocks of rows. Results are the same up to rounding.
      axis_name: mesh axis that the table is split over, or None.
      compute_dtype: of the matrix products, see `layers.product`.
    """

    rows: Any  # Float[Array, "R D"]
    num_items: int | Int[AnyArray, ""]
    score_padding: bool = False
    max_scores: int = MAX_SCORES
    axis_name: str | None = None
    compute_dtype: str | None = None

    def lookup(
        self, *ids: Int[AnyArray, "..."], normalize: bool = False
    ) -> tuple[list[Float[Array, "... D"]], "ItemTable"]:
        """Looks all items up at once: each lookup costs a pass over the gradient.

        Args:
          *ids: item ids, in arrays of any shape.
          normalize: whether to scale the rows of the results and the table to length 1.

        Returns:
          The rows of each array of `ids`, and the table to score with. Use the returned
          table: its gradient then includes the lookup's, without a second table.
        """
        flat = jnp.concatenate([jnp.asarray(x).reshape(-1) for x in ids])
        found, rows = _lookup(self.rows, flat, self.axis_name)
        if normalize:
            found, rows = normalise(found), normalise(rows)
        ends = [0]
        for x in ids:
            ends.append(ends[-1] + math.prod(x.shape))
        parts = [
            found[start:end].reshape(*x.shape, found.shape[-1])
            for x, start, end in zip(ids, ends[:-1], ends[1:], strict=True)
        ]
        return parts, dataclasses.replace(self, rows=rows)

    def scores(self, session: Float[Array, "B D"]) -> Float[Array, "V B"]:
        """Returns the score of every item for every session, also of a split table.

        Every device holds all scores at once: for losses that need each of them.
        """
        held = _scores(session, self.rows, self._how())
        return held[: self.num_items]

    def log_sum_exp(self, session: Float[Array, "B D"]) -> Float[Array, " B"]:
        """Returns the log of the softmax's denominator; see `softmax.log_sum_exp`."""
        if isinstance(self.num_items, int):
            return softmax.log_sum_exp(session, self.rows, self._how())
        return softmax.forward(session, self.rows, self)[0]

    def target_rank(
        self, session: Float[Array, "B D"], target: Int[AnyArray, " B"]
    ) -> Int[Array, " B"]:
        """Returns the rank of each target among rows 1 to V - 1, 1 = best, by counting.

        In blocks, the table is scored twice, first for the targets' scores: a target
        must be compared by the very number that its block gives. For ties see
        `count_not_below`.
        """
        return self.rank_and_top_k(session, target)[0]

    def rank_and_top_k(
        self, session: Float[Array, "B D"], target: Int[AnyArray, " B"], k: int = 0
    ) -> tuple[Int[Array, " B"], Int[Array, "B K"]]:
        """Returns the ranks of `target_rank` and the rows of `top_k`.

        If all scores fit in one block, they are computed once for both.
        """
        batch = session.shape[0]
        count = self.num_blocks(batch)
        column = jnp.arange(batch)
        index = _here(target, self.rows, self.axis_name)

        def targets_in(first, scored, scores):
            inside = index - first
            held = (inside >= 0) & (inside < scores.shape[0])
            inside = jnp.where(held, inside, 0)
            return jnp.where(held & scored[inside], scores[inside, column], 0)

        if count == 1:
            first, _, scored, scores = self.block(session, 0, 1, 1)
            target_score = over_devices(
                targets_in(first, scored, scores), self.axis_name
            )
            ranks = count_not_below(scores, target_score, scored)
            best, row = largest(scores, min(k, len(scores)), 1.0)
            _, row = self._joined(best, row, k)
            return over_devices(ranks, self.axis_name), row

        def find(i, so_far):
            first, _, scored, scores = self.block(session, i, count, 1)
            return so_far + targets_in(first, scored, scores)

        def rank(i, so_far):
            _, _, scored, scores = self.block(session, i, count, 1)
            return so_far + count_not_below(scores, target_score, scored)

        zeros = jnp.zeros(batch, session.dtype)
        target_score = over_devices(
            jax.lax.fori_loop(0, count, find, zeros), self.axis_name
        )
        ranks = jax.lax.fori_loop(0, count, rank, jnp.zeros(batch, jnp.int32))
        return over_devices(ranks, self.axis_name), self.top_k(session, k)[1]

    def top_k(
        self, session: Float[Array, "B D"], k: int, recall: float = 1.0
    ) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
        """Finds the items with the highest scores among rows 1 to V - 1, best first.

        Of equal scores, the lower row comes first.

        Args:
          session: session embeddings.
          k: number of items to return.
          recall: target share of the true items for `approx_max_k`; 1: exact.

        Returns:
          Scores and rows, K = min(k, rows of the whole table). If fewer rows are
          scored, the last scores are -inf and their rows are meaningless.
        """
        held, batch = self.rows.shape[0], session.shape[0]
        count = self.num_blocks(batch)

        def best_of(i):
            first, _, _, scores = self.block(session, i, count, 1)
            best, row = largest(scores, min(k, len(scores)), recall)
            return best, first + row

        def body(i, so_far):
            # Earlier rows come first, so that they win ties.
            pairs = zip(so_far, best_of(i), strict=True)
            best, row = (jnp.concatenate(pair, axis=1) for pair in pairs)
            return _best(best, row, min(k, held))

        if count == 1:
            best, row = best_of(0)
            return self._joined(best, row, k)
        shape = batch, min(k, held)
        lowest = jnp.full(shape, -jnp.inf, session.dtype)
        start = lowest, jnp.zeros(shape, jnp.int32)
        best, row = jax.lax.fori_loop(0, count, body, start)
        return self._joined(best, row, k)

    def _joined(self, best, row, k):
        """Merges the best items of all devices."""
        if self.axis_name is None:
            return best, row
        row += jax.lax.axis_index(self.axis_name) * self.rows.shape[0]
        best, row = (
            jax.lax.all_gather(x, self.axis_name, axis=1, tiled=True)
            for x in (best, row)
        )
        return _best(best, row, k)

    def _how(self) -> "ItemTable":
        """Returns all but the rows: the static argument of the custom gradients."""
        return dataclasses.replace(self, rows=None)

    def num_blocks(self, batch: int) -> int:
        held = self.rows.shape[0]
        return min(held, -(-held * batch // self.max_scores))

    def block(self, session, i, count, scored_from):
        """Scores block i of `count` blocks of the rows that this device holds.

        Returns:
          first: the block's first row, counted from this device's first.
          block: its rows [r, D].
          scored: which of them [r] are scored; each row is scored in one block only.
          scores: their scores [r, B], -inf for rows that are not scored.
        """
        held = self.rows.shape[0]
        rows = -(-held // count)
        # The last block is as long as the others, so it starts early: its first rows
        # are also in the previous block and are not scored again.
        first = jnp.minimum(i * rows, held - rows)
        block = jax.lax.dynamic_slice_in_dim(self.rows, first, rows)
        index = first + jnp.arange(rows)
        row = index
        if self.axis_name is not None:
            row = row + jax.lax.axis_index(self.axis_name) * held
        scored = (index >= i * rows) & (row >= scored_from) & (row < self.num_items)
        scores = item_scores(session, block, self.compute_dtype)
        if count == 1:
            return first, block, scored, self._without_unscored(scores, scored)
        return first, block, scored, jnp.where(scored[:, None], scores, -jnp.inf)

    def _without_unscored(self, scores, scored):
        """Sets the scores of unscored rows to -inf."""

        def everywhere(scores, scored):
            return jnp.where(scored[:, None], scores, -jnp.inf)

        if not isinstance(self.num_items, int):
            return everywhere(scores, scored)
        held = scores.shape[0]
        shards = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        filled_up = min(held * shards - self.num_items, held)

        # Only row 0 and the padding rows at the end can be unscored. On CPU, a `where`
        # over every row is one more pass over all scores; elsewhere it is fused.
        def at_edges(scores, scored):
            for edge in (slice(0, 1), slice(held - filled_up, held)):
                kept = everywhere(scores[edge], scored[edge])
                scores = scores.at[edge].set(kept)
            return scores

        return jax.lax.platform_dependent(
            scores, scored, cpu=at_edges, default=everywhere
        )


def item_scores(
    session: Float[Array, "B D"],
    rows: Float[Array, "R D"],
    compute_dtype: str | None = None,
) -> Float[Array, "R B"]:
    """Returns the score of every row for every session, items first.

    With items first, the table's gradient is written row by row, and sums over items
    are sums over whole rows: on CPU, a third of the time of [B, V]. With one session
    both layouts are the same, and XLA reads the table faster as the second factor.
    """
    if session.shape[0] == 1:
        return product(session, rows.T, compute_dtype).T
    return product(rows, session.T, compute_dtype)


def _here(
    ids: Int[AnyArray, " N"], rows: Float[Array, "R D"], axis_name: str | None
) -> Int[Array, " N"]:
    """Returns the index of each item in this device's rows, R if it has none."""
    if axis_name is None:
        return jnp.asarray(ids)
    held = rows.shape[0]
    index = ids - jax.lax.axis_index(axis_name) * held
    return jnp.where((index >= 0) & (index < held), index, held)


def _best(best, row, k):
    best, index = jax.lax.top_k(best, min(k, best.shape[1]))
    return best, jnp.take_along_axis(row, index, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(rows, ids, axis_name):
    """Returns the rows of the items, and all rows, with one gradient for both.

    Automatic differentiation would allocate a whole table of zeros to scatter into, and
    a third one for the sum.
    """
    index = _here(ids, rows, axis_name)
    if axis_name is None:
        return rows[index], rows
    return over_devices(rows.at[index].get(mode="fill", fill_value=0), axis_name), rows


def _lookup_forward(rows, ids, axis_name):
    return _lookup(rows, ids, axis_name), _here(ids, rows, axis_name)


def _lookup_backward(axis_name, index, cotangent):
    d_found, d_rows = cotangent
    return d_rows.at[index].add(d_found, mode="drop"), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scores(session, rows, how):
    """Scores all rows of a table, gathered from the devices that hold them."""
    held = item_scores(session, rows, how.compute_dtype)
    if how.axis_name is None:
        return held
    return jax.lax.all_gather(held, how.axis_name, tiled=True)


def _scores_forward(session, rows, how):
    return _scores(session, rows, how), (session, rows)


def _scores_backward(how, residuals, cotangent):
    session, rows = residuals
    if how.axis_name is not None:
        # Every device has the whole cotangent and takes the part for its own rows.
        first = jax.lax.axis_index(how.axis_name) * rows.shape[0]
        cotangent = jax.lax.dynamic_slice_in_dim(cotangent, first, rows.shape[0])
    d_session = product(cotangent.T, rows, how.compute_dtype)
    return (
        over_devices(d_session, how.axis_name),
        product(cotangent, session, how.compute_dtype),
    )


_scores.defvjp(_scores_forward, _scores_backward)
