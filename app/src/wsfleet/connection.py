"""One client's WebSocket: what may be sent to it, how it ends, and why it ended."""

import enum
import itertools
import time

from wsfleet.websocket import WebSocketProtocol

NORMAL = 1000
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013

_numbers = itertools.count(1)


class State(enum.Enum):
    """A connection only ever moves down this list."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """An open WebSocket and the little that the node keeps for it.

    The outgoing queue is the transport's own write buffer: it is bounded here in bytes.
    """

    __slots__ = (
        "_outbox_limit",
        "_protocol",
        "client_id",
        "close_code",
        "last_message_at",
        "message_count",
        "number",
        "opened_at",
        "reason",
        "state",
    )

    def __init__(self, protocol: WebSocketProtocol, *, client_id: str, outbox_limit: int) -> None:
        self._protocol = protocol
        self._outbox_limit = outbox_limit
        self.number = next(_numbers)
        self.client_id = client_id
        self.state = State.OPEN
        self.opened_at = self.last_message_at = time.monotonic()
        self.message_count = 0
        self.close_code = 1006
        self.reason = "lost"

    def send(self, frames: bytes) -> bool:
        """Queue whole frames; False if the client is gone or was too slow and is sent away."""
        if self.state is not State.OPEN or not self._protocol.is_open:
            return False
        if self._protocol.buffered + len(frames) > self._outbox_limit:
            self.close(TRY_AGAIN_LATER, "slow consumer")
            return False
        self._protocol.write_frames(frames)
        return True

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; closing twice is fine, the first code stands."""
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self.close_code, self.reason = code, reason
            self._protocol.start_close(code, reason)

    def closed(self, code: int, reason: str) -> None:
        """Note the end as the transport saw it; a close of our own keeps its code."""
        if self.state is State.OPEN:
            self.close_code, self.reason = code, reason or "closed by client"
        self.state = State.CLOSED
