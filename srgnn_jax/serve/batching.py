"""Requests that wait are answered together, as soon as the device is idle.

No timer: at low load a request starts at once, and while a batch is worked on the next
one gathers. What would wait too long is refused when it comes, not when it is late.
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

# The weight of the newest batch in the mean time of its size.
NEWEST = 0.1
# Seconds that may be waited for one of the largest batches, however slow it is.
ONE_BATCH = 0.08


class Overloaded(Exception):
    """The device is busy for longer than a request may wait."""


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
    """One thread that works, and what waits for it, by group.

    Only the event loop's thread may use it, but for `run`, which the working thread
    calls with a group and the works of a batch; it returns a result for each, or an
    exception in its place.

    Attributes:
      max_size: sessions of a batch, unless a single work has more.
      max_wait: seconds that a work may wait, by estimate, where one of the largest
        batches does not take longer.
      seconds: mean time of batches, by the power of two that holds their size.
      on_batch: told the size and the seconds of each batch.
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
        """Sessions that wait."""
        return sum(group.size for group in self._groups.values())

    def wait(self) -> float:
        """Estimates the seconds until what comes now would start.

        It is taken to join the group of which most wait.
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
        """Returns the mean time of such a batch, that of the next known size if new."""
        key = power_of_two(size)
        if key in self.seconds or not self.seconds:
            return self.seconds.get(key, 0.0)
        known = min((n for n in self.seconds if n > key), default=max(self.seconds))
        return self.seconds[known] * max(key / known, 1.0)

    def is_over(self, lag: float = 0.0) -> bool:
        """Whether what comes now would wait too long; it waited for `lag` before.

        While one of the largest batches is worked on the next may gather, else slow
        models would work on small ones alone.
        """
        one = min(self._time(self.max_size), ONE_BATCH)
        return lag + self.wait() > max(self.max_wait, one)

    def check(self) -> None:
        """Raises Overloaded if what comes now would wait too long."""
        if self.is_over():
            raise Overloaded

    def submit(self, group: Hashable, size: int, work: Any) -> asyncio.Future:
        """Queues a work of so many sessions; works of a group are done together."""
        loop = asyncio.get_running_loop()
        one = _Waiting(size, work, loop.create_future(), time.perf_counter())
        self._groups[group].queue.append(one)
        self._groups[group].size += size
        if not self._is_busy:
            self._is_busy = True
            # What else has arrived is read before.
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
        """Works on batches, in the thread, until there is None in the place of one."""
        while (given := self._queue.get()) is not None:
            loop, group, batch, size, started = given
            results: Sequence[Any]
            try:
                results = self._run(group, [one.work for one in batch])
            except Exception as error:
                results = [error] * len(batch)
            # The only wake-up of the loop for all of them; it may have ended since.
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
        # The device first: answers are sent while it works.
        self._start()
        self.on_batch(size, seconds)
        for one, result in zip(batch, results, strict=True):
            if one.answer.done():  # whoever asked is gone
                continue
            if isinstance(result, Exception):
                one.answer.set_exception(result)
            else:
                one.answer.set_result(result)

    def close(self) -> None:
        """Ends the thread, once it has done what it was given."""
        self._queue.put(None)
        self._thread.join()
