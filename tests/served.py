"""A small served model, and a process that serves it."""

import asyncio
import contextlib
import dataclasses
import functools
import multiprocessing.connection
import os
import re
import signal
import sys
import time

import httpx
import pytest

from srgnn_jax.serve import served
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.service import Service
from tests.command import PROCESSES

# Few shapes, which compile in seconds: sessions of over 16 clicks have 256 positions.
SMALL = {
    "QUICK": ((1, 2, 4), (16,), 64),
    "RARE": ((1,), (), 64),
    "OWN": ((1,), (), 64),
}


@contextlib.contextmanager
def few_shapes():
    """Makes services in its block compile few shapes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, shapes in SMALL.items():
            patch.setattr(served, name, shapes)
        yield


def ready_service(workdir, **options):
    """Returns a service of a workdir, with everything compiled."""
    # Long, as the machine may be busy.
    options = {"max_wait": 30.0, **options}
    with few_shapes():
        service = Service(
            functools.partial(Recommender.load, workdir, share_code=True, split=True),
            workdir=workdir,
            **options,
        )
        service.prepare()
    return service


class Client:
    """Sends requests to an application in this process, one at a time."""

    def __init__(self, app, host="127.0.0.1"):
        self.app = app
        self._transport = httpx.ASGITransport(app, client=(host, 50000))

    def together(self, *requests):
        """Sends requests, given as arguments of `request`, at once; returns answers."""

        async def send():
            base = "http://served"
            async with httpx.AsyncClient(
                transport=self._transport, base_url=base
            ) as http:
                sent = (http.request(*args, **kwargs) for args, kwargs in requests)
                return await asyncio.gather(*sent)

        return asyncio.run(send())

    def request(self, *args, **kwargs):
        return self.together((args, kwargs))[0]

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def post(self, path, **kwargs):
        return self.request("POST", path, **kwargs)

    def put(self, path, **kwargs):
        return self.request("PUT", path, **kwargs)

    def delete(self, path, **kwargs):
        return self.request("DELETE", path, **kwargs)


def _serve(workdir, log, options):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    from srgnn_jax.serve import server

    limits = {name: options.pop(name) for name in ("seconds", "connections")}
    server.LIMITS = dataclasses.replace(server.LIMITS, **limits)
    with few_shapes():
        server.serve_workdir(str(workdir), port=0, **options)


class Process:
    """A process that serves a workdir on its own port."""

    def __init__(self, workdir, log, seconds=10.0, connections=1000, **options):
        self.log = log
        options |= {"seconds": seconds, "connections": connections}
        arguments = workdir, log, options
        self.process = PROCESSES.Process(target=_serve, args=arguments)

    def __enter__(self):
        self.process.start()
        for _ in range(1200):
            if '"ready after' in self.said():
                (port,) = re.findall(r"http://127.0.0.1:(\d+)", self.said())
                self.port = int(port)
                return self
            if not self.process.is_alive():
                break
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(self.said())

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def terminate(self):
        os.kill(self.process.pid, signal.SIGTERM)

    def wait(self, seconds):
        """Waits for the process to end; returns its status, None if it still runs."""
        multiprocessing.connection.wait([self.process.sentinel], seconds)
        return self.process.exitcode

    def __exit__(self, *_):
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
