"""The plain protocol of `/ws`: any text is a message; what the server says is a JSON object."""

from dataclasses import dataclass
from typing import Any

import orjson

from wsfleet.frames import text_frame

CHANNEL = "broadcast"
MAX_CLIENT_ID = 128


class ProtocolError(Exception):
    """What a client sent cannot be taken; `code` and the text go back to it in an error frame."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A client's message: its text as it came, the same as JSON, and the name it asks for."""

    text: str
    json: bytes
    client_id: str | None


def parse(text: str | None) -> Message:
    """Read one message; `None` stands for a binary one.

    Raises:
        ProtocolError: `unsupported_data` if it is binary, `invalid_client_id` if it carries a name
            that is none.
    """
    if text is None:
        raise ProtocolError("unsupported_data", "binary messages are not supported; send text")
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        return Message(text, orjson.dumps(text), None)
    wanted = data.get("client_id") if isinstance(data, dict) else None
    client_id = str(wanted) if type(wanted) in (int, str) else None
    if wanted is not None and (client_id is None or not _is_client_id(client_id)):
        raise ProtocolError(
            "invalid_client_id",
            f"client_id must be a string of 1 to {MAX_CLIENT_ID} printable characters without "
            "spaces; leave it out to be given one",
        )
    return Message(text, text.encode(), client_id)


def _is_client_id(value: str) -> bool:
    return 0 < len(value) <= MAX_CLIENT_ID and value.isprintable() and " " not in value


def ack(
    *, client_id: str, hostname: str, timestamp: str, connections: int, message_count: int
) -> bytes:
    """Frame that answers a message: it is kept and on its way to the others."""
    return _frame(
        type="ack",
        client_id=client_id,
        hostname=hostname,
        timestamp=timestamp,
        connections=connections,
        message_count=message_count,
    )


def broadcast(message: Message, *, client_id: str, hostname: str, timestamp: str) -> bytes:
    """JSON (not yet framed) that the other clients get."""
    return _encode(
        type="message",
        client_id=client_id,
        hostname=hostname,
        timestamp=timestamp,
        data=orjson.Fragment(message.json),  # as it came: no number loses a digit
    )


def error(code: str, message: str, *, hostname: str, timestamp: str) -> bytes:
    """Frame that says why a message was not taken; the connection stays open."""
    return _frame(type="error", code=code, message=message, hostname=hostname, timestamp=timestamp)


def _frame(**fields: Any) -> bytes:
    return text_frame(_encode(**fields))


def _encode(**fields: Any) -> bytes:
    return orjson.dumps(fields)
