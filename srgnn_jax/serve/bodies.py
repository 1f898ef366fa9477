"""Reads and checks what clients send: each refusal gives the place and the reason."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from srgnn_jax.errors import nearest
from srgnn_jax.serve.exported import wrong_session


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for, at most.

    Attributes:
      body, upload: bytes of a request, and of a list of named candidates.
      sessions: sessions in a request.
      clicks: clicks in a session.
      k: length of a list.
      candidates: ids in a request; longer lists need a name.
      connections: connections open at a time.
      seconds: time for a client to send its whole request.
    """

    body: int = 2**20
    upload: int = 2**26
    sessions: int = 256
    clicks: int = 400
    k: int = 100
    candidates: int = 1000
    connections: int = 1000
    seconds: float = 10.0


LIMITS = Limits()


class Refused(Exception):
    """A refused request: a status, the place and the reason."""

    def __init__(self, status: int, place: str, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.place, self.reason = status, place, reason
        self.headers = headers


class Asked(NamedTuple):
    """A body of /v1/recommend."""

    sessions: Sequence[Sequence[str | int | float]]
    several: bool  # whether it named `sessions`, not one `session`
    k: int
    exclude_seen: bool
    candidates: str | tuple[str, ...] | None
    as_probabilities: bool


def _read(body: bytes, fields: Sequence[str]) -> dict[str, Any]:
    """Reads a JSON object that has no fields other than `fields`."""
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "body", f"not valid JSON: {error}") from None
    if not isinstance(read, dict):
        raise Refused(400, "body", f"must be a JSON object, not {_kind(read)}")
    for name in read:
        if name not in fields:
            raise Refused(422, name[:80], f"unknown field{nearest(name, fields)}")
    return read


_ASKED = ("session", "sessions", "k", "exclude_seen", "candidates", "as_probabilities")


def asked(body: bytes, limits: Limits = LIMITS) -> Asked:
    """Reads a body of /v1/recommend."""
    read = _read(body, _ASKED)
    if ("session" in read) == ("sessions" in read):
        raise Refused(422, "body", 'give either "session" or "sessions"')
    several = "sessions" in read
    sessions = read["sessions"] if several else [read["session"]]
    if not isinstance(sessions, list):
        raise Refused(422, "sessions", f"must be a list, not {_kind(sessions)}")
    if len(sessions) > limits.sessions:
        why = f"{len(sessions):,} sessions; the limit is {limits.sessions}"
        raise Refused(422, "sessions", why)
    for n, session in enumerate(sessions):
        place = f"sessions[{n}]" if several else "session"
        _check_ids(session, place, limits.clicks)
    k = read.get("k", min(20, limits.k))
    if type(k) is not int or not 1 <= k <= limits.k:
        raise Refused(422, "k", f"must be a whole number from 1 to {limits.k}")
    candidates = read.get("candidates")
    if candidates is not None and not isinstance(candidates, str):
        _check_ids(candidates, "candidates", limits.candidates)
        # As text: Python takes 7 and 7.0 for one.
        candidates = tuple(map(str, candidates))
    return Asked(
        sessions,
        several,
        k,
        _flag(read, "exclude_seen"),
        candidates,
        _flag(read, "as_probabilities"),
    )


def ids_of(body: bytes, field: str, most: int | None = None) -> list[str | int | float]:
    """Reads a body whose only field is a list of at most `most` item ids."""
    read = _read(body, (field,))
    if field not in read:
        raise Refused(422, "body", f'"{field}" is missing')
    _check_ids(read[field], field, most)
    return read[field]


def _check_ids(ids: Any, place: str, most: int | None) -> None:
    """Refuses anything that is not a list of at most `most` item ids."""
    if not isinstance(ids, list):
        raise Refused(422, place, f"must be a list of item ids, not {_kind(ids)}")
    if most is not None and len(ids) > most:
        raise Refused(422, place, f"{len(ids):,} ids; the limit is {most:,}")
    if set(map(type, ids)) <= {str} or not wrong_session(ids):
        return
    for n, raw in enumerate(ids):
        if wrong := wrong_session([raw]):
            if not isinstance(raw, float):
                wrong = f"an item id is text or a whole number, not {_kind(raw)}"
            raise Refused(422, f"{place}[{n}]", wrong)


def _flag(read: dict[str, Any], name: str) -> bool:
    value = read.get(name, False)
    if not isinstance(value, bool):
        raise Refused(422, name, f"must be true or false, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """Names the type of a JSON value."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null"}
    if isinstance(value, bool):
        return "true" if value else "false"
    return names.get(type(value), "a number")
