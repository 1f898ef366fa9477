"""The HTTP service as a Ray Serve application with several replicas.

    serve run srgnn_jax.serve.ray_app:app workdir=runs/shop replicas=2

Each replica answers as `--mode=serve` does, from the checkpoints of the workdir, which
all of them must be able to read. Changes that would reach only one replica are refused:
named candidates come from `candidates_folder`, and each replica loads a better
checkpoint by itself. Ray queues requests that no replica can take yet, and answers 503
once the queue is full.
"""

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from srgnn_jax.serve.http import App
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.server import read_token
from srgnn_jax.serve.service import Service

# Requests that a replica handles at a time, and that wait for a replica.
ONGOING, QUEUED = 256, 512
# The arguments of `app` and their defaults.
ARGUMENTS = {
    "workdir": "",
    "replicas": "2",
    "candidates_folder": "",
    "auth_token_file": "",
    "reload_every": "10",
    "max_wait": "0.05",
}


class Replica:
    """One of the processes that answer requests."""

    def __init__(
        self,
        workdir: str,
        candidates_folder: str,
        auth_token_file: str,
        reload_every: str,
        max_wait: str,
    ):
        """Loads and compiles; Ray uses the replica once that is done."""
        service = Service(
            functools.partial(Recommender.load, workdir, share_code=True, split=True),
            workdir=workdir,
            candidates_folder=candidates_folder or None,
            max_wait=float(max_wait),
        )
        service.prepare()
        token = read_token(auth_token_file) if auth_token_file else ""
        self._app = App(service, token=token, is_one_of_many=True)
        self._reload_every = float(reload_every)
        self._watching: asyncio.Task | None = None

    async def __call__(self, request: Request) -> Response:
        """Answers a request."""
        if self._reload_every and self._watching is None:
            watch = self._app.service.watch(self._reload_every)
            self._watching = asyncio.create_task(watch)
        status, headers, body = await self._app.answer(request.scope, request.receive)
        response = Response(body, status)
        response.raw_headers = headers
        return response


def app(arguments: Mapping[str, Any]) -> Any:
    """Builds the application from the command line's `name=value` arguments.

    `workdir`, `candidates_folder`, `auth_token_file`, `reload_every` and `max_wait` are
    the flags of `--mode=serve`; `replicas` is the number of processes. Raises
    ValueError for other arguments, or if there is no workdir.
    """
    from ray import serve

    if unknown := arguments.keys() - ARGUMENTS.keys():
        known = ", ".join(ARGUMENTS)
        raise ValueError(f"unknown argument {unknown.pop()!r}; choose from {known}")
    given = {**ARGUMENTS, **arguments}
    if not given["workdir"]:
        raise ValueError("workdir=FOLDER is missing: the folder of the run")
    deployment: Any = serve.deployment(
        Replica,
        name="srgnn",
        num_replicas=int(given.pop("replicas")),
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
    )
    return deployment.bind(**given)
