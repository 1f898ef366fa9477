"""The OpenAPI description of the service."""

from typing import Any

from srgnn_jax.serve.bodies import Limits

Schema = dict[str, Any]


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _list(items: Schema, most: int | None = None) -> Schema:
    schema = {"type": "array", "items": items}
    return schema if most is None else {**schema, "maxItems": most}


_TEXT, _NUMBER, _INTEGER = ({"type": kind} for kind in ("string", "number", "integer"))
_FLAG = {"type": "boolean"}
_OPTION = {**_FLAG, "default": False}
_ID = {"oneOf": [_TEXT, _INTEGER]}
_ERROR = _object(error=_object(place=_TEXT, reason=_TEXT))
_MODEL = _object(fingerprint=_TEXT, step=_INTEGER)
_LISTS = {
    "items": _list(_TEXT),
    "scores": _list(_NUMBER),
    "unknown": _list(_TEXT),
    "fallback": _FLAG,
}
_RECOMMENDED = {
    "oneOf": [
        _object(**_LISTS, model=_MODEL),
        _object(recommendations=_list(_object(**_LISTS)), model=_MODEL),
    ]
}
_EXPLAINED = _object(
    items=_list(_TEXT),
    attention=_list(_NUMBER),
    edges=_list({"type": "array", "prefixItems": [_TEXT, _TEXT, _NUMBER]}),
    unknown=_list(_TEXT),
    model=_MODEL,
)
_FAILURES = {
    "400": "not valid JSON",
    "401": "the token is wrong",
    "422": "the request cannot be used; the error says where and why",
    "503": "busy, or not ready yet; Retry-After gives the seconds",
}


def openapi(limits: Limits) -> dict[str, Any]:
    """Returns the description of requests and answers."""
    session = _list(_ID, limits.clicks)
    candidates = [_list(_ID, limits.candidates), _TEXT, {"type": "null"}]
    wanted = _object(
        session=session,
        sessions=_list(session, limits.sessions),
        k={**_INTEGER, "minimum": 1, "maximum": limits.k, "default": 20},
        exclude_seen=_OPTION,
        candidates={
            "oneOf": candidates,
            "description": "ids that may be listed, or the name of stored ones",
        },
        as_probabilities=_OPTION,
    )
    kept = _object(items=_INTEGER, unknown=_list(_TEXT))
    paths = {
        "/v1/recommend": {"post": _does("Recommends next items", _RECOMMENDED, wanted)},
        "/v1/explain": {
            "post": _does("Explains a session", _EXPLAINED, _object(session=session))
        },
        "/v1/items": {
            "get": _does("Completes ids", _object(items=_list(_TEXT)))
            | {"parameters": [_parameter("prefix", "query")]}
        },
        "/v1/candidates": {"get": _does("Lists the names of candidates")},
        "/v1/candidates/{name}": {
            "parameters": [_parameter("name", "path")],
            "put": _does("Stores candidates", kept, _object(items=_list(_ID))),
            "delete": _does("Deletes candidates"),
        },
        "/v1/reload": {"post": _does("Loads the newest model", _object(model=_MODEL))},
        "/v2/health/live": {"get": _does("Says whether it is alive")},
        "/v2/health/ready": {"get": _does("Says whether it is ready")},
        "/v2/models/{name}": {
            "parameters": [_parameter("name", "path")],
            "get": _does("Describes the model"),
        },
        "/metrics": {"get": {"summary": "Metrics", "responses": {"200": _is("text")}}},
        "/openapi.json": {"get": _does("This document")},
        "/": {"get": {"summary": "A page to try it", "responses": {"200": _is("")}}},
    }
    token = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "SR-GNN", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": token}},
    }


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": _TEXT}


def _content(schema: Schema | None) -> dict[str, Any]:
    return {"application/json": {"schema": schema}} if schema else {}


def _is(description: str, schema: Schema | None = None) -> dict[str, Any]:
    return {"description": description, "content": _content(schema)}


def _does(
    summary: str, answer: Schema | None = None, body: Schema | None = None
) -> dict[str, Any]:
    responses = {"200": _is("done", answer or {"type": "object"})}
    responses |= {status: _is(why, _ERROR) for status, why in _FAILURES.items()}
    does: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        does["requestBody"] = {"required": True, "content": _content(body)}
    return does
