"""The service's description, as OpenAPI."""

from typing import Any

from srgnn_jax.serve.bodies import Limits

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "reason": {"type": "string"}},
        }
    },
}


def openapi(limits: Limits) -> dict[str, Any]:
    """Describes requests and answers."""
    raw_id, session, wanted = _asked(limits)
    text, model, lists, explained = _answers()
    plain = {"200": _is("text")}
    name = _parameter("name", "path")
    items = {"type": "array", "items": raw_id}
    kept = _object(items={"type": "integer"}, unknown=text)
    return {
        "openapi": "3.1.0",
        "info": {"title": "SR-GNN", "version": "1"},
        "paths": {
            "/v1/recommend": {"post": _does("Lists the next items", lists, wanted)},
            "/v1/explain": {
                "post": _does("Explains", explained, _object(session=session))
            },
            "/v1/items": {
                "get": _does("Completes ids", _object(items=text))
                | {"parameters": [_parameter("prefix", "query")]}
            },
            "/v1/candidates": {"get": _does("Tells the names of candidates")},
            "/v1/candidates/{name}": {
                "parameters": [name],
                "put": _does("Names candidates", kept, _object(items=items)),
                "delete": _does("Forgets candidates"),
            },
            "/v1/reload": {
                "post": _does("Loads the newest model", _object(model=model))
            },
            "/v2/health/live": {"get": _does("Tells whether it runs")},
            "/v2/health/ready": {"get": _does("Tells whether it answers")},
            "/v2/models/{name}": {
                "parameters": [name],
                "get": _does("Describes the model"),
            },
            "/metrics": {"get": {"summary": "Metrics", "responses": plain}},
            "/openapi.json": {"get": _does("This document")},
            "/": {
                "get": {"summary": "A page to try it", "responses": {"200": _is("")}}
            },
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}
        },
    }


def _asked(limits: Limits) -> tuple[Any, Any, Any]:
    """Describes an id, a session, and what /v1/recommend takes."""
    raw_id = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
    session = {"type": "array", "items": raw_id, "maxItems": limits.clicks}
    own = {"type": "array", "items": raw_id, "maxItems": limits.candidates}
    wanted = {
        "session": session,
        "sessions": {"type": "array", "items": session, "maxItems": limits.sessions},
        "k": {"type": "integer", "minimum": 1, "maximum": limits.k, "default": 20},
        "exclude_seen": {"type": "boolean", "default": False},
        "candidates": {
            "oneOf": [own, {"type": "string"}, {"type": "null"}],
            "description": "ids that may be listed, or the name that they were given",
        },
        "as_probabilities": {"type": "boolean", "default": False},
    }
    return raw_id, session, _object(**wanted)


def _answers() -> tuple[Any, Any, Any, Any]:
    """Describes ids, the model, and what /v1/recommend and /v1/explain give."""
    text, numbers = (
        {"type": "array", "items": {"type": kind}} for kind in ("string", "number")
    )
    model = _object(fingerprint={"type": "string"}, step={"type": "integer"})
    found = {
        "items": text,
        "scores": numbers,
        "unknown": text,
        "fallback": {"type": "boolean"},
    }
    several = {"type": "array", "items": _object(**found)}
    lists = {
        "oneOf": [
            _object(**found, model=model),
            _object(recommendations=several, model=model),
        ]
    }
    kinds = ("string", "string", "number")
    edge = {"type": "array", "prefixItems": [{"type": kind} for kind in kinds]}
    explained = _object(
        items=text,
        attention=numbers,
        edges={"type": "array", "items": edge},
        unknown=text,
        model=model,
    )
    return text, model, lists, explained


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _parameter(name: str, place: str) -> dict[str, Any]:
    required = place == "path"
    return {
        "name": name,
        "in": place,
        "required": required,
        "schema": {"type": "string"},
    }


def _is(description: str, schema: Any = None) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}} if schema else {}
    return {"description": description, "content": content}


def _does(summary: str, answer: Any = None, body: Any = None) -> dict[str, Any]:
    errors = {
        "400": "no JSON",
        "401": "the token is wrong",
        "422": "it cannot be used: where, and why",
        "503": "busy, or not ready; Retry-After tells the seconds",
    }
    responses = {"200": _is("done", answer or {"type": "object"})}
    responses |= {status: _is(why, _ERROR) for status, why in errors.items()}
    does = {"summary": summary, "responses": responses}
    if body is not None:
        content = {"application/json": {"schema": body}}
        does["requestBody"] = {"required": True, "content": content}
    return does
