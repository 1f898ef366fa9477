"""Sends requests at a constant rate, whether or not earlier ones were answered.

A request's latency counts from when it was due, so a request that waits for a slow
answer or a free connection is late. The sender shares the cores with the service that
it measures, so it does little: requests are prepared bytes, and it reads only two
numbers of each answer.
"""

import asyncio
import collections
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks import common

# Seconds between checks of what is due, the resolution of an event loop.
TICK = 0.001
# Seconds to wait for the last answers.
LAST_ANSWERS = 5.0
_HEAD = re.compile(rb"HTTP/1\.1 (\d+) .*?content-length: (\d+)\r\n", re.DOTALL)


@dataclasses.dataclass
class Load:
    """The outcome of requests at one rate; times are in seconds from when each was due.

    Attributes:
      rate, seconds: the requested rate and duration.
      accepted, refused: latencies of answers with status 200 and 503.
      failed: number of other answers.
      lost: requests that were sent but not answered.
      unsent: requests that found no connection.
    """

    rate: float
    seconds: float
    accepted: list[float] = dataclasses.field(default_factory=list)
    refused: list[float] = dataclasses.field(default_factory=list)
    failed: int = 0
    lost: int = 0
    unsent: int = 0

    @property
    def errors(self) -> int:
        """The number of requests that were neither accepted nor refused."""
        return self.failed + self.lost + self.unsent

    def row(self) -> dict[str, float]:
        """Summarises the load, with latencies in milliseconds."""
        p50, p90, p99 = np.percentile(self.accepted or [np.nan], [50, 90, 99]) * 1e3
        return {
            "rate": self.rate,
            "answered/s": len(self.accepted) / self.seconds,
            "p50 ms": p50,
            "p90 ms": p90,
            "p99 ms": p99,
            "refused": len(self.refused),
            "refused p90 ms": np.percentile(self.refused or [np.nan], 90) * 1e3,
            "errors": self.errors,
        }


class Source(Protocol):
    """A source of requests."""

    def take(self) -> tuple[Any, bytes]:
        """Returns the argument for `answered`, and the next request."""

    def answered(self, of: Any) -> None:
        """Called when a request was answered."""


class Bodies:
    """Requests with the given bodies, repeated in a cycle."""

    def __init__(self, bodies: Sequence[bytes]):
        self._requests = itertools.cycle([(None, request(body)) for body in bodies])

    def take(self) -> tuple[None, bytes]:
        """Returns the next request."""
        return next(self._requests)

    def answered(self, of: None) -> None:
        """Does nothing."""


class EtudeSessions:
    """Sessions as ETUDE generates them; each click waits for the previous answer.

    Clicks per session and per item follow two power laws, with the values that its code
    fits to bol.com's log (github.com/bkersbergen/etudelib, Kersbergen et al., ICDE
    2024): ceil(loc + scale u^(1/alpha)), u uniform in [0, 1), and at most scale.
    """

    LENGTHS = 0.07004263982467046, 2.0, 277.0
    CLICKS = 0.040690006010909816, 1.0, 2335.0

    def __init__(self, items: int, seed: int = 0):
        self._rng = np.random.default_rng(seed)
        share = np.cumsum(np.sort(self._power_law(self.CLICKS, items)))
        self._share = share / share[-1]
        self._new = self._sessions()
        self._waiting: collections.deque[Iterator[bytes]] = collections.deque()

    def _power_law(self, law: tuple[float, float, float], count: int) -> np.ndarray:
        alpha, loc, scale = law
        drawn = loc + scale * self._rng.random(count) ** (1 / alpha)
        return np.minimum(np.ceil(drawn), scale)

    def _sessions(self) -> Iterator[Iterator[bytes]]:
        while True:
            lengths = self._power_law(self.LENGTHS, 200).astype(int)
            drawn = np.searchsorted(self._share, self._rng.random(lengths.sum()))
            for session in np.split(1 + drawn, np.cumsum(lengths)[:-1]):
                yield _clicks(session.tolist())

    def take(self) -> tuple[Iterator[bytes], bytes]:
        """Returns the next click of an answered session, or the first of a new one."""
        while self._waiting:
            session = self._waiting.popleft()
            if click := next(session, None):
                return session, click
        session = next(self._new)
        return session, next(session)

    def answered(self, of: Iterator[bytes]) -> None:
        """Lets a session continue."""
        self._waiting.append(of)


