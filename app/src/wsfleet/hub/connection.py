"""One client's WebSocket: what may be sent to it, how it ends, and why it ended."""

import enum
import itertools
import secrets
import time

from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Closes
from wsfleet.transports.websocket import WebSocket

NORMAL = 1000

# Publications carry the number of their publisher, who is not sent them, and may outlive a process:
# the next one of this name must not give the same numbers to others.
_numbers = itertools.count(1 + secrets.randbits(48))


class State(enum.Enum):
    """A connection only ever moves down this list."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """An open WebSocket and the little that the node keeps for it.

    What the client does not take waits in the transport's write buffer, and then in an `Outbox`.
    """

    __slots__ = (
        "_closes",
        "_corked",
        "_corked_size",
        "_limits",
        "_websocket",
        "client_id",
        "close_code",
        "deflates",
        "last_message_at",
        "message_count",
        "number",
        "opened_at",
        "reason",
        "state",
    )

    def __init__(
        self, websocket: WebSocket, *, client_id: str, limits: Limits, closes: Closes
    ) -> None:
        self._websocket = websocket
        self._limits = limits
        self._closes = closes
        self._corked: list[bytes] | None = None
        self._corked_size = 0
        websocket.limit_outbox(limits)
        self.deflates = websocket.deflates
        self.number = next(_numbers)
        self.client_id = client_id
        self.state = State.OPEN
        self.opened_at = self.last_message_at = time.monotonic()
        self.message_count = 0
        self.close_code = 1006
        self.reason = "lost"

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._websocket.buffered

    def send(self, frames: bytes) -> bool:
        """Queue whole frames; False if the client is gone or was too slow and is sent away."""
        writer = self._websocket.writer  # the path of each delivery: as few calls as can be
        if writer is None:
            return False
        if self._corked is not None:
            return self._cork_in(self._corked, frames)
        if writer.write(frames) is False:
            self.slow()
            return False
        return True

    def _cork_in(self, held: list[bytes], frames: bytes) -> bool:
        self._corked_size += len(frames)
        if self._corked_size > self._limits.size:
            self.slow()
            return False
        held.append(frames)
        return True

    async def drained(self) -> None:
        """Wait until the client has taken what waited for it, or is gone."""
        await self._websocket.drained()

    def slow(self) -> None:
        """Close the connection: the client takes too little of what waits, and gets no more."""
        self._corked = None
        self._websocket.discard_outbox()
        self.close(*self._closes.slow)

    def cork(self) -> None:
        """Hold back what is sent, until `uncork`."""
        self._corked, self._corked_size = [], 0

    def uncork(self, first: bytes) -> None:
        """Send `first`, and then what was held back."""
        held, self._corked = self._corked or [], None
        self.send(first + b"".join(held))

    def restart(self) -> None:
        """Ask the client to reconnect: the node stops."""
        self.close(*self._closes.restart)

    def answer_pings_itself(self) -> None:
        """Send no WebSocket pings: the client's protocol has its own."""
        self._websocket.stop_keepalive()

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; closing twice is fine, the first code stands."""
        if self.state is State.OPEN:
            self.state = State.CLOSING
            self.close_code, self.reason = code, reason
            self._websocket.start_close(code, reason)

    def closed(self, code: int, reason: str) -> None:
        """Note the end as the transport saw it; a close of our own keeps its code."""
        if self.state is State.OPEN:
            self.close_code, self.reason = code, reason or "closed by client"
        self.state = State.CLOSED
