"""The HTTP service of a trained model, as an ASGI application.

    POST /v1/recommend              lists for one session, or for several
    POST /v1/explain                the graph and the attention of a session
    GET  /v1/items?prefix=          raw ids with this prefix
    GET, PUT, DELETE /v1/candidates[/<name>]   named candidates
    POST /v1/reload                 loads the newest model now
    GET  /v2/health/live, /v2/health/ready, /v2/models/<name>
    GET  /metrics, /openapi.json, / (a page to try it)

An error is {"error": {"place": ..., "reason": ...}}; it never reveals paths, versions
or code.
"""

import asyncio
import contextlib
import hmac
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from srgnn_jax.errors import UserError
from srgnn_jax.serve import bodies
from srgnn_jax.serve.access import is_here, secret_of
from srgnn_jax.serve.answers import JSON, Answer, json_response, of_error
from srgnn_jax.serve.bodies import LIMITS, Limits, Refused
from srgnn_jax.serve.metrics import CONTENT_TYPE, Metrics
from srgnn_jax.serve.openapi import openapi
from srgnn_jax.serve.served import Identity
from srgnn_jax.serve.service import Service

log = logging.getLogger(__name__)

# The model's name in /v2/models.
MODEL = "srgnn"
RECOMMEND = "/v1/recommend"
HEALTH = ("/v2/health/live", "/v2/health/ready")
PAGE = pathlib.Path(__file__).with_name("page.html")
# The page loads nothing from elsewhere.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Makes a browser ask for a password, which is the token.
CHALLENGE = {"www-authenticate": 'Basic realm="srgnn", charset="UTF-8"'}


