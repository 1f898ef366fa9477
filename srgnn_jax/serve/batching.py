"""Answers waiting requests together, as soon as the device is idle.

There is no timer: at low load a request starts at once, and while one batch runs the
next one gathers. A request that would wait too long is refused on arrival, not later.
"""

import asyncio
import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from srgnn_jax.serve.exported import power_of_two

# Weight of the newest batch in the running mean time of its size.
NEWEST = 0.1
# A request may wait for one batch of the largest size, up to this many seconds.
ONE_BATCH = 0.08


class Overloaded(Exception):
    """The device will be busy for longer than a request may wait."""


@dataclasses.dataclass(slots=True)
class _Waiting:
    size: int
    work: Any
    answer: asyncio.Future
    since: float


@dataclasses.dataclass(slots=True)
class _Group:
    queue: collections.deque[_Waiting] = dataclasses.field(
        default_factory=collections.deque
    )
    size: int = 0


class Batcher:
    """A worker thread, and the work that waits for it, by group.

    Only the event loop's thread may use it, except for `run`, which the worker thread
    calls with a group and the works of a batch. It returns a result for each work, or
    an exception instead.

    Attributes:
      max_size: maximum sessions in a batch, unless a single work has more.
      max_wait: maximum estimated wait of a work in seconds, unless one batch of the
        largest size takes longer.
      seconds: mean batch time by size, rounded up to a power of two.
      on_batch: called with the size and the seconds of each batch.
    """

    def __init__(
        self,
        run: Callable[[Hashable, Sequence[Any]], Sequence[Any]],
        max_size: int,
        max_wait: float,
    ):
        self._run = run
        self.on_batch: Callable[[int, float], None] = lambda size, seconds: None
        self.max_size, self.max_wait = max_size, max_wait
        self.seconds: dict[int, float] = {}
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()
        self._groups: dict[Hashable, _Group] = collections.defaultdict(_Group)
        self._busy_until, self._is_busy = 0.0, False

    @property
    def waiting(self) -> int:
        """The number of waiting sessions."""
        return sum(group.size for group in self._groups.values())

    def wait(self) -> float:
        """Estimates the seconds until a new request would start.

        It is assumed to join the group with the most waiting sessions.
        """
        if not self._is_busy:
            return 0.0
        left = max(self._busy_until - time.perf_counter(), 0.0)
        groups = self._groups.values()
        joins = max(groups, key=lambda group: group.size, default=None)
        for group in groups:
            full, rest = divmod(group.size, self.max_size)
            left += full * self._time(self.max_size)
            left += self._time(rest) if rest and group is not joins else 0.0
        return left

    def _time(self, size: int) -> float:
        """Returns the mean time for a size; for a new size, that of the next known."""
        key = power_of_two(size)
        if key in self.seconds or not self.seconds:
            return self.seconds.get(key, 0.0)
        known = min((n for n in self.seconds if n > key), default=max(self.seconds))
        return self.seconds[known] * max(key / known, 1.0)

    def is_over(self, lag: float = 0.0) -> bool:
        """Whether a new request would wait too long, after `lag` seconds so far.

        The next batch may gather while one of the largest size runs; otherwise slow
        models would only run small batches.
        """
        one = min(self._time(self.max_size), ONE_BATCH)
        return lag + self.wait() > max(self.max_wait, one)

    def check(self) -> None:
        """Raises Overloaded if a new request would wait too long."""
        if self.is_over():
            raise Overloaded

    def submit(self, group: Hashable, size: int, work: Any) -> asyncio.Future:
        """Queues a work of `size` sessions; works of one group are done together."""
        loop = asyncio.get_running_loop()
        one = _Waiting(size, work, loop.create_future(), time.perf_counter())
        self._groups[group].queue.append(one)
        self._groups[group].size += size
        if not self._is_busy:
            self._is_busy = True
            # Later, so that whatever else has arrived is read first.
            loop.call_soon(self._start)
        return one.answer

    def _start(self) -> None:
        """Starts a batch of the group whose first work has waited longest."""
        groups = self._groups
        group = min(groups, key=lambda g: groups[g].queue[0].since, default=None)
        if group is None:
            self._is_busy = False
            return
        queue = groups[group].queue
        batch: list[_Waiting] = []
        size = 0
        while queue and (not batch or size + queue[0].size <= self.max_size):
            batch.append(queue.popleft())
            size += batch[-1].size
        groups[group].size -= size
        if not queue:
            del groups[group]
        started = time.perf_counter()
        self._busy_until = started + self._time(size)
        self._queue.put((asyncio.get_running_loop(), group, batch, size, started))

    def _work(self) -> None:
        """Runs batches in the worker thread until it gets None instead of one."""
        while (given := self._queue.get()) is not None:
            loop, group, batch, size, started = given
            results: Sequence[Any]
            try:
                results = self._run(group, [one.work for one in batch])
            except Exception as error:
                results = [error] * len(batch)
            # One wake-up of the loop for the whole batch; the loop may have ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end, batch, results, size, started)

    def _end(
        self,
        batch: list[_Waiting],
        results: Sequence[Any],
        size: int,
        started: float,
    ) -> None:
        seconds = time.perf_counter() - started
        key = power_of_two(size)
        mean = self.seconds.setdefault(key, seconds)
        self.seconds[key] = mean + NEWEST * (seconds - mean)
        # Start the next batch first: answers are sent while the device works.
        self._start()
        self.on_batch(size, seconds)
        for one, result in zip(batch, results, strict=True):
            if one.answer.done():  # the client is gone
                continue
            if isinstance(result, Exception):
                one.answer.set_exception(result)
            else:
                one.answer.set_result(result)

    def close(self) -> None:
        """Stops the worker thread once its queue is done."""
        self._queue.put(None)
        self._thread.join()
