"""uvicorn's WebSocket protocol, with a way to write ready-made frames past ASGI."""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION = "wsfleet.websocket"


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Hands itself to the endpoint as `scope["extensions"][EXTENSION]["protocol"]`.

    ASGI knows only "send this text": it would be encoded and framed once a client. A broadcast is
    framed once a process instead, and the same bytes go to every transport.
    """

    def handle_connect(self, event: Request) -> None:
        """Offer the extension; the endpoint's task has not run yet when this returns."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = {"protocol": self}

    @property
    def is_open(self) -> bool:
        """Whether a data frame may still be sent (RFC 6455, section 5.5.1: none after a close)."""
        return self.handshake_complete and not self.close_sent and not self.transport.is_closing()

    @property
    def buffered(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self.transport.get_write_buffer_size()

    def write_frames(self, frames: bytes) -> None:
        """Write whole frames; the caller has checked `is_open`."""
        self.transport.write(frames)

    def start_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the endpoint's `receive` ends with this code.

        A peer that does not answer, or does not even read, is cut after `close_timeout` seconds.
        """
        if not self.is_open:
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)
