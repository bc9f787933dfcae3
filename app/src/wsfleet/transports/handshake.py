"""Heads of requests and their answers: the opening handshake of RFC 6455, section 4."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Request:
    """The head of a request; `path` is decoded, as the application gets it."""

    __slots__ = ("headers", "method", "path", "query")

    def __init__(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers: Headers = Headers(raw=headers)

    @property
    def subprotocols(self) -> list[str]:
        """Those that the client offers, in its order."""
        offers = ",".join(self.headers.getlist("sec-websocket-protocol"))
        return [offer.strip() for offer in offers.split(",") if offer.strip()]

    def mistake(self) -> tuple[HTTPStatus, str, dict[str, str]] | None:
        """What is wrong with the handshake (RFC 6455, section 4.2.1); None: nothing."""
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
    """A whole HTTP response with one line of text, after which the connection ends."""
    body = f"{reason}\n".encode()
    fields = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    return b"%b%b\r\n%b" % (STATUS_LINE[status], head, body)


def switching_protocols(key: bytes, *, subprotocol: str | None, extension: str) -> bytes:
    """Return the answer that opens a WebSocket (RFC 6455, section 4.2.2)."""
    # The RFC demands SHA-1; it protects nothing.
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    chosen = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode() if subprotocol else b""
    if extension:
        chosen += b"Sec-WebSocket-Extensions: %b\r\n" % extension.encode()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (base64.b64encode(digest), chosen)
    )
