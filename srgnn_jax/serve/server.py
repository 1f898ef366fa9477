"""Runs the HTTP service in this process: sockets, signals, logs."""

import asyncio
import functools
import logging
import math
import os
import pathlib
import re
import signal
import sys
import time
from typing import Any

import orjson
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from srgnn_jax import config as config_lib
from srgnn_jax.errors import UserError, reason
from srgnn_jax.serve.answers import BUSY, Answer
from srgnn_jax.serve.bodies import LIMITS
from srgnn_jax.serve.http import RECOMMEND, App
from srgnn_jax.serve.recommend import Recommender
from srgnn_jax.serve.service import Service

log = logging.getLogger(__name__)

# Maximum bytes of a request's line and headers.
MOST_HEADERS = 2**15
# On shutdown: seconds in which connections close by themselves, each after an answer,
# and then seconds for requests that are still being answered.
LAST_ANSWERS, LAST_WORK = 1.0, 7
SHORTEST_TOKEN = 16
# Seconds between measurements of how far the event loop is behind.
TICK = 0.01
# Seconds after which a Python thread gives way to another; the default is 0.005.
SWITCH = 0.0002
# Seconds that a connection may be idle.
KEPT_OPEN = 75
# One whole request to RECOMMEND on a connection that stays; llhttp reads all others.
_LINE = (
    rb"(?i:connection: keep-alive|"
    rb"(?!connection|content-length|transfer-encoding|expect|upgrade)"
    rb"[a-z0-9-]+:[ -~]*)\r\n"
)
_WHOLE = re.compile(
    rb"POST %s HTTP/1\.1(\r\n(?:%s)*(?i:content-length: ?)([0-9]{1,7})\r\n"
    rb"(?:%s)*)\r\n(.*)" % (RECOMMEND.encode(), _LINE, _LINE),
    re.DOTALL,
)
_AUTHORIZATION = re.compile(rb"\r\nauthorization: *([^\r]*)\r", re.IGNORECASE)
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    b"retry-after: 1\r\n%scontent-length: %d\r\n\r\n%s"
)
_BUSY = _REFUSED % (b"", len(BUSY), BUSY)
_TOO_MANY = _REFUSED % (b"connection: close\r\n", len(BUSY), BUSY)


def serve_workdir(
    workdir: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    auth_token_file: str | None = None,
    candidates_folder: str | None = None,
    reload_every: float = 10.0,
    max_wait: float = 0.05,
    log_requests: str = "no",
    model: config_lib.MakeModel | None = None,
    ends_process: bool = False,
) -> None:
    """Serves the best checkpoint of a workdir until SIGTERM or Ctrl-C.

    Args:
      workdir: the folder of the run; a better checkpoint is loaded automatically.
      host, port: where to listen.
      auth_token_file: holds the token that every request except health checks needs.
      candidates_folder: keeps named candidates; None: they last as long as the process.
      reload_every: seconds between checks of the workdir; 0: only SIGHUP and
        POST /v1/reload load a new model.
      max_wait: maximum estimated wait of a request for the device, in seconds.
      log_requests: "no", "yes", or "contents", with their sessions.
      model: see `Recommender.load`.
      ends_process: for a command: ends the process at once when the service stops.

    Raises:
      UserError: the workdir, the token or the address cannot be used.
    """
    # While it starts, there is nothing to reload.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    token = read_token(auth_token_file) if auth_token_file else ""
    log_as_json()
    # The thread that runs batches then waits less for the event loop's.
    sys.setswitchinterval(SWITCH)
    service = Service(
        functools.partial(
            Recommender.load, workdir, model, share_code=True, split=True
        ),
        workdir=workdir,
        candidates_folder=candidates_folder,
        max_wait=max_wait,
    )
    app = App(service, token=token, reload_every=reload_every, limits=LIMITS)
    app.logs_sessions = log_requests == "contents"
    if log_requests != "no":
        app.requests_log = log_line
    # uvloop, as uvicorn would choose.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(app, host, port))
        if ends_process:
            # A thread that still compiles would keep it for long.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def read_token(path: str) -> str:
    """Reads a token; raises UserError if the file or the token cannot be used."""
    try:
        token = pathlib.Path(path).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read --auth_token_file={path}: {reason(error)}"
        raise UserError(message) from error
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise UserError(
            f"--auth_token_file={path} does not hold a token of at least "
            f"{SHORTEST_TOKEN} characters on one line; openssl rand -hex 32 makes one"
        )
    return token


