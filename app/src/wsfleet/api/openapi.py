"""The API's part of `/docs` and `/openapi.json`, made from the types of its requests."""

from typing import Any

import msgspec
from msgspec import Struct

from wsfleet.api.methods import Api
from wsfleet.api.requests import OldCommand, batch_of

REF = "#/components/schemas/{name}"
OBJECT = {"type": "object"}
ERROR = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    "required": ["code", "message"],
    "description": "Why a method was not carried out.",
}
RESPONSE = {
    "oneOf": [
        {"type": "object", "properties": {"result": OBJECT}, "required": ["result"]},
        {"type": "object", "properties": {"error": ERROR}, "required": ["error"]},
    ]
}
REFUSAL = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
REFUSALS = {
    "400": "The body is not JSON, or the error of the mode `transport`.",
    "401": "The API key is missing or wrong.",
    "403": "No API key is configured.",
    "422": "The JSON is not such a request.",
}


def described(api: Api) -> dict[str, Any]:
    """Return the paths and components of the API."""
    batch = batch_of(api.requests)
    kinds: list[type[Struct]] = [*api.requests.values(), batch, OldCommand]
    unique = list(dict.fromkeys(kinds))
    schemas, components = msgspec.json.schema_components(unique, ref_template=REF)
    of = dict(zip(unique, schemas, strict=True))
    replies = {"type": "object", "properties": {"replies": {"type": "array", "items": OBJECT}}}
    paths = {
        f"/api/{name}": _operation(name, method.__doc__, of[kind], RESPONSE)
        for name, (method, kind) in api.methods.items()
    }
    paths["/api/batch"] = _operation("batch", "Call several methods.", of[batch], replies)
    old = "Call a method as before Centrifugo 5; several commands may come, one a line."
    paths["/api"] = _operation("api", old, of[OldCommand], OBJECT)
    key = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    return {
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"APIKey": key}},
    }


def _operation(
    name: str, text: str | None, request: dict[str, Any], answer: dict[str, Any]
) -> dict[str, Any]:
    responses = {"200": _content(answer, "The answer.")}
    for status, description in REFUSALS.items():
        responses[status] = _content(REFUSAL, description)
    return {
        "post": {
            "tags": ["server API"],
            "operationId": name,
            "summary": (text or "").partition("\n")[0],
            "security": [{"APIKey": []}],
            "requestBody": {"required": True, **_content(request)},
            "responses": responses,
        }
    }


def _content(schema: dict[str, Any], description: str | None = None) -> dict[str, Any]:
    content = {"content": {"application/json": {"schema": schema}}}
    return content if description is None else {"description": description, **content}


def merged(document: dict[str, Any], api: dict[str, Any]) -> dict[str, Any]:
    """Return a document with the paths and components of `described` added."""
    document["paths"] |= api["paths"]
    components = document.setdefault("components", {})
    for kind, named in api["components"].items():
        components.setdefault(kind, {}).update(named)
    return document
