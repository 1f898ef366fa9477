"""Serves a model: its batches, named candidates, and newer models.

It knows nothing of HTTP. A model, and each restriction of it, is compiled in every
shape before it is used, and replaces the previous one between two batches.
"""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import itertools
import logging
import os
import pathlib
import re
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from srgnn_jax.errors import UserError, reason
from srgnn_jax.evaluate import joined
from srgnn_jax.runs.workdir import FOLDER
from srgnn_jax.serve.batching import Batcher
from srgnn_jax.serve.bodies import Asked, Refused, ids_of
from srgnn_jax.serve.exported import RawSession
from srgnn_jax.serve.recommend import Explanation, Recommender
from srgnn_jax.serve.served import (
    EXPLAIN,
    QUICK,
    QUICK_K,
    Identity,
    Served,
    Views,
    group_of,
)

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
MOST_NAMES = 100
# Maximum seconds of a batch, unless a single session takes longer.
LONGEST = 0.025
# Maximum seconds between two attempts to load a model that was refused.
LONGEST_WAIT = 300.0


class Service:
    """Answers from the best checkpoint of a workdir, and from better ones later.

    Attributes:
      served: the model in use.
      batcher: the requests that wait for it.
      is_ready: whether everything is compiled.
      on_reload: called after a reload with the model's identity; None: it was refused.
    """

    def __init__(
        self,
        load: Callable[..., Recommender],
        *,
        workdir: str | os.PathLike | None = None,
        candidates_folder: str | os.PathLike | None = None,
        max_wait: float = 0.05,
    ):
        """Loads the model and the named candidates in the folder.

        `load` returns the newest recommender; at a reload it is called with
        `only_newest`, see `Recommender.load`. `watch` looks
        for changes in the checkpoints of `workdir`. Raises UserError if the model or a
        file of the folder cannot be used.
        """
        self._load, self._workdir = load, workdir
        self._folder = None
        self._ids: dict[str, list[str | int | float]] = {}
        if candidates_folder is not None:
            self._folder = pathlib.Path(candidates_folder).expanduser()
            self._ids = _read_folder(self._folder)
        # Whatever is saved from now on is newer.
        self._seen = self._checkpoints()
        recommender = load()
        if not recommender.is_newest:
            self._seen = set()
        self.served = self._made(recommender)
        self.batcher = Batcher(
            # One model for the whole batch.
            lambda group, works: self.served.answer(group, works),
            self.served.views.quick.max_rows,
            max_wait,
        )
        self.is_ready = False
        self.on_reload: Callable[[Identity | None], None] = lambda identity: None
        self._changing = asyncio.Lock()

    def _made(self, recommender: Recommender) -> Served:
        served = Served.of(recommender)
        named = {name: self._restricted(served.views, name) for name in self._ids}
        return dataclasses.replace(served, named=named)

    def _restricted(self, views: Views, name: str) -> Views | None:
        try:
            return views.restrict(views.quick.vocabulary.rows(self._ids[name]))
        except UserError:
            log.warning("the model knows none of the candidates %s", name)
            return None

    def prepare(self) -> None:
        """Compiles everything and measures batch times; takes some seconds."""
        self.served.compile()
        quick = self.served.views.quick
        session = quick.vocabulary.ids[:4]
        for size in QUICK[0]:
            if size <= quick.max_rows:
                work = functools.partial(quick.recommend, [session] * size, QUICK_K)
                took = timeit.repeat(work, repeat=3, number=1)
                self.batcher.seconds[size] = min(took)
        seconds = self.batcher.seconds.items()
        self.batcher.max_size = max(n for n, s in seconds if s <= LONGEST or n == 1)
        _freeze()
        self.is_ready = True

    def recommend(self, asked: Asked) -> asyncio.Future:
        """Returns a future of the sessions' answers and of the model's identity.

        Raises, here or from the future:
          Refused: the candidates cannot be used.
          Overloaded: it would take too long.
        """
        self.batcher.check()
        sessions, candidates = asked.sessions, asked.candidates
        if isinstance(candidates, str) and candidates not in self.served.named:
            raise Refused(422, "candidates", "no candidates have this name")
        group, most = group_of(asked), self.batcher.max_size

        def submit(part: Asked) -> asyncio.Future:
            return self.batcher.submit(group, len(part.sessions), part)

        if len(sessions) <= most:
            return submit(asked)
        starts = range(0, len(sessions), most)
        parts = [asked._replace(sessions=sessions[n : n + most]) for n in starts]
        return asyncio.ensure_future(self._joined(submit, parts))

    async def _joined(
        self, submit: Callable[[Asked], asyncio.Future], parts: Sequence[Asked]
    ) -> tuple[list[dict[str, Any]], Identity]:
        """Returns the answers of all parts, from one model and the same candidates."""
        while True:
            before = self.served
            answers = await asyncio.gather(*map(submit, parts))
            # They may have been swapped between two parts.
            if self.served is before:
                found = itertools.chain.from_iterable(lists for lists, _ in answers)
                return list(found), before.identity

    async def explain(self, session: RawSession) -> tuple[Explanation, Identity]:
        """Explains a session; raises Refused if none of it is known, or Overloaded."""
        self.batcher.check()
        return await self.batcher.submit(EXPLAIN, 1, session)

    async def reload(self, why: str) -> Identity:
        """Loads the newest model while the old one is in use, then swaps them.

        Returns the identity of the model now in use. Raises UserError if the new one
        cannot be used; the old one then stays.
        """
        async with self._changing:
            try:
                served = await asyncio.to_thread(self._load_beside)
            except UserError as error:
                log.error("reload refused (%s): %s", why, error)
                self.on_reload(None)
                raise
            self.served = served
        log.info("reloaded (%s): step %s", why, served.identity["step"])
        self.on_reload(served.identity)
        return served.identity

    def _load_beside(self) -> Served:
        _give_way()
        try:
            served = self._made(self._load(only_newest=True))
            served.compile()
        except UserError:
            raise
        # A file that another process is still writing may cause any error.
        except Exception as error:
            raise UserError(
                f"the newest model cannot be used: {reason(error)}"
            ) from error
        _freeze()
        return served

    async def watch(self, seconds: float) -> None:
        """Reloads whenever the checkpoints of the workdir change."""
        tried, wait, due = self._seen, seconds, 0.0
        while True:
            await asyncio.sleep(seconds)
            now = self._checkpoints()
            if now == self._seen:
                continue
            if now != tried:
                tried, wait, due = now, seconds, 0.0
            if time.monotonic() < due:
                continue
            try:
                await self.reload("the checkpoints have changed")
            except UserError:
                # It may still be copied: try again, less and less often.
                wait = min(2 * wait, max(seconds, LONGEST_WAIT))
                due = time.monotonic() + wait
            else:
                self._seen = now

    def _checkpoints(self) -> set[str]:
        # Promoting switches a link to another workdir, whose steps may be the same.
        folder = pathlib.Path(self._workdir or "").expanduser().resolve()
        try:
            names = filter(str.isdecimal, os.listdir(folder / FOLDER))
            found = {str(folder / name) for name in names}
            # An evaluation may join the network with neighbours.
            with contextlib.suppress(FileNotFoundError):
                found.add(str((folder / joined.FILE).stat().st_mtime_ns))
            return found
        except OSError:
            return set()

    def names(self) -> dict[str, int]:
        """Returns the names of candidates, and how many items each allows."""
        views = self.served.named.items()
        return {name: v.quick.num_candidates if v else 0 for name, v in views}

    async def keep(self, name: str, ids: list[str | int | float]) -> list[str]:
        """Keeps candidates under a name, replacing earlier ones; returns unknown ids.

        Raises Refused if the name or the ids cannot be used.
        """
        if not NAME.fullmatch(name):
            why = "a name has up to 64 letters, digits, _, . or -, and no . in front"
            raise Refused(422, "name", why)
        async with self._changing:
            if name not in self._ids and len(self._ids) >= MOST_NAMES:
                raise Refused(422, "name", f"there are {MOST_NAMES} names already")
            views, unknown = await asyncio.to_thread(self._restrict_beside, ids)
            if self._folder is not None:
                file = self._folder / f"{name}.json"
                with _keeping():
                    await asyncio.to_thread(_write, file, ids)
            self._ids[name] = ids
            named = {**self.served.named, name: views}
            self.served = dataclasses.replace(self.served, named=named)
        return unknown

    def _restrict_beside(self, ids: list) -> tuple[Views, list[str]]:
        _give_way()
        views = self.served.views
        rows = views.quick.vocabulary.rows(ids)
        try:
            restricted = views.restrict(rows)
        except UserError:
            raise Refused(422, "items", "the model knows none of them") from None
        restricted.compile()
        unknown = (str(raw) for raw, row in zip(ids, rows, strict=True) if not row)
        return restricted, list(dict.fromkeys(unknown))

    async def forget(self, name: str) -> None:
        """Forgets named candidates; raises Refused if there are none of this name."""
        async with self._changing:
            if name not in self._ids:
                raise Refused(404, "name", "no candidates have this name")
            if self._folder is not None:
                with _keeping():
                    (self._folder / f"{name}.json").unlink(missing_ok=True)
            del self._ids[name]
            named = {k: v for k, v in self.served.named.items() if k != name}
            self.served = dataclasses.replace(self.served, named=named)


def _freeze() -> None:
    """Makes the garbage collector skip lasting objects: scanning them takes long."""
    gc.collect()
    gc.freeze()


def _give_way() -> None:
    """Lowers this thread's priority below that of requests, if the system can."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _read_folder(folder: pathlib.Path) -> dict[str, list[str | int | float]]:
    """Reads named candidates, and creates the folder if it does not exist."""
    found = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            found[path.stem] = ids_of(path.read_bytes(), "items")
    except Refused as error:
        message = f"cannot read the candidates in {path}: {error.reason}"
        raise UserError(f"{message} ({error.place})") from error
    except OSError as error:
        message = f"cannot read the candidates in {folder}: {reason(error)}"
        raise UserError(message) from error
    return found


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    """Raises Refused if the folder of candidates cannot be written, inside."""
    try:
        yield
    except OSError as error:
        log.error("cannot change the folder of candidates: %s", reason(error))
        why = "the folder of candidates cannot be changed; see the service's log"
        raise Refused(500, "name", why) from error


def _write(path: pathlib.Path, ids: list[str | int | float]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(orjson.dumps({"items": ids}))
    unfinished.replace(path)
