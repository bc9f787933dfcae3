"""Heads of requests and their answers: the opening handshake of RFC 6455, section 4."""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Request:
    """The head of a request; `path` is decoded, as the application gets it.

    `scope` is what uvicorn knows of the connection, in the words of ASGI.
    """

    __slots__ = ("headers", "method", "path", "query", "raw_path", "scope")

    def __init__(
        self,
        method: str,
        raw_path: bytes,
        query: str,
        headers: list[tuple[bytes, bytes]],
        scope: Mapping[str, Any],
    ) -> None:
        self.method = method
        self.path = unquote(raw_path.decode("ascii"))
        self.raw_path = raw_path
        self.query = query
        self.headers: Headers = Headers(raw=headers)
        self.scope = scope

    @property
    def address(self) -> int:
        """A hash of the client's address, with those of the proxies in front of the last one.

        It is the same for all connections of a client. A client may make it up: it recognises
        clients, and gives no rights.
        """
        forwarded = self.headers.getlist("x-forwarded-for")
        return hash(",".join(forwarded) or (self.scope["client"] or [""])[0])

    @property
    def subprotocols(self) -> list[str]:
        """The offered subprotocols, in the client's order."""
        offers = ",".join(self.headers.getlist("sec-websocket-protocol"))
        return [offer.strip() for offer in offers.split(",") if offer.strip()]

    def mistake(self) -> tuple[HTTPStatus, str, dict[str, str]] | None:
        """Return the mistake in the handshake (RFC 6455, section 4.2.1), or None."""
        if self.method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, "a WebSocket begins with GET", {"Allow": "GET"}
        if self.headers.get("sec-websocket-version") != "13":
            version = {"Sec-WebSocket-Version": "13"}
            return HTTPStatus.UPGRADE_REQUIRED, "this server speaks version 13", version
        try:
            nonce = base64.b64decode(self.headers.get("sec-websocket-key", ""), validate=True)
        except (binascii.Error, ValueError):
            nonce = b""
        if len(nonce) != 16:
            return HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in base64", {}
        if int(self.headers.get("content-length", "0")) or "transfer-encoding" in self.headers:
            return HTTPStatus.BAD_REQUEST, "a WebSocket's handshake has no body", {}
        return None


def response(status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a whole HTTP response with one line of text, after which the connection ends."""
    body = f"{reason}\n".encode()
    fields = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    return b"%b%b\r\n%b" % (STATUS_LINE[status], head, body)


def raw_response(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return a whole HTTP response, after which the connection ends.

    Raises:
        ValueError: there is no such status, or a field has no valid form.
    """
    if status not in STATUS_LINE or status < 200:
        raise ValueError(f"a response has a status of 200 to 599, not {status}")
    own = (b"connection", b"content-length", b"transfer-encoding")
    fields = [field for field in headers if field[0].lower() not in own]
    if status not in (204, 304):
        fields.append((b"content-length", b"%d" % len(body)))
    head = _fields([*fields, (b"connection", b"close")])
    return b"%b%b\r\n%b" % (STATUS_LINE[status], head, b"" if status in (204, 304) else body)


def _fields(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if not name or HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            raise ValueError(f"{name!r}: {value!r} is not a valid header field")
    return b"".join(b"%b: %b\r\n" % field for field in headers)


def switching_protocols(
    key: bytes,
    *,
    subprotocol: str | None,
    extension: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return the answer that opens a WebSocket (RFC 6455, section 4.2.2).

    Raises:
        ValueError: a field has no valid form.
    """
    # The RFC demands SHA-1; it protects nothing.
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    fields = list(headers)
    if subprotocol:
        fields.append((b"Sec-WebSocket-Protocol", subprotocol.encode()))
    if extension:
        fields.append((b"Sec-WebSocket-Extensions", extension.encode()))
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (base64.b64encode(digest), _fields(fields))
    )