class App:
    """The application; `service` does the work.

    Attributes:
      service, limits: as passed.
      metrics: the metrics of this application.
      is_draining: whether each answer closes its connection.
      lag: seconds by which the event loop is behind.
      requests_log: called with a dict for each request; None: requests are not logged.
    """

    def __init__(
        self,
        service: Service,
        *,
        token: str = "",
        reload_every: float = 0.0,
        limits: Limits = LIMITS,
        is_one_of_many: bool = False,
    ):
        """Creates the application for a service.

        Every request except health checks needs the `token`, if there is one. The
        workdir is checked every `reload_every` seconds, unless that is 0. If it
        `is_one_of_many` that share the requests, it refuses changes, which would not
        reach the others.
        """
        self.service, self.limits = service, limits
        self.metrics = Metrics(service)
        service.on_reload = self.metrics.reload
        self.is_draining = False
        self.lag = 0.0
        self.requests_log: Callable[[dict[str, Any]], None] | None = None
        self.logs_sessions = False
        self._token, self._is_one_of_many = token.encode(), is_one_of_many
        self._reload_every = reload_every
        self._openapi = orjson.dumps(openapi(limits))
        self._tasks: set[asyncio.Future] = set()
        named = "/v1/candidates/{name}"
        self._router = Router(
            [
                Route(HEALTH[0], self._live),
                Route(HEALTH[1], self._ready),
                Route("/v2/models/{name}", self._model),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._document),
                Route("/", self._page),
                Route("/v1/items", self._items),
                Route("/v1/explain", self._explain, methods=["POST"]),
                Route("/v1/candidates", self._names),
                Route(named, self._change, methods=["PUT", "DELETE"]),
                Route("/v1/reload", self._reload, methods=["POST"]),
                # `answer` handles POST; this answers other methods with 405.
                Route(RECOMMEND, self._document, methods=["POST"]),
            ],
            redirect_slashes=False,
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            # Startup and shutdown, and websockets, which the router closes.
            await self._router(scope, receive, send)
            return
        status, headers, body = await self.answer(scope, receive)
        await send(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    async def answer(self, scope: Scope, receive: Receive) -> Answer:
        """Returns the status, the headers and the body of an answer."""
        started = time.perf_counter()
        method, path = scope["method"], scope["path"]
        fields: dict[str, Any] = {"method": method, "path": path[:200]}
        try:
            given = dict(scope["headers"]).get(b"authorization", b"")
            self._admit(path, given)
            if path == RECOMMEND and method == "POST":
                # Check before reading anything: refusing must be cheap.
                self.service.batcher.check()
                body = await self._body(Request(scope, receive), self.limits.body)
                asked = bodies.asked(body, self.limits)
                answer = self._lists(asked, await self.service.recommend(asked), fields)
            else:
                answer = await self._routed(scope, receive)
        except Exception as error:
            answer = of_error(error)
        status, headers, body = self._counted(answer, started, fields)
        return status, headers, b"" if method == "HEAD" else body

    def ask(self, body: bytes, given: bytes, done: Callable[[Answer], None]) -> None:
        """Calls `done` with the answer to a request to /v1/recommend.

        Most requests are of this kind and arrive whole: this does what `answer` does,
        without a task for each. `given` is the Authorization header.
        """
        started = time.perf_counter()
        fields: dict[str, Any] = {"method": "POST", "path": RECOMMEND}

        def end(answer: Answer) -> None:
            done(self._counted(answer, started, fields))

        def answered(future: asyncio.Future) -> None:
            try:
                answer = self._lists(asked, future.result(), fields)
            except Exception as error:
                answer = of_error(error)
            end(answer)

        try:
            self._admit(RECOMMEND, given)
            asked = bodies.asked(body, self.limits)
            self.service.recommend(asked).add_done_callback(answered)
        except Exception as error:
            end(of_error(error))

    def _lists(
        self,
        asked: bodies.Asked,
        answered: tuple[list[dict[str, Any]], Identity],
        fields: dict[str, Any],
    ) -> Answer:
        """Renders lists, counts them, and sets the fields to log."""
        found, identity = answered
        unknown = sum(len(one["unknown"]) for one in found)
        self.metrics.sessions(sum(one["fallback"] for one in found), unknown)
        fields["sessions"] = len(found)
        if self.logs_sessions:
            fields["contents"] = asked.sessions
        lists = {"recommendations": found} if asked.several else found[0]
        return 200, JSON, orjson.dumps({**lists, "model": identity})

    def _counted(
        self, answer: Answer, started: float, fields: dict[str, Any]
    ) -> Answer:
        """Counts and logs an answer, and completes its headers."""
        status, headers, body = answer
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        if self.is_draining:
            headers.append((b"connection", b"close"))
        seconds = time.perf_counter() - started
        self.metrics.request(status, seconds)
        if self.requests_log is not None:
            ms = round(1e3 * seconds, 2)
            self.requests_log({**fields, "status": status, "ms": ms})
        return status, headers, body

    def count_busy(self) -> None:
        """Counts and logs a request that was refused before it was read."""
        self.metrics.request(503, 0.0)
        if self.requests_log is not None:
            fields = {"method": "POST", "path": RECOMMEND, "status": 503, "ms": 0.0}
            self.requests_log(fields)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        self._in_background(self._start())
        yield
        for task in list(self._tasks):
            task.cancel()
        self.service.batcher.close()

    async def _start(self) -> None:
        started = time.perf_counter()
        if not self.service.is_ready:
            await asyncio.to_thread(self.service.prepare)
        seconds = round(time.perf_counter() - started, 2)
        step = self.service.served.identity["step"]
        log.info("ready after %s s, with the model of step %s", seconds, step)
        if self._reload_every:
            await self.service.watch(self._reload_every)

    def _in_background(self, work: Awaitable) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future) -> None:
        """Logs the error of a task that nobody awaits."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a background task failed", exc_info=error)

    def is_over(self) -> bool:
        """Whether a new request would wait too long, here or for the device."""
        return self.service.batcher.is_over(self.lag)

    def reload_soon(self, why: str) -> None:
        """Reloads in the background; the outcome is logged."""

        async def reload():
            with contextlib.suppress(UserError):
                await self.service.reload(why)

        self._in_background(reload())

    def _admit(self, path: str, given: bytes) -> None:
        """Refuses requests without the token, or before the service is ready."""
        if path in HEALTH:
            return
        if self._token and not hmac.compare_digest(secret_of(given), self._token):
            raise Refused(401, "authorization", "the token is wrong", **CHALLENGE)
        if not self.service.is_ready and path.startswith("/v1/"):
            raise Refused(503, "service", "not ready yet", **{"retry-after": "1"})

    def _may_write(self, request: Request) -> None:
        """Refuses changes to a replica, by web pages, and by hosts without a token."""
        if self._is_one_of_many:
            raise Refused(403, "request", "replicas do not accept changes")
        if "origin" in request.headers:
            raise Refused(403, "origin", "web pages may not make changes")
        if not self._token and not (request.client and is_here(request.client.host)):
            raise Refused(
                403, "request", "changes must come from this machine or with a token"
            )

    async def _body(self, request: Request, most: int) -> bytes:
        """Reads a body; raises Refused if it is too long or too slow."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        why = f"more than {most:,} bytes"
                        raise Refused(413, "body", why, connection="close")
        except ClientDisconnect:
            raise Refused(400, "body", "ended early") from None
        except TimeoutError:
            why = f"took more than {self.limits.seconds:.0f} s to arrive"
            raise Refused(408, "body", why, connection="close") from None
        return bytes(body)

    async def _routed(self, scope: Scope, receive: Receive) -> Answer:
        """Answers through the router."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        # With an app in its scope, the router raises "not found" errors.
        scope["app"] = self
        await self._router(scope, receive, keep)
        start, *rest = sent
        headers = [pair for pair in start["headers"] if pair[0] != b"content-length"]
        return start["status"], headers, b"".join(m.get("body", b"") for m in rest)

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        is_ready = self.service.is_ready and not self.is_draining
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != MODEL:
            raise Refused(404, "name", "there is no model of this name")
        served = self.service.served
        return json_response(
            {
                "name": MODEL,
                "versions": [str(served.identity["step"])],
                "platform": "jax",
                "inputs": [{"name": "session", "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": "items", "datatype": "BYTES", "shape": [-1]},
                    {"name": "scores", "datatype": "FP32", "shape": [-1]},
                ],
                "model": served.identity,
                "items": len(served.vocabulary.ids),
            }
        )

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _document(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def _page(self, request: Request) -> Response:
        headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
        return Response(PAGE.read_bytes(), headers=headers, media_type="text/html")

    async def _items(self, request: Request) -> Response:
        prefix = request.query_params.get("prefix", "")[:200]
        # In a thread: the first call sorts all ids.
        found = await asyncio.to_thread(self.service.served.complete, prefix)
        return json_response({"items": found})

    async def _explain(self, request: Request) -> Response:
        body = await self._body(request, self.limits.body)
        session = bodies.ids_of(body, "session", self.limits.clicks)
        found, identity = await self.service.explain(session)
        return json_response(
            {
                "items": found.items,
                "attention": found.attention,
                "edges": found.edges,
                "unknown": found.unknown,
                "model": identity,
            }
        )

    async def _names(self, request: Request) -> Response:
        return json_response({"candidates": self.service.names()})

    async def _change(self, request: Request) -> Response:
        change = self._keep if request.method == "PUT" else self._forget
        return await change(request)

    async def _keep(self, request: Request) -> Response:
        self._may_write(request)
        body = await self._body(request, self.limits.upload)
        ids = await asyncio.to_thread(bodies.ids_of, body, "items")
        name = request.path_params["name"]
        unknown = await self.service.keep(name, ids)
        return json_response(
            {"items": self.service.names()[name], "unknown": unknown[:100]}
        )

    async def _forget(self, request: Request) -> Response:
        self._may_write(request)
        await self.service.forget(request.path_params["name"])
        return json_response({})

    async def _reload(self, request: Request) -> Response:
        self._may_write(request)
        try:
            return json_response({"model": await self.service.reload("requested")})
        except UserError:
            step = self.service.served.identity["step"]
            why = f"the newest cannot be used, see the log; step {step} stays in use"
            raise Refused(409, "model", why) from None
