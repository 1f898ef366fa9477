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

# Up to so many sessions are scored at once, however large the table: the blocks of one
# that is so large are copies, which take as long again.
WHOLE = 8
# Clicks that the model sees of a session, unless the run was trained on fewer.
MAX_LENGTH = 256


class Recommender:
    """A trained model and its items' raw ids.

    A session is a sequence of raw ids, oldest click first: text, or whole numbers that
    stand for their text; spaces around them do not count. Where all items' ids are
    whole numbers, 1001.0 means 1001. Ids that the vocabulary lacks are dropped and
    reported; of more than `max_length` known clicks the last ones count; a session
    without any gets the most popular items of training, marked as a fallback.

    Attributes:
      model, params, vocabulary, max_length: as they were given.
      neighbours: what the network is joined with; None: it stands alone.
      progress, step: of the run and its checkpoint, where they were loaded.
    """

    progress: Progress
    step: int

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
        """Takes a model, whole or its item table split over a mesh, and neighbours.

        It sees at most `max_length` clicks of a session. At most `max_scores` scores
        (items times sessions) are held at a time; 0: as suits the device; but those of
        up to `whole` sessions are held at once. Row 0 has a share in probabilities if
        `score_padding`. With `share_code` recommenders of equal models run the same
        compiled functions, whatever their parameters; else these are constants to the
        compiler, which multiplies weights with weights itself. ValueError: model, item
        table and vocabulary differ in their rows, or a parameter is not finite.
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
        # All scores are joined at once.
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
        # What scores the items: table, rows and count of `recommend_step`.
        self._table = normalise(table) if model.normalize else table
        self._scored: tuple[Any, Any, Any] = self._table, None, None
        # What `candidates` named last, and the recommender for it.
        self._last: tuple[list[str | int | float], Recommender] | None = None

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike,
        model: config_lib.MakeModel | None = None,
        *,
        share_code: bool = False,
        split: bool = False,
    ) -> "Recommender":
        """Loads the best checkpoint of a workdir; the data set is not needed.

        It is joined with neighbours if the workdir was so when it was evaluated last.
        `model` is what made the run's model, unless it is SRGNN; for `share_code` see
        the class. With `split` the item table is split by rows over all devices, if
        the run split it and is not joined. UserError: there is no checkpoint, it is of
        another model, or its vocabulary is missing or another's.
        """
        # All of one run, where a link to another one comes in between.
        folder = pathlib.Path(workdir).expanduser().resolve()
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            progress = checkpoints.progress()
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
        return recommender

    def restrict(self, ids: Iterable[str | int | float]) -> "Recommender":
        """Returns a recommender of some of the items, such as those in stock.

        It shares parameters and compiled code, and holds a table of its items besides.
        Ids that the vocabulary lacks are named in a warning; those that this one does
        not recommend are left out. UserError: that leaves none.
        """
        return self.restrict_rows(self._lists.candidates(ids))

    def restrict_rows(
        self, known: Int[np.ndarray, " C"], at_least: int = 64
    ) -> "Recommender":
        """Returns a recommender of some item rows, of which 0 stands for none.

        Its table has a power of two of rows, at least so many: few sizes are compiled.
        UserError: it recommends none of them.
        """
        lists = self._lists.restrict(known)
        # Row 0 is the padding's, and fills up.
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
        """Returns a recommender that works on batches of other shapes.

        They have one of `sizes` rows, rising from 1, and one of `widths` positions, or
        `max_length`, and at most so many positions in all rows. If `apart`, a long
        session adds no padding to short ones, which have a batch of their own.
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
        """How many sessions are scored at a time."""
        return self._lists.sizes[-1]

    @property
    def num_candidates(self) -> int:
        """How many items may be recommended."""
        return len(self._lists.popular)

    def shapes(self) -> list[tuple[int, int]]:
        """Returns the shapes that batches may have, [B, L]."""
        lists = self._lists
        return [(size, n) for n in lists.widths for size in lists.sizes_for(n)]

    def compile(self, k: int, *, as_probabilities: bool = False) -> None:
        """Compiles what `recommend` runs for lists of `k`, in all shapes of batches."""
        run = self._step_for(k, as_probabilities, 1.0)
        for shape in self.shapes():
            jax.block_until_ready(run(np.ones(shape, np.int32), None))

    def _step_for(self, k: int, as_probabilities: bool, recall: float) -> Any:
        """Returns `recommend_step` of item_seq and seen."""
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
        """Finds the items that each session is likely to click next.

        Other sessions change no list, but the last digits of its scores.

        Args:
          sessions: any number, of any length; see the class.
          k: length of the lists; they are shorter where fewer items may be recommended.
          exclude_seen: leave out what the session clicked, whatever its length.
          candidates: raw ids that may be recommended, as for `restrict`; what is made
            for them is kept for the next call. None: all items.
          as_probabilities: give the probability that the item is next, among all
            candidates, what was seen included, instead of the score. Where neighbours
            join the network all scores are that.
          recall: share of the best items that must be found; below 1 by
            `jax.lax.approx_max_k`, which is faster on a TPU and large catalogs.

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
        """Returns what `recommend` finds as a frame: session, rank, item, score.

        `sessions` are by what names them in the frame, as `Clicks.sessions` gives them;
        `options` are the others of `recommend`. Ranks begin with 1; fallback tells
        whether the session has no known click. `.to_pandas()` makes it one of pandas.
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
        """Shows the session graph and the attention to each click.

        With `item`, it tells as well what each click adds to the item's score: what the
        score loses where the click is left out. UserError: no click of the session is
        known, nor the item, or the readout tells no weights.
        """
        found = explanation.explain(self._lists, self.model, self.params, session)
        if item is None:
            return found
        clicks = found.items
        others = (clicks[:n] + clicks[n + 1 :] for n in range(len(clicks)))
        # Joined, a score would be a share among the candidates, of which there is one.
        network = copy.copy(self)
        network.neighbours = None
        scored = network.restrict([item]).recommend([clicks, *others], k=1)
        # Without any click there is no score.
        score, *without = (0.0 if one.fallback else one.scores[0] for one in scored)
        return dataclasses.replace(
            found,
            item=scored[0].items[0],
            score=score,
            parts=[score - other for other in without],
        )
