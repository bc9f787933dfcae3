"""A payload in a JSON document: JSON in one field, or any bytes in Base64 in another."""

import base64
from typing import Any

import orjson
from msgspec import Raw

from wsfleet.protocol import strict_json

NULL = Raw(b"null")
"""The default of a field with JSON: `null` counts as absent."""


def payload(json: Raw, encoded: str | None) -> bytes | None:
    """Return a payload: the decoded Base64 if there is any, else the JSON; None if both are absent.

    Raises:
        ValueError: the text is not Base64, or its bytes are JSON to some parsers only.
    """
    if encoded:
        return from_base64(encoded)
    return None if json == NULL else bytes(json)


def from_base64(text: str) -> bytes:
    """Return the bytes of a payload.

    Raises:
        ValueError: the text is not Base64, or its bytes are JSON to some parsers only.
    """
    data = base64.b64decode(text, validate=True)
    strict_json.check_opaque(data)
    return data


def payload_fields(name: str, data: bytes | None) -> dict[str, Any]:
    """Return the field of a document for a payload; none if it is empty.

    The field is `name` if the payload is JSON, else `b64` and the name.
    """
    if not data:
        return {}
    if strict_json.is_json(data) and data != b"null":
        return {name: orjson.Fragment(data)}
    return {f"b64{name}": base64.b64encode(data).decode()}
