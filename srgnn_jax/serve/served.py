"""A model as it is served: compiled in every shape, with named candidates.

Frequent requests run in batches of many shapes, so that there is little padding; the
others run in few, so that not too many are compiled.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.errors import UserError
from srgnn_jax.model.layers import Params
from srgnn_jax.serve.bodies import LIMITS, Asked, Refused
from srgnn_jax.serve.exported import RawSession, Recommendation
from srgnn_jax.serve.recommend import Recommender

# Rows of a batch, positions, maximum positions in all rows; and the length of lists.
QUICK, QUICK_K = ((1, 2, 4, 8, 16, 24, 32, 48, 64), (8, 16, 64), 1024), 32
RARE, RARE_K = ((1, 8), (64,), 512), LIMITS.k + LIMITS.clicks
# For a request's own candidates; their table has this many rows.
OWN, OWN_ROWS = ((1,), (64,), 512), 1024
# Sizes of an item table, in numbers. Up to the first, short sessions get batches of
# their own; beyond the second, all share batches: each is another pass over the table.
SMALL_TABLE, LARGE_TABLE = 2**20, 2**23
EXPLAIN = "explain"

Identity = dict[str, str | int]


class Group(NamedTuple):
    """Requests that one call can answer."""

    candidates: str | tuple | None
    k: int
    as_probabilities: bool


class Views(NamedTuple):
    """A recommender in the shapes that are compiled."""

    quick: Recommender
    rare: Recommender

    def compile(self) -> None:
        """Compiles everything that requests need."""
        self.quick.compile(QUICK_K)
        for as_probabilities in (False, True):
            self.rare.compile(RARE_K, as_probabilities=as_probabilities)

    def restrict(self, rows: np.ndarray) -> "Views":
        """Restricts both; raises UserError if no row is left."""
        return Views(self.quick.restrict_rows(rows), self.rare.restrict_rows(rows))


@dataclasses.dataclass(frozen=True)
class Served:
    """What a batch is answered from.

    Attributes:
      views: the model.
      named: its restrictions to named candidates; None: it knows none of them.
      identity: the model's fingerprint and step, as in answers.
    """

    views: Views
    named: dict[str, Views | None]
    identity: Identity

    @classmethod
    def of(cls, recommender: Recommender) -> "Served":
        """Returns a model without restrictions."""
        sizes, widths, positions = QUICK
        numbers = np.size(recommender.params["item_embedding"])
        last = widths[-2:] if numbers > SMALL_TABLE else widths
        quick = recommender.in_batches(
            sizes, last, positions, apart=numbers <= LARGE_TABLE
        )
        views = Views(quick, recommender.in_batches(*RARE))
        params = jax.device_get(recommender.params)
        # Rows that pad the table for a mesh are not the model's.
        table = params["item_embedding"][: recommender.model.num_items]
        identity = {
            "fingerprint": fingerprint({**params, "item_embedding": table}),
            "step": getattr(recommender, "step", 0),
        }
        return cls(views, {}, identity)

    @property
    def vocabulary(self) -> Vocabulary:
        """The raw ids."""
        return self.views.quick.vocabulary

    @functools.cached_property
    def _ordered(self) -> list[str]:
        return sorted(self.vocabulary.ids)

    def complete(self, prefix: str, most: int = 10) -> list[str]:
        """Returns the first raw ids with this prefix."""
        first = bisect.bisect_left(self._ordered, prefix)
        found = self._ordered[first : first + most]
        return [raw for raw in found if raw.startswith(prefix)]

    def compile(self) -> None:
        """Compiles everything that an equal model has not compiled yet."""
        for views in (self.views, *self.named.values()):
            if views is not None:
                views.compile()
        own = self._own(np.arange(1, 2))
        for as_probabilities in (False, True):
            own.compile(RARE_K, as_probabilities=as_probabilities)
        quick = self.views.quick
        for width in sorted({width for _, width in quick.shapes()}):
            # A readout may not report weights.
            with contextlib.suppress(UserError):
                quick.explain([self.vocabulary.ids[0]] * width)

    def answer(self, group: Hashable, works: Sequence[Any]) -> list[Any]:
        """Answers the works of a group: requests, or sessions for EXPLAIN.

        An answer is a list for each session, or an explanation, and the identity.
        """
        if group == EXPLAIN:
            return [self._explained(session) for session in works]
        assert isinstance(group, Group)
        candidates, k, as_probabilities = group
        recommender = self._chosen(candidates, k)
        sessions = [session for work in works for session in work.sessions]
        found = iter(
            recommender.recommend(sessions, k, as_probabilities=as_probabilities)
        )
        answers = []
        for work in works:
            cut = [self._cut(work, session, next(found)) for session in work.sessions]
            answers.append((cut, self.identity))
        return answers

    def _cut(
        self, asked: Asked, session: RawSession, found: Recommendation
    ) -> dict[str, Any]:
        """Cuts a list to the requested length, without seen items if so requested."""
        items, scores, unknown, fallback = found
        if asked.exclude_seen:
            rows = self.vocabulary.rows(session)
            seen = {self.vocabulary.ids[row - 1] for row in rows if row}
            kept = [n for n, item in enumerate(items) if item not in seen]
            items, scores = [items[n] for n in kept], [scores[n] for n in kept]
        return {
            "items": items[: asked.k],
            "scores": scores[: asked.k],
            "unknown": unknown,
            "fallback": fallback,
        }

    def _own(self, rows: np.ndarray) -> Recommender:
        """Returns a recommender of one request's candidates."""
        return self.views.rare.restrict_rows(rows, OWN_ROWS).in_batches(*OWN)

    def _chosen(self, candidates: str | tuple | None, k: int) -> Recommender:
        """Returns the recommender of a group; raises Refused if there is none."""
        views: Views | None = self.views
        if isinstance(candidates, str):
            views = self.named.get(candidates)
        elif candidates is not None:
            with contextlib.suppress(UserError):
                return self._own(self.vocabulary.rows(candidates))
            views = None
        if views is None:
            raise Refused(422, "candidates", "the model knows none of them")
        return views.quick if k == QUICK_K else views.rare

    def _explained(self, session: RawSession) -> Any:
        try:
            return self.views.quick.explain(session), self.identity
        except UserError as error:
            return Refused(422, "session", str(error))


def group_of(asked: Asked) -> Group:
    """Returns the group of a request, which one call can answer."""
    longest = asked.k
    if asked.exclude_seen:
        # Seen items are listed first, and then left out.
        longest += max((len(set(session)) for session in asked.sessions), default=0)
    own = isinstance(asked.candidates, tuple)
    k = RARE_K if longest > QUICK_K or asked.as_probabilities or own else QUICK_K
    return Group(asked.candidates, k, asked.as_probabilities)


def fingerprint(params: Params) -> str:
    """Returns a hash of a model's parameters and their names."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
