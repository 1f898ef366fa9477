"""Latencies of the HTTP service at constant rates, from when each request was due.

    python -m benchmarks.serve
    python -m benchmarks.serve --catalog 43097 100 --rate=2000 --seconds=60

For each catalog a made model is served by a process of its own, while this one sends
requests when they are due, whether or not those before are answered: what waits for a
slow answer counts as late. Sessions are drawn as Diginetica's. Rates grow by a quarter;
the highest that holds is the last whose p90 is within the limit and whose requests are
all answered. Both processes share the cores.
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import common

# Items, D, requests/s, and the p90 in milliseconds that is wanted there.
WANTED = (
    (1_978, 64, 5_000, 10),
    (43_097, 100, 2_000, 20),
    (100_000, 32, 1_000, 50),
    (1_000_000, 32, 190, 50),
)
GROWTH = 1.25
READY_SECONDS = 300


@dataclasses.dataclass
class Load:
    """What became of the requests of a rate; seconds from when each was due."""

    rate: float
    seconds: float
    accepted: list[float] = dataclasses.field(default_factory=list)
    refused: list[float] = dataclasses.field(default_factory=list)
    errors: int = 0

    def row(self) -> dict[str, float]:
        """Summarises it."""
        times = np.array(self.accepted or [np.nan]) * 1e3
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        refused = np.array(self.refused or [np.nan]) * 1e3
        return {
            "rate": self.rate,
            "answered/s": len(self.accepted) / self.seconds,
            "p50 ms": p50,
            "p90 ms": p90,
            "p99 ms": p99,
            "refused": len(self.refused),
            "refused p90 ms": np.percentile(refused, 90),
            "errors": self.errors,
        }


class Client(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self, done: Callable[["Client", float, int, bytes], None]):
        self._done, self._buffer, self._due = done, b"", 0.0
        self.is_open, self._is_asked = False, False

    def connection_made(self, transport):
        self.transport, self.is_open = transport, True

    def ask(self, request: bytes, due: float) -> None:
        """Sends a request."""
        self._due, self._is_asked = due, True
        self.transport.write(request)

    def data_received(self, data):
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.index(b"content-length: ") + 16
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        status, body = int(head[9:12]), self._buffer[end + 4 :]
        self._buffer, self._is_asked = b"", False
        if b"connection: close" in head:
            self.is_open = False
            self.transport.close()
        self._done(self, self._due, status, body)

    def connection_lost(self, exc):
        self.is_open = False
        if self._is_asked:
            self._is_asked = False
            self._done(self, self._due, 0, b"")


async def send(
    port: int,
    bodies: Sequence[bytes],
    rate: float,
    seconds: float,
    *,
    connections: int = 256,
    on_answer: Callable[[bytes], None] | None = None,
) -> Load:
    """Sends requests at a constant rate; `on_answer` is given each accepted one's body.

    A request that finds no free connection waits for one, which counts.
    """
    loop = asyncio.get_running_loop()
    load = Load(rate, seconds)
    head = "POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    free: collections.deque[Client] = collections.deque()
    late: collections.deque[tuple[bytes, float]] = collections.deque()
    open_, answered, total = 0, 0, int(rate * seconds)

    def done(client: Client, due: float, status: int, body: bytes) -> None:
        nonlocal answered, open_
        answered += 1
        took = time.perf_counter() - due
        if status == 200:
            load.accepted.append(took)
            if on_answer is not None:
                on_answer(body)
        elif status == 503:
            load.refused.append(took)
        else:
            load.errors += 1
        if not client.is_open:
            open_ -= 1
            return
        if late:
            client.ask(*late.popleft())
        else:
            free.append(client)

    async def connect() -> None:
        nonlocal open_
        try:
            _, client = await loop.create_connection(
                lambda: Client(done), "127.0.0.1", port
            )
        except OSError:
            open_ -= 1
            return
        clients.append(client)
        if late:
            client.ask(*late.popleft())
        else:
            free.append(client)

    clients: list[Client] = []
    started = time.perf_counter() + 0.05
    sent, tasks = 0, set()
    while answered < total and time.perf_counter() < started + seconds + 5:
        now = time.perf_counter()
        while sent < total and (due := started + sent / rate) <= now:
            request = requests[sent % len(requests)]
            sent += 1
            # The one that was used last: few are open at a low rate.
            while free and not free[-1].is_open:
                free.pop()
                open_ -= 1
            if free:
                free.pop().ask(request, due)
                continue
            late.append((request, due))
            if open_ < connections:
                open_ += 1
                task = loop.create_task(connect())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.0005)
    load.errors += total - answered
    for client in clients:
        client.transport.abort()
    await asyncio.sleep(0.01)
    return load


def made_bodies(items: int, count: int = 2_000) -> list[bytes]:
    """Draws requests of one session each."""
    examples = common.made_examples(items + 1, count)
    return [
        json.dumps(
            {"session": [str(row) for row in examples.items[start:][:n]]}
        ).encode()
        for start, n in zip(examples.starts, examples.lengths, strict=True)
    ]


def serve_made(items: int, embedding_size: int) -> None:
    """Serves a made model, with the numbers of its rows as raw ids, on a free port."""
    from srgnn_jax.data.sessions import Vocabulary
    from srgnn_jax.devices import processes
    from srgnn_jax.model.srgnn import SRGNN, init_params
    from srgnn_jax.serve.http import App
    from srgnn_jax.serve.recommend import Recommender
    from srgnn_jax.serve.server import log_as_json, loop_factory, serve
    from srgnn_jax.serve.service import Service

    processes.settle_process()
    log_as_json()
    model = SRGNN(items + 1, embedding_size)
    vocabulary = Vocabulary([str(row) for row in range(1, items + 1)])

    def load() -> Recommender:
        return Recommender(model, init_params(model, 0), vocabulary, share_code=True)

    async def run() -> None:
        await serve(App(Service(load)), "127.0.0.1", 0)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(run())


class Served:
    """A process that serves, and its port, once it is ready."""

    def __init__(self, command: Sequence[str], folder: str | os.PathLike = common.ROOT):
        self.log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = str(common.ROOT)
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stderr=self.log,
            cwd=folder,
            env=environment,
        )

    def __enter__(self) -> int:
        """Waits until it is ready, and returns its port."""
        for _ in range(READY_SECONDS * 10):
            said = self.said()
            if '"ready after' in said and '"listening on' in said:
                return int(said.split("http://127.0.0.1:")[1].split('"')[0])
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"it does not serve:\n{self.said()}")

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def said(self) -> str:
        """Returns its log so far."""
        return pathlib.Path(self.log.name).read_text()


def highest(port: int, bodies: Sequence[bytes], first: float, limit: float) -> dict:
    """Returns the row of the highest rate that holds, from the first one upwards."""
    rate, best = first, {}
    while True:
        row = asyncio.run(send(port, bodies, rate, 5.0)).row()
        if row["errors"] or row["refused"] or not row["p90 ms"] <= limit:
            return best
        best, rate = row, rate * GROWTH


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalog", type=int, nargs=2, metavar=("ITEMS", "D"))
    parser.add_argument("--rate", type=float, help="requests/s, instead of the wanted")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no_highest", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_made(*arguments.catalog)
        return
    rows = []
    load_before = common.load_of_others()
    chosen = WANTED
    if arguments.catalog:
        known = {(items, size): rest for items, size, *rest in WANTED}
        rate, limit = known.get(tuple(arguments.catalog), (100, 50))
        chosen = ((*arguments.catalog, rate, limit),)
    for items, size, rate, limit in chosen:
        rate = arguments.rate or rate
        bodies = made_bodies(items)
        command = ["-m", "benchmarks.serve", "--serve", "--catalog", items, size]
        with Served([str(part) for part in command]) as port:
            # Until caches are warm.
            asyncio.run(send(port, bodies, rate / 2, 2.0))
            row = asyncio.run(send(port, bodies, rate, arguments.seconds)).row()
            if not arguments.no_highest:
                best = highest(port, bodies, rate / 2, limit)
                row["highest/s"] = best.get("rate", 0.0)
                twice = asyncio.run(
                    send(port, bodies, 2 * max(row["highest/s"], rate), 5)
                )
                over = twice.row()
                row |= {f"twice: {name}": value for name, value in over.items()}
        rows.append({"items": items, "D": size, "limit ms": limit, **row})
    common.show(
        "serve", {"arguments": vars(arguments), "load before": load_before}, rows
    )


if __name__ == "__main__":
    main()