class Connection(HttpToolsProtocol):
    """A connection that is refused if there are too many, and closed if it is slow.

    A request to RECOMMEND that arrives whole is answered without the rest of uvicorn,
    which costs more than recommending.
    """

    _is_asked = False
    _rest = b""
    _received = 0
    _deadline = math.inf
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts the connection, or ends it at once with 503."""
        if len(self.connections) >= LIMITS.connections:
            self.transport = transport
            transport.write(_TOO_MANY)
            transport.close()
            return
        super().connection_made(transport)
        self._app: Any = self.config.app
        self._deadline = self.loop.time() + LIMITS.seconds
        self._look()

    def data_received(self, data: bytes) -> None:
        """Reads on; headers may be neither long nor slow."""
        if self.parser is None or self.transport.is_closing():
            return
        if self._is_asked:
            self._rest += data
            self.transport.pause_reading()
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        is_between = is_idle and not self._received and not self._app.is_draining
        if is_between and (whole := _WHOLE.fullmatch(data)):
            head, length, body = whole.groups()
            if int(length) == len(body) <= self._app.limits.body:
                self._ask(head, body)
                return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._deadline = math.inf
            self._received = 0
            return
        if not self._received:
            self._deadline = self.loop.time() + LIMITS.seconds
        self._received += len(data)
        if self._received > MOST_HEADERS:
            self.transport.close()

    def _ask(self, head: bytes, body: bytes) -> None:
        # Reading this one too would make the others wait.
        if self._app.is_over():
            self._app.count_busy()
            self.transport.write(_BUSY)
            self._deadline = self.loop.time() + LIMITS.seconds
            return
        self._unset_keepalive_if_required()
        self._is_asked, self._deadline = True, math.inf
        given = _AUTHORIZATION.search(head)
        self._app.ask(body, given[1] if given else b"", self._write)

    def _write(self, answer: Answer) -> None:
        self._is_asked = False
        if self.transport.is_closing():
            return
        status, headers, body = answer
        lines = [b"%s: %s\r\n" % pair for pair in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        if (b"connection", b"close") in headers:
            self.transport.close()
            return
        self._deadline = self.loop.time() + KEPT_OPEN
        if self._rest:
            rest, self._rest = self._rest, b""
            self.transport.resume_reading()
            self.data_received(rest)

    def shutdown(self) -> None:
        """Ends the connection once its request is answered."""
        if not self._is_asked:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Closes the connection after its deadline; looks again before a later one."""
        now = self.loop.time()
        if now >= self._deadline:
            self.transport.close()
            return
        soon = min(self._deadline, now + LIMITS.seconds)
        self._timer = self.loop.call_at(soon, self._look)


class Server(uvicorn.Server):
    """Ends in order: no new connections, then no more requests on the open ones."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begins to end; a second signal ends at once."""
        app: Any = self.config.app
        if app.is_draining:
            self.force_exit = self.should_exit = True
            return
        app.is_draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        log.info("stopping: accepted requests are answered first")
        for server in self.servers:
            server.close()
        asyncio.get_running_loop().call_later(LAST_ANSWERS, self._end)

    def _end(self) -> None:
        self.should_exit = True


async def serve(app: App, host: str, port: int) -> None:
    """Serves an application until SIGTERM or Ctrl-C; SIGHUP makes it reload."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=LIMITS.connections,
        timeout_keep_alive=KEPT_OPEN,
        timeout_graceful_shutdown=LAST_WORK,
    )
    server = Server(config)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, app.reload_soon, "SIGHUP")
    try:
        sock = config.bind_socket()
    except (SystemExit, OverflowError) as error:
        raise UserError(
            f"cannot listen on {host}:{port}; choose another --host or --port"
        ) from error
    watching = asyncio.ensure_future(_watch_lag(app))
    log.info("listening on http://%s:%s", host, sock.getsockname()[1])
    await server.serve(sockets=[sock])
    watching.cancel()
    log.info("stopped")


async def _watch_lag(app: App) -> None:
    """Measures how far the event loop is behind."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(TICK)
        app.lag = time.perf_counter() - before - TICK


def log_line(fields: dict[str, Any]) -> None:
    """Writes a JSON object to stderr, with the time."""
    line = {"time": round(time.time(), 3), **fields}
    sys.stderr.write(orjson.dumps(line).decode() + "\n")


class _Lines(logging.Handler):
    """Logs as JSON lines."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = {"level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        log_line(fields)


def log_as_json() -> None:
    """Makes this package and uvicorn log JSON lines to stderr."""
    logging.getLogger("srgnn_jax").setLevel(logging.INFO)
    # Wrong requests are reported to their clients, and counted.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    root = logging.getLogger()
    root.handlers[:] = [_Lines()]
