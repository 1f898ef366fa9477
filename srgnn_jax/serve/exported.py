"""Recommends from an exported folder; needs jax, numpy and flatbuffers, nothing else.

`--mode=export` puts this file into the folder, as recommender.py, beside the weights,
the vocabulary and the compiled functions:

    sys.path.insert(0, "exported")
    from recommender import Recommender

    Recommender.load("exported").recommend([["81766", "31331"]])

Axes: B sessions of a batch, L positions, K items of a list.
"""

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

# Positions squared, or scores, that a batch may hold.
MAX_NUMBERS = 2**22
MAX_ROWS = 256


class Recommendation(NamedTuple):
    """The items for one session.

    Attributes:
      items: raw ids, best first.
      scores: the model's; in a fallback the items' clicks in training.
      unknown: ids of the session that the vocabulary lacks; they were dropped.
      fallback: whether nothing was known, so that the most popular items are given.
    """

    items: list[str]
    scores: list[float]
    unknown: list[str]
    fallback: bool


class Recommender:
    """What was exported.

    Attributes:
      manifest: how it was made: k, versions, fingerprints, the run's config.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        functions: dict[int, jax.export.Exported],
        params: dict[str, Any],
        items: Sequence[str],
        clicks: Sequence[int] | None,
    ):
        """Takes what `load` reads.

        Args:
          manifest: of the export.
          functions: (params, item_seq [B, L], lengths [B]) -> (scores, rows), both
            [B, K], for each L.
          params: of the model.
          items: the raw id of each item row, from 1 on.
          clicks: theirs in training.
        """
        self.manifest = manifest
        self._functions = {
            length: jax.jit(function.call) for length, function in functions.items()
        }
        self._params = jax.device_put(params)
        self._ids = ["", *items]
        self._rows = {raw: row for row, raw in enumerate(items, 1)}
        self._clicks = np.asarray(clicks if clicks else [0] * len(items), np.float64)
        self._popular = 1 + np.argsort(-self._clicks, kind="stable")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Recommender":
        """Reads an exported folder.

        Raises:
          ValueError: a file is not the one that was exported.
        """
        folder = pathlib.Path(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        content = {}
        for name, expected in manifest["files"].items():
            if pathlib.Path(name).name != name:
                raise ValueError(f"manifest.json names {name!r}, outside of {folder}")
            content[name] = (folder / name).read_bytes()
            if hashlib.sha256(content[name]).hexdigest() != expected:
                raise ValueError(f"{folder / name} is not the file that was exported")
        functions = {
            length: jax.export.deserialize(bytearray(content[f"top_k_{length}.bin"]))
            for length in manifest["lengths"]
        }
        params: dict[str, Any] = {}
        with np.load(io.BytesIO(content["weights.npz"])) as weights:
            for name, value in weights.items():
                *parents, last = name.split("/")
                at = params
                for parent in parents:
                    at = at.setdefault(parent, {})
                at[last] = value
        vocabulary = json.loads(content["vocabulary.json"])
        return cls(
            manifest, functions, params, vocabulary["items"], vocabulary["clicks"]
        )

    def recommend(
        self, sessions: Iterable[Sequence[str | int]], k: int | None = None
    ) -> list[Recommendation]:
        """Finds the items that each session is likely to click next.

        Args:
          sessions: raw ids, oldest click first; of long sessions the last clicks count.
          k: length of the lists, at most that of the export; None: that.

        Returns:
          One recommendation per session, in order.

        Raises:
          ValueError: `k` is out of range.
        """
        most = self.manifest["k"]
        k = most if k is None else k
        if not 1 <= k <= most:
            raise ValueError(f"k is {k}; this export gives 1 to {most} items")
        found: list[Recommendation] = []
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for s, session in enumerate(sessions):
            rows = [self._rows.get(str(raw), 0) for raw in session]
            unknown = [str(r) for r, row in zip(session, rows, strict=True) if not row]
            known = [row for row in rows if row][-self.manifest["max_length"] :]
            found.append(
                self._listed(
                    self._popular[:k],
                    self._clicks[self._popular[:k] - 1],
                    list(dict.fromkeys(unknown)),
                    not known,
                )
            )
            if known:
                length = next(n for n in self._functions if n >= len(known))
                by_length.setdefault(length, []).append((s, known))
        for length, group in by_length.items():
            most_numbers = max(length**2, len(self._ids))
            size = min(max(MAX_NUMBERS // most_numbers, 1), MAX_ROWS)
            for start in range(0, len(group), size):
                batch = group[start : start + size]
                for s, scores, rows in self._answer(length, batch):
                    unknown = found[s].unknown
                    found[s] = self._listed(rows[:k], scores[:k], unknown, False)
        return found

    def _answer(self, length: int, batch: Sequence[tuple[int, list[int]]]):
        """Returns session, scores and rows; few batch sizes are compiled."""
        size = 1 << (len(batch) - 1).bit_length()
        item_seq = np.zeros((size, length), np.int32)
        item_seq_len = np.ones(size, np.int32)
        for b, (_, rows) in enumerate(batch):
            item_seq[b, : len(rows)], item_seq_len[b] = rows, len(rows)
        best, row = self._functions[length](self._params, item_seq, item_seq_len)
        numbers = [s for s, _ in batch]
        return zip(numbers, np.asarray(best), np.asarray(row), strict=False)

    def _listed(self, rows, scores, unknown, fallback) -> Recommendation:
        items = [self._ids[row] for row in rows]
        return Recommendation(items, scores.tolist(), unknown, fallback)
