"""The plain protocol of `/ws`: any text is a message; the server answers with JSON objects."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from wsfleet.protocol import strict_json
from wsfleet.protocol.json_depth import too_deep

PATH = "/ws"
CHANNEL = "broadcast"
MAX_NAME = 128
MAX_DEPTH = 128


class InvalidMessageError(Exception):
    """A client's message is refused; `code` and the text are its answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class PlainMessage:
    """A client's message: its text, the same as JSON, and what it asks for."""

    text: str
    json: bytes
    client_id: str | None = None
    idempotency_key: str = ""


def parse(text: str | None, max_depth: int = MAX_DEPTH) -> PlainMessage:
    """Read one message; `None` stands for a binary one.

    Raises:
        InvalidMessageError: `unsupported_data` if it is binary, `invalid_json` if it is JSON to
            some parsers and not to others, `too_deep` if it is JSON that nests deeper than
            `max_depth`, `invalid_client_id` or `invalid_idempotency_key` if it has an invalid one.
    """
    if text is None:
        raise InvalidMessageError(
            "unsupported_data", "binary messages are not supported; send text"
        )
    try:
        data = strict_json.loads(text)
    except strict_json.InvalidJSONError as error:
        return _text(text, str(error), max_depth)
    json = text.encode()
    if too_deep(json, max_depth):
        raise InvalidMessageError("too_deep", f"the JSON nests deeper than {max_depth} levels")
    if not isinstance(data, dict):
        return PlainMessage(text, json)
    return PlainMessage(
        text,
        json,
        _name(data, "client_id", "leave it out to be given one"),
        _name(data, "idempotency_key", "leave it out if the message is not sent again") or "",
    )


def _text(text: str, reason: str, max_depth: int) -> PlainMessage:
    """Read a message that is not JSON: as text, unless its sender may have meant JSON.

    An object is always meant as JSON: as text its `client_id` and `idempotency_key` would be
    ignored.
    """
    is_object = text.lstrip(" \t\r\n\ufeff").startswith("{")
    if not is_object and not strict_json.is_ambiguous(text):
        return PlainMessage(text, orjson.dumps(text))
    if too_deep(text.encode(), max_depth):
        raise InvalidMessageError("too_deep", f"the JSON nests deeper than {max_depth} levels")
    raise InvalidMessageError(
        "invalid_json",
        f"the JSON is invalid: {reason}; send valid JSON, or the text as a JSON string",
    )


def _name(data: dict[str, Any], field: str, otherwise: str) -> str | None:
    value = data.get(field)
    if value is None:
        return None
    if type(value) is int:
        value = str(value)
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_NAME
        or not value.isprintable()
        or " " in value
    ):
        raise InvalidMessageError(
            f"invalid_{field}",
            f"{field} must be a string of 1 to {MAX_NAME} printable characters without spaces; "
            f"{otherwise}",
        )
    return value


def ack(
    *, client_id: str, hostname: str, timestamp: str, connections: int, message_count: int
) -> bytes:
    """Return the answer to a message: it is stored, and on its way to the other clients."""
    return _object(
        type="ack",
        client_id=client_id,
        hostname=hostname,
        timestamp=timestamp,
        connections=connections,
        message_count=message_count,
    )


def broadcast(*, client_id: str, hostname: str, time: int, data: bytes, opaque: bool) -> bytes:
    """Return the message for the other clients; `time` is in Unix milliseconds.

    `opaque` data comes from another protocol and need not be JSON: it is sent as a string then.
    """
    if opaque:
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError:
            data = orjson.dumps(data.decode(errors="replace"))
    return _object(
        type="message",
        client_id=client_id,
        hostname=hostname,
        timestamp=timestamp(time),
        data=orjson.Fragment(data),  # as it came: no number loses a digit
    )


def error(code: str, message: str, *, hostname: str, timestamp: str) -> bytes:
    """Return the answer to a message that was not accepted; the connection stays open."""
    return _object(type="error", code=code, message=message, hostname=hostname, timestamp=timestamp)


def timestamp(milliseconds: int) -> str:
    """Return Unix milliseconds as ISO 8601, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _object(**fields: Any) -> bytes:
    return orjson.dumps(fields)
