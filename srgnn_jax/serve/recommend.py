"""Recommendations for sessions of raw item ids.

    recommender = srgnn_jax.Recommender.load("runs/diginetica")
    recommender.recommend([["81766", "31331"]], k=5)

Axes: B sessions of a batch, L positions, M clicks, D embedding, N rows that are scored,
K items of a list.
"""

import contextlib
import copy
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int

from srgnn_jax import config as config_lib
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.devices import layouts, suits, tiers
from srgnn_jax.errors import UserError
from srgnn_jax.model import graph
from srgnn_jax.model.graph import AnyArray
from srgnn_jax.model.item_table import ItemTable
from srgnn_jax.model.layers import Params, normalise
from srgnn_jax.runs.checkpoint import Checkpoints, check_finite, restore_best
from srgnn_jax.runs.progress import Progress
from srgnn_jax.runs.workdir import load_vocabulary
from srgnn_jax.serve import exported
from srgnn_jax.serve.exported import BATCH_SIZES, RawSession, Recommendation

log = logging.getLogger(__name__)

# Clicks that the model sees of a session, unless the run was trained on fewer.
MAX_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the model saw in a session.

    Attributes:
      items: raw ids of the clicks that it saw, in their order.
      attention: the weight of each click in the readout's sum, equation 6 of Wu et al.
        2019 in that of the paper; they need not sum to 1.
      edges: (item, next item, weight) of the session graph; from an item they sum to 1.
      unknown: ids that the vocabulary lacks, each once.
    """

    items: list[str]
    attention: list[float]
    edges: list[tuple[str, str, float]]
    unknown: list[str]


class Recommender:
    """A trained model and its items' raw ids.

    A session is a sequence of raw ids, oldest click first: text, or whole numbers that
    stand for their text; spaces around them do not count. Where all items' ids are
    whole numbers, 1001.0 means 1001. Ids that the vocabulary lacks are dropped and
    reported; of more than `max_length` known clicks the last ones count; a session
    without any gets the most popular items of training, marked as a fallback.

    Attributes:
      model, params, vocabulary, max_length: as they were given.
      max_rows: sessions that are scored at a time.
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
        max_length: int = MAX_LENGTH,
        max_scores: int = 0,
        score_padding: bool = False,
    ):
        """Takes a model that is not split over devices.

        It sees at most `max_length` clicks of a session. At most `max_scores` scores
        (items times sessions) are held at a time; 0: as suits the device. Row 0 has a
        share in probabilities if `score_padding`. ValueError: model, item table and
        vocabulary differ in their rows, or a parameter is not finite.
        """
        table = params["item_embedding"]
        if {model.num_items, len(table)} != {vocabulary.num_items}:
            raise ValueError(
                f"the vocabulary has {vocabulary.num_items} item rows (padding "
                f"included), the model {model.num_items}, its table {len(table)}"
            )
        check_finite(params)
        self.model, self.params, self.vocabulary = model, params, vocabulary
        self.max_length = max_length
        max_scores = max_scores or suits.scores_to_rank(0)
        rows = max(BATCH_SIZES[-2], max_scores // model.num_items)
        self.max_rows = max(size for size in BATCH_SIZES if size <= rows)
        self._lists = exported.Lists(
            np.array(["", *vocabulary.ids], object),
            vocabulary.rows,
            [2**n for n in range(2, max(max_length - 1, 4).bit_length() + 1)],
            max_length,
            self.max_rows,
            *exported.by_popularity(vocabulary.clicks, len(vocabulary.ids)),
            error=UserError,
        )
        # Constants to the compiler, which then multiplies weights with weights itself.
        weights = jax.device_get({**params, "item_embedding": ()})

        def step(item_embedding, *arguments, **options):
            whole = jax.tree.map(jnp.asarray, weights)
            whole["item_embedding"] = item_embedding
            options |= {"max_scores": max_scores, "score_padding": score_padding}
            return recommend_step(whole, *arguments, model=model, **options)

        self._step = jax.jit(step, static_argnames=("k", "as_probabilities", "recall"))

        def click_weights(params, *session):
            variables = {"params": params}
            _, sown = model.apply(variables, *session, mutable=["intermediates"])
            flat = traverse_util.flatten_dict(dict(sown))
            return [v[0] for path, v in flat.items() if path[-1] == "click_weights"]

        self._click_weights = jax.jit(click_weights)
        # What scores the items: table, rows and count of `recommend_step`.
        self._table = normalise(table) if model.normalize else table
        self._scored: tuple[Any, Any, Any] = self._table, None, None
        # What `candidates` named last, and the recommender for it.
        self._last: tuple[list[str | int | float], Recommender] | None = None

    @classmethod
    def load(
        cls, workdir: str | os.PathLike, model: config_lib.MakeModel | None = None
    ) -> "Recommender":
        """Loads the best checkpoint of a workdir; the data set is not needed.

        `model` is what made the run's model, unless it is SRGNN. UserError: there is no
        checkpoint, it is of another model, or its vocabulary is missing or another's.
        """
        folder = pathlib.Path(workdir).expanduser()
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            progress = checkpoints.progress()
            config = config_lib.from_dict(progress.config)
            made = config_lib.make_model(config, progress.num_items, model)
            devices = layouts.find_devices("jit")
            params, step = restore_best(checkpoints, progress, made, devices)
        recommender = cls(
            made,
            params,
            load_vocabulary(folder, progress.vocabulary),
            max_length=config.max_session_length or MAX_LENGTH,
            max_scores=suits.scores_to_rank(config.max_scores),
            score_padding=config.score_padding,
        )
        recommender.progress, recommender.step = progress, step
        return recommender

    def restrict(self, ids: Iterable[str | int | float]) -> "Recommender":
        """Returns a recommender of some of the items, such as those in stock.

        It shares parameters and compiled code, and holds a table of its items besides.
        Ids that the vocabulary lacks are named in a warning; those that this one does
        not recommend are left out. UserError: that leaves none.
        """
        ids = list(dict.fromkeys(_candidates(ids)))
        known = self.vocabulary.rows(ids)
        unknown = [repr(raw) for raw, row in zip(ids, known, strict=True) if not row]
        named = ", ".join(unknown[:5]) + ", ..." * (len(unknown) > 5)
        if len(unknown) == len(ids):
            raise UserError(
                f"none of {len(ids):,} candidates is known: {named}; name items as the "
                "training log does"
                if ids
                else "there are no candidates: name one item at least"
            )
        if unknown:
            are = "are" if len(unknown) > 1 else "is"
            total = f"{len(unknown):,} of {len(ids):,} candidates"
            log.warning("%s %s unknown: %s", total, are, named)
        allowed = np.isin(self._lists.popular, known)
        if not allowed.any():
            raise UserError("none of the candidates is left: others were chosen before")
        popular, clicks = self._lists.popular[allowed], self._lists.clicks[allowed]
        # Row 0 is the padding's, and fills up: few sizes are compiled.
        count = 1 + len(popular)
        rows = np.zeros(exported.power_of_two(count, 64), np.int32)
        rows[1:count] = np.sort(popular)
        restricted = copy.copy(self)
        restricted._lists = dataclasses.replace(
            self._lists, popular=popular, clicks=clicks
        )
        restricted._scored = self._table[rows], jnp.asarray(rows), np.int32(count)
        restricted._last = None
        return restricted

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
            candidates, what was seen included, instead of the score.
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
            ids = _candidates(candidates)
            if self._last is None or self._last[0] != ids:
                self._last = ids, self.restrict(ids)
            chosen = self._last[1]
        lists = chosen._lists
        step = functools.partial(
            self._step,
            self.params["item_embedding"],
            *chosen._scored,
            k=min(k, len(lists.popular)),
            as_probabilities=as_probabilities,
            recall=recall,
        )
        total_clicks = max(lists.clicks.sum(), 1.0) if as_probabilities else 1.0
        return lists.make(sessions, step, k, exclude_seen, total_clicks)

    def explain(self, session: RawSession) -> Explanation:
        """Shows the session graph and the attention to each click.

        UserError: no click of the session is known, or the readout tells no weights.
        """
        known, unknown = self._lists.look_up(session, 0)
        if not len(known):
            raise UserError(f"nothing to explain: no item of {list(session)} is known")
        _, item_seq, _ = next(self._lists.batches([known]))
        length = np.count_nonzero(item_seq)
        weights = self._click_weights(self.params, item_seq, np.array([length]))
        if not weights:
            raise UserError(
                "this model's readout tells no weights of clicks; have it "
                'self.sow("intermediates", "click_weights", weights)'
            )
        nodes, _, connections = graph.connection_matrix(item_seq)
        outgoing = np.asarray(connections)[0, :, item_seq.shape[1] :]
        names = self._lists.ids[np.asarray(nodes)[0]]
        return Explanation(
            items=self._lists.ids[item_seq[0, :length]].tolist(),
            attention=np.asarray(weights[0])[0, :length].tolist(),
            edges=[
                (names[u], names[v], float(outgoing[u, v]))
                for u, v in np.argwhere(outgoing)
            ],
            unknown=unknown,
        )


def _candidates(ids: Iterable[str | int | float]) -> list[str | int | float]:
    """Lists raw ids; UserError: they are none, such as one text."""
    listed: Any = ids if isinstance(ids, str | bytes | dict) else list(ids)
    if wrong := exported.wrong_session(listed):
        raise UserError(f"candidates: {wrong}")
    return listed


def recommend_step(
    params: Params,
    table: Float[Array, "N D"],
    rows: Int[AnyArray, " N"] | None,
    count: Int[AnyArray, ""] | None,
    item_seq: Int[AnyArray, "B L"],
    seen: Int[AnyArray, "B M"] | None,
    *,
    model: nn.Module,
    k: int,
    max_scores: int,
    score_padding: bool,
    as_probabilities: bool,
    recall: float,
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Finds the best items for a batch of sessions, fewer than the table has rows.

    Args:
      table: rows of the items to choose from, after the padding's; of length 1 if the
        model normalises.
      rows: the item row of each of the table's rows; None: they are the same.
      count: rows of the table that count, those beyond only fill it up; None: all.
      item_seq: item rows in click order, 0 = padding at the end.
      seen: item rows to leave out, 0 = padding; None: none.

    Returns:
      Scores, or probabilities, -inf where there is no item left, and item rows.
    """
    item_seq_len = jnp.maximum(jnp.count_nonzero(jnp.asarray(item_seq), axis=1), 1)
    session, _ = tiers.encode(model, params, [(item_seq, item_seq_len)])
    wanted = k if seen is None else min(k + seen.shape[1], table.shape[0])
    scored = ItemTable(
        table,
        table.shape[0] if count is None else count,
        score_padding and rows is None,
        max_scores,
        compute_dtype=model.compute_dtype,
    )
    best, row = scored.top_k(session, wanted, recall)
    if as_probabilities:
        total = scored.log_sum_exp(session)
        best = jnp.where(best > -jnp.inf, jnp.exp(best - total[:, None]), best)
    if rows is not None:
        row = jnp.asarray(rows)[row]
    if seen is not None:
        is_in = functools.partial(jnp.isin, method="binary_search")
        is_seen = jax.vmap(is_in)(row, jnp.asarray(seen))
        best, index = jax.lax.top_k(jnp.where(is_seen, -jnp.inf, best), k)
        row = jnp.take_along_axis(row, index, axis=1)
    return best, row
