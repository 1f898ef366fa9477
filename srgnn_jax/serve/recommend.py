"""Recommendations for sessions of raw item ids.

    recommender = srgnn_jax.Recommender.load("runs/diginetica")
    recommender.recommend([["81766", "31331"]], k=5)

Axes: B sessions of a batch, L positions, C candidates.
"""

import contextlib
import copy
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Int

from srgnn_jax import config as config_lib
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices import layouts, suits
from srgnn_jax.devices.layouts import ITEM_AXIS
from srgnn_jax.errors import UserError
from srgnn_jax.evaluate import joined
from srgnn_jax.evaluate.session_knn import Neighbours, Prefixes
from srgnn_jax.model.layers import Params, normalise
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import load_vocabulary
from srgnn_jax.serve import explanation, exported, step
from srgnn_jax.serve.explanation import Explanation
from srgnn_jax.serve.exported import BATCH_SIZES, RawSession, Recommendation

# Up to this many sessions are scored at once, however large the table: the blocks of a
# large table are copies, which take as long again.
WHOLE = 8
# Maximum clicks of a session that the model sees, unless the run was trained on fewer.
MAX_LENGTH = 256


class Recommender:
    """A trained model and its items' raw ids.

    A session is a sequence of raw ids, oldest click first. Ids are text, or whole
    numbers that stand for their text; spaces around them are ignored. If all items' ids
    are whole numbers, 1001.0 means 1001. Ids that are not in the vocabulary are dropped
    and reported. Only the last `max_length` known clicks count. A session without a
    known click gets the most popular items of training, marked as a fallback.

    Attributes:
      model, params, vocabulary, max_length: as passed.
      neighbours: what the network is joined with; None: the network alone.
      progress, step: of the run and its checkpoint, if loaded from one.
      is_newest: whether it is from the workdir's newest checkpoint; False if that one
        is damaged.
    """

    progress: Progress
    step: int
    is_newest: bool = True

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        vocabulary: Vocabulary,
        *,
        neighbours: Neighbours | None = None,
        max_length: int = MAX_LENGTH,
        max_scores: int = 0,
        whole: int = 0,
        score_padding: bool = False,
        share_code: bool = False,
        mesh: Mesh | None = None,
    ):
        """Takes a model, its item table whole or split over a mesh, and neighbours.

        The model sees at most `max_length` clicks of a session. At most `max_scores`
        scores (items times sessions) are held at a time (0: chosen for the device), but
        up to `whole` sessions are scored at once. If `score_padding`, row 0 has a share
        in probabilities. With `share_code`, recommenders of equal models run the same
        compiled functions, whatever their parameters. Without it, the parameters are
        constants to the compiler, which then multiplies weights with weights itself.
        Raises ValueError if model, item table and vocabulary differ in their rows, or a
        parameter is not finite.
        """
        table = params["item_embedding"]
        shards = 1 if mesh is None else mesh.shape[ITEM_AXIS]
        filled_up = -(-model.num_items // shards) * shards
        if (model.num_items, len(table)) != (vocabulary.num_items, filled_up):
            raise ValueError(
                f"the vocabulary has {vocabulary.num_items} item rows (padding "
                f"included), the model {model.num_items}, its table {len(table)}"
            )
        check_finite(params)
        self.model, self.params, self.vocabulary = model, params, vocabulary
        self.max_length, self.neighbours = max_length, neighbours
        max_scores = max_scores or suits.scores_to_rank(0)
        # Joining needs all scores of a batch at once.
        least = BATCH_SIZES[-2 if neighbours is None else 0]
        rows = max(least, max_scores // model.num_items, whole)
        sizes = [size for size in BATCH_SIZES if size <= rows]
        self._lists = exported.Lists(
            np.array(["", *vocabulary.ids], object),
            vocabulary.rows,
            [2**n for n in range(2, max(max_length - 1, 4).bit_length() + 1)],
            max_length,
            sizes,
            *exported.by_popularity(vocabulary.clicks, len(vocabulary.ids)),
            error=UserError,
        )
        settings: dict[str, Any] = {"model": model, "mesh": mesh, "whole": whole}
        settings |= {"score_padding": score_padding, "max_scores": max_scores}
        self._shards = shards
        self._step: Any
        if share_code:
            others = {**params, "item_embedding": ()}
            self._step = functools.partial(step.shared, others, **settings)
        else:
            weights = jax.device_get({**params, "item_embedding": ()})

            def of_table(table, *arguments, **options):
                others = jax.tree.map(jnp.asarray, weights)
                return step.of_table(others, table, *arguments, **settings, **options)

            self._step = jax.jit(of_table, static_argnames=step.OPTIONS)
        # The items to score: table, rows and count of `recommend_step`.
        self._table = normalise(table) if model.normalize else table
        self._scored: tuple[Any, Any, Any] = self._table, None, None
        # The last `candidates`, and the recommender for them.
        self._last: tuple[list[str | int | float], Recommender] | None = None

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike,
        model: config_lib.MakeModel | None = None,
        *,
        share_code: bool = False,
        split: bool = False,
        only_newest: bool = False,
    ) -> "Recommender":
        """Loads the best checkpoint of a workdir; the data set is not needed.

        It is joined with neighbours if the workdir's last evaluation was. `model` is
        the function that made the run's model, unless it is SRGNN; for `share_code` see
        the class. With `split`, the item table is split by rows over all devices if the
        run split it and is not joined. Raises UserError if there is no checkpoint, it
        is of another model, its vocabulary is missing or belongs to another run or,
        with `only_newest`, the newest checkpoint is damaged.
        """
        # Resolved, so that all files are of one run even if a link is switched now.
        folder = pathlib.Path(workdir).expanduser().resolve()
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            progress = checkpoints.progress()
            is_newest = progress.step == checkpoints.latest_step()
            if only_newest:
                checkpoints.check_newest()
            config = config_lib.from_dict(progress.config)
            made = config_lib.make_model(config, progress.num_items, model)
            neighbours = joined.load(folder, progress.num_items)
            split &= config_lib.splits_items(config) and jax.device_count() > 1
            split &= neighbours is None
            devices = layouts.find_devices("mesh" if split else "jit", (1, 0))
            params, step = restore_best(checkpoints, progress, made, devices)
        recommender = cls(
            made,
            params,
            load_vocabulary(folder, progress.vocabulary),
            neighbours=neighbours,
            max_length=config.max_session_length or MAX_LENGTH,
            max_scores=suits.scores_to_rank(config.max_scores),
            whole=WHOLE,
            score_padding=config.score_padding,
            share_code=share_code,
            mesh=devices.mesh,
        )
        recommender.progress, recommender.step = progress, step
        recommender.is_newest = is_newest
        return recommender

    def restrict(self, ids: Iterable[str | int | float]) -> "Recommender":
        """Returns a recommender of some of the items, such as those in stock.

        It shares parameters and compiled code, and also holds a table of its items. A
        warning names ids that are not in the vocabulary; ids that this recommender does
        not recommend are left out. Raises UserError if none is left.
        """
        return self.restrict_rows(self._lists.candidates(ids))

    def restrict_rows(
        self, known: Int[np.ndarray, " C"], at_least: int = 64
    ) -> "Recommender":
        """Returns a recommender of some item rows; rows of 0 are ignored.

        The number of rows of its table is a power of two, and at least `at_least`, so
        that few sizes are compiled. Raises UserError if it recommends none of them.
        """
        lists = self._lists.restrict(known)
        # Row 0 is the padding item, and fills the table.
        count = 1 + len(lists.popular)
        size = exported.power_of_two(count, at_least)
        rows = np.zeros(-(-size // self._shards) * self._shards, np.int32)
        rows[1:count] = np.sort(lists.popular)
        restricted = copy.copy(self)
        restricted._lists = lists
        restricted._scored = self._table[rows], jnp.asarray(rows), np.int32(count)
        restricted._last = None
        return restricted

    def in_batches(
        self,
        sizes: Sequence[int],
        widths: Sequence[int],
        max_positions: int,
        *,
        apart: bool = True,
    ) -> "Recommender":
        """Returns a recommender that uses batches of other shapes.

        A batch has one of `sizes` rows (ascending from 1), one of `widths` positions or
        `max_length`, and at most `max_positions` positions in all rows. If `apart`,
        short sessions get batches of their own, so that long ones do not pad them.
        """
        other = copy.copy(self)
        sizes = [size for size in sizes if size <= self.max_rows]
        other._lists = dataclasses.replace(
            self._lists,
            sizes=sizes,
            widths=[*(n for n in widths if n < self.max_length), self.max_length],
            max_positions=max_positions,
            apart=apart,
        )
        other._last = None
        return other

    @property
    def max_rows(self) -> int:
        """The maximum number of sessions scored at a time."""
        return self._lists.sizes[-1]

    @property
    def num_candidates(self) -> int:
        """The number of items that may be recommended."""
        return len(self._lists.popular)

    def shapes(self) -> list[tuple[int, int]]:
        """Returns the possible shapes of batches, [B, L]."""
        lists = self._lists
        return [(size, n) for n in lists.widths for size in lists.sizes_for(n)]

    def compile(self, k: int, *, as_probabilities: bool = False) -> None:
        """Compiles what `recommend` runs for lists of `k`, in all batch shapes."""
        run = self._step_for(k, as_probabilities, 1.0)
        for shape in self.shapes():
            jax.block_until_ready(run(np.ones(shape, np.int32), None))

    def _step_for(self, k: int, as_probabilities: bool, recall: float) -> Any:
        """Returns `recommend_step` as a function of item_seq and seen."""
        table, rows, _ = self._scored
        run = functools.partial(
            self._step,
            self.params["item_embedding"],
            *self._scored,
            k=min(k, len(table) - (rows is None)),
            as_probabilities=as_probabilities,
            recall=recall,
        )
        if self.neighbours is None:
            return run
        neighbours, listed = self.neighbours, None if rows is None else np.asarray(rows)

        def of_both(item_seq, seen):
            shares = neighbours.shares(Prefixes.of(item_seq), listed)
            return run(item_seq, seen, shares)

        return of_both

    def recommend(
        self,
        sessions: Iterable[RawSession],
        k: int = 20,
        *,
        exclude_seen: bool = False,
        candidates: Iterable[str | int | float] | None = None,
        as_probabilities: bool = False,
        recall: float = 1.0,
    ) -> list[Recommendation]:
        """Returns the items that each session is likely to click next.

        A list does not depend on the other sessions, except for the last digits of its
        scores.

        Args:
          sessions: any number, of any length; see the class.
          k: length of the lists; they are shorter if fewer items may be recommended.
          exclude_seen: leave out what the session clicked, however long it is.
          candidates: raw ids that may be recommended, as for `restrict`; the
            recommender for them is kept for the next call. None: all items.
          as_probabilities: instead of the score, give the probability that the item is
            next, among all candidates, seen items included. If neighbours are joined
            with the network, all scores are such probabilities.
          recall: share of the best items that must be found; below 1,
            `jax.lax.approx_max_k` is used: faster on a TPU and for large catalogs.

        Raises:
          UserError: `k`, `recall`, a session or the candidates cannot be used.
        """
        if k < 1:
            raise UserError(f"k is {k}; lists have at least one item")
        if not 0 < recall <= 1:
            raise UserError(f"recall is {recall}; it must lie in (0, 1]")
        chosen = self
        if candidates is not None:
            ids = exported.as_list(candidates)
            if self._last is None or self._last[0] != ids:
                self._last = ids, self.restrict(ids)
            chosen = self._last[1]
        lists = chosen._lists
        run = chosen._step_for(k, as_probabilities, recall)
        total_clicks = max(lists.clicks.sum(), 1.0) if as_probabilities else 1.0
        return lists.make(sessions, run, k, exclude_seen, total_clicks)

    def recommend_frame(
        self, sessions: Mapping[Any, RawSession], k: int = 20, **options: Any
    ) -> pl.DataFrame:
        """Returns the lists of `recommend` as a frame: session, rank, item, score.

        `sessions` maps names to sessions, like `Clicks.sessions`; the frame shows the
        names. `options` are the other arguments of `recommend`. Ranks start at 1;
        the column fallback says whether the session has no known click. `.to_pandas()`
        turns it into a pandas frame.
        """
        found = self.recommend(sessions.values(), k, **options)
        frame = pl.DataFrame(
            {
                "session": [*sessions],
                "rank": [[*range(1, len(one.items) + 1)] for one in found],
                "item": [one.items for one in found],
                "score": [one.scores for one in found],
                "fallback": [one.fallback for one in found],
            },
            schema_overrides={
                "rank": pl.List(pl.Int32),
                "item": pl.List(pl.String),
                "score": pl.List(pl.Float64),
            },
        )
        return frame.explode("rank", "item", "score").drop_nulls("item")

    def explain(
        self, session: RawSession, item: str | int | float | None = None
    ) -> Explanation:
        """Returns the session graph and the attention to each click.

        With `item`, it also returns what each click adds to the item's score: how much
        the score drops if the click is left out. Raises UserError if no click of the
        session is known, the item is unknown, or the readout does not report click
        weights.
        """
        found = explanation.explain(self._lists, self.model, self.params, session)
        if item is None:
            return found
        clicks = found.items
        others = (clicks[:n] + clicks[n + 1 :] for n in range(len(clicks)))
        # A joined score is a share among the candidates, and here there is only one.
        network = copy.copy(self)
        network.neighbours = None
        scored = network.restrict([item]).recommend([clicks, *others], k=1)
        # A session without clicks has no score.
        score, *without = (0.0 if one.fallback else one.scores[0] for one in scored)
        return dataclasses.replace(
            found,
            item=scored[0].items[0],
            score=score,
            parts=[score - other for other in without],
        )
