"""What goes back over HTTP: JSON, and errors with their place and reason."""

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from srgnn_jax.serve.bodies import Refused

# A status, headers and a body.
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

JSON = [(b"content-type", b"application/json")]


def _error(refused: Refused) -> bytes:
    return orjson.dumps({"error": {"place": refused.place, "reason": refused.reason}})


BUSY = _error(Refused(503, "service", "it is busy; try again"))
TOO_BUSY: Answer = 503, [*JSON, (b"retry-after", b"1")], BUSY
FAILED = Refused(500, "service", "it failed; its log tells why")


def told(refused: Refused) -> Answer:
    """Returns the answer to a request that is refused."""
    headers = [(k.encode(), v.encode()) for k, v in refused.headers.items()]
    return refused.status, [*JSON, *headers], _error(refused)


def of_router(error: HTTPException) -> Refused:
    """Returns what the router refuses, in our words."""
    reasons = {404: "there is nothing here", 405: "not by this method"}
    why = reasons.get(error.status_code, "it cannot be answered")
    return Refused(error.status_code, "request", why, **(error.headers or {}))


def json_response(value: Any, status: int = 200) -> Response:
    """Returns a value as JSON."""
    return Response(orjson.dumps(value), status, media_type="application/json")
