"""HTTP answers: JSON, and errors with place and reason."""

import logging
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from srgnn_jax.serve.batching import Overloaded
from srgnn_jax.serve.bodies import Refused

log = logging.getLogger(__name__)

# Status, headers and body.
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

JSON = [(b"content-type", b"application/json")]


def _error(refused: Refused) -> bytes:
    return orjson.dumps({"error": {"place": refused.place, "reason": refused.reason}})


BUSY = _error(Refused(503, "service", "busy; try again"))
TOO_BUSY: Answer = 503, [*JSON, (b"retry-after", b"1")], BUSY
FAILED = Refused(500, "service", "internal error; see the service's log")


_BY_ROUTER = {404: "not found", 405: "method not allowed"}


def of_error(error: BaseException) -> Answer:
    """Returns the answer to a request that raised this; logs internal errors."""
    if isinstance(error, Overloaded):
        return TOO_BUSY
    if isinstance(error, HTTPException):
        why = _BY_ROUTER.get(error.status_code, "cannot be answered")
        error = Refused(error.status_code, "request", why, **(error.headers or {}))
    if not isinstance(error, Refused):
        # Details go to the log, not to the client.
        log.error("a request failed", exc_info=error)
        error = FAILED
    headers = [(k.encode(), v.encode()) for k, v in error.headers.items()]
    return error.status, [*JSON, *headers], _error(error)


def json_response(value: Any, status: int = 200) -> Response:
    """Returns a value as a JSON response."""
    return Response(orjson.dumps(value), status, media_type="application/json")
