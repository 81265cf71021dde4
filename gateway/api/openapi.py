"""What the OpenAPI document says of answers, beside their schema."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.api.headers import ID, REQUEST_HEADER, SESSION_HEADER
from gateway.schema.body import Body
from gateway.schema.chat import ChatBody
from gateway.schema.completion import CompletionBody
from gateway.schema.responses import ErrorDocument
from gateway.schema.tokenize import DetokenizeBody, TokenizeBody

_WHEN = {
    400: "A field of the request cannot be served; `param` names it.",
    401: "No valid API key, where the gateway asks for one.",
    404: "No such model or session.",
    413: "The body is larger than the gateway reads.",
    429: "All places are taken; try again.",
    500: "The gateway or the verifier failed.",
    503: "Nobody can serve the request now; try again.",
    504: "The request took longer than it may.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
ID_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^{ID.pattern}$"}


_SCHEMAS = "#/components/schemas/{model}"


def bodies() -> dict[str, Any]:
    """Return the schemas of what requests send, by their names."""
    kinds: list[type[Body]] = [ChatBody, CompletionBody, TokenizeBody, DetokenizeBody]
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=_SCHEMAS
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def sent(kind: type[Body]) -> dict[str, Any]:
    """Describe the body of a route that reads it with `gateway.api.body_reader`."""
    schema = {"$ref": _SCHEMAS.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of a route that are no success."""
    return {
        status: {
            "model": ErrorDocument,
            "description": _WHEN[status],
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def generated(document: type[Any]) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of a generation."""
    data = {"type": "string", "description": "A chunk as JSON, an error, or `[DONE]`."}
    event = {"type": "object", "required": ["data"], "properties": {"data": data}}
    own = {
        "model": document,
        "description": "One document; with `stream`, chunks as server-sent events, then `[DONE]`. "
        "A failure after the beginning is an event of its own.",
        "content": {"text/event-stream": {"itemSchema": event}},
        "headers": {SESSION_HEADER: {"schema": ID_SCHEMA}},
    }
    return {200: own, **refusals(400, 401, 404, 413, 429, 500, 503, 504)}


SESSION: dict[str, Any] = {
    "parameters": [
        {
            "name": SESSION_HEADER,
            "in": "header",
            "description": "The session that the request belongs to; left out, a new one.",
            "schema": ID_SCHEMA,
        },
        {
            "name": REQUEST_HEADER,
            "in": "header",
            "description": "What the logs call the request; what is no such id is replaced.",
            "schema": {"type": "string"},
        },
    ]
}
