"""What goes back over HTTP: JSON, and errors with their place and reason."""

import logging
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from srgnn_jax.serve.batching import Overloaded
from srgnn_jax.serve.bodies import Refused

log = logging.getLogger(__name__)

# A status, headers and a body.
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

JSON = [(b"content-type", b"application/json")]


def _error(refused: Refused) -> bytes:
    return orjson.dumps({"error": {"place": refused.place, "reason": refused.reason}})


BUSY = _error(Refused(503, "service", "it is busy; try again"))
TOO_BUSY: Answer = 503, [*JSON, (b"retry-after", b"1")], BUSY
FAILED = Refused(500, "service", "it failed; its log tells why")


_BY_ROUTER = {404: "there is nothing here", 405: "not by this method"}


def of_error(error: BaseException) -> Answer:
    """Returns the answer to a request that raised this; logs what failed inside."""
    if isinstance(error, Overloaded):
        return TOO_BUSY
    if isinstance(error, HTTPException):
        why = _BY_ROUTER.get(error.status_code, "it cannot be answered")
        error = Refused(error.status_code, "request", why, **(error.headers or {}))
    if not isinstance(error, Refused):
        # Told in the log, not to the client.
        log.error("a request failed", exc_info=error)
        error = FAILED
    headers = [(k.encode(), v.encode()) for k, v in error.headers.items()]
    return error.status, [*JSON, *headers], _error(error)


def json_response(value: Any, status: int = 200) -> Response:
    """Returns a value as JSON."""
    return Response(orjson.dumps(value), status, media_type="application/json")