def _clicks(rows: Sequence[int]) -> Iterator[bytes]:
    """Yields a request for each click of a session."""
    so_far = '{"session": ["'
    for row in rows:
        so_far += f"{row}"
        yield request(f'{so_far}"]}}'.encode())
        so_far += '", "'


def request(body: bytes) -> bytes:
    """Returns an HTTP request for a recommendation."""
    head = "POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


def made_bodies(items: int, count: int = 2_000) -> list[bytes]:
    """Draws requests of one session each, with lengths like Diginetica's."""
    examples = common.made_examples(items + 1, count)
    return [
        json.dumps(
            {"session": [str(row) for row in examples.items[start:][:n]]}
        ).encode()
        for start, n in zip(examples.starts, examples.lengths, strict=True)
    ]


class Client(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self, done: Callable[["Client", int, bytes], None]):
        self._done, self._buffer = done, b""
        self.is_open, self.is_asked = False, False
        self.due, self.of = 0.0, None

    def connection_made(self, transport):
        self.transport, self.is_open = transport, True

    def ask(self, of: Any, request: bytes, due: float) -> None:
        """Sends a request."""
        self.of, self.due, self.is_asked = of, due, True
        self.transport.write(request)

    def data_received(self, data):
        if self._buffer:
            data = self._buffer + data
        head = _HEAD.match(data)
        end = data.find(b"\r\n\r\n") + 4 if head else 0
        if not end or len(data) < end + int(head[2]):
            self._buffer = data
            return
        self._buffer, self.is_asked = b"", False
        if data.find(b"connection: close", 0, end) >= 0:
            self.is_open = False
            self.transport.close()
        self._done(self, int(head[1]), data[end:])

    def connection_lost(self, exc):
        self.is_open = False
        if self.is_asked:
            self.is_asked = False
            self._done(self, 0, b"")


async def send(
    port: int,
    source: Source,
    rate: float,
    seconds: float,
    *,
    connections: int = 256,
    on_answer: Callable[[bytes], None] | None = None,
) -> Load:
    """Sends requests at a constant rate; passes accepted bodies to `on_answer`.

    A request that finds no free connection waits for one, which adds to its latency.
    """
    load = Load(rate, seconds)
    free: collections.deque[Client] = collections.deque()
    late: collections.deque[tuple[Any, bytes, float]] = collections.deque()
    clients: list[Client] = []
    open_, sent, total = 0, 0, int(rate * seconds)

    def done(client: Client, status: int, body: bytes) -> None:
        nonlocal open_
        took = time.perf_counter() - client.due
        if status == 200:
            load.accepted.append(took)
            if on_answer is not None:
                on_answer(body)
        elif status == 503:
            load.refused.append(took)
        elif status:
            load.failed += 1
        else:
            load.lost += 1
        source.answered(client.of)
        if client.is_open:
            use(client)
        else:
            open_ -= 1

    def use(client: Client) -> None:
        if late:
            client.ask(*late.popleft())
        else:
            free.append(client)

    async def connect() -> None:
        nonlocal open_
        loop = asyncio.get_running_loop()
        try:
            made = await loop.create_connection(lambda: Client(done), "127.0.0.1", port)
        except OSError:
            open_ -= 1
            # Nobody listens.
            if late:
                late.popleft()
                load.unsent += 1
            return
        clients.append(made[1])
        use(made[1])

    tasks: set[asyncio.Task] = set()
    started = time.perf_counter() + 0.05
    end = started + seconds + LAST_ANSWERS
    while (now := time.perf_counter()) < end:
        while sent < total and (due := started + sent / rate) <= now:
            sent += 1
            # Reuse the latest connection: at a low rate few are open.
            while free and not free[-1].is_open:
                free.pop()
                open_ -= 1
            if free:
                free.pop().ask(*source.take(), due)
                continue
            late.append((*source.take(), due))
            if open_ < connections:
                open_ += 1
                task = asyncio.ensure_future(connect())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        if len(load.accepted) + len(load.refused) + load.errors >= total:
            break
        await asyncio.sleep(TICK)
    load.unsent += len(late) + total - sent
    load.lost += sum(client.is_asked for client in clients)
    for client in clients:
        client.is_asked = False
        client.transport.abort()
    await asyncio.sleep(0.01)
    return load
