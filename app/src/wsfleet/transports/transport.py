"""The interface between a transport and the rest of the node."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from wsfleet.transports.outbox import Limits, Writer


class Close(NamedTuple):
    """A close code with its reason, as the client's protocol has them."""

    code: int
    reason: str


class Closes(NamedTuple):
    """The closes that every client protocol has."""

    restart: Close
    slow: Close


WEBSOCKET_CLOSES = Closes(
    restart=Close(1012, "please reconnect"),
    slow=Close(1013, "slow consumer"),
)
"""With the codes of the IANA registry of RFC 6455, for protocols without codes of their own."""


class Framing(NamedTuple):
    """How a transport carries one payload: two functions, for text and for binary payloads.

    Framed payloads may be concatenated. `name` distinguishes the topics of the hub.
    """

    name: str
    text: Callable[[bytes], bytes]
    binary: Callable[[bytes], bytes]


class Transport(Protocol):
    """One client's end of a transport, as `hub.Connection` needs it.

    `hub.Connection` reads `writer` for each delivery: it should be an attribute, not a property.
    """

    @property
    def writer(self) -> Writer | None:
        """Where framed payloads may be written now; None if none may be sent."""

    @property
    def paused(self) -> bool:
        """Whether nothing is read from the client: too much waits to be handled."""

    @property
    def address(self) -> int:
        """A hash of the client's address, as `handshake.Request` has it."""

    @property
    def framing(self) -> Framing:
        """The framing of payloads for this client alone."""

    @property
    def shared_framing(self) -> Framing:
        """The framing of payloads for many clients: it runs once for all, so it may compress."""

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet."""

    def limit_outbox(self, limits: Limits) -> None:
        """Set when the client is too slow: `writer.write` returns False, or `Handler.slow`."""

    async def drained(self) -> None:
        """Wait until the client has taken all that waited for it, or is gone."""

    def discard_outbox(self) -> None:
        """Drop the client's backlog."""

    def stop_keepalive(self) -> None:
        """Send no more pings of the transport's own."""

    def start_close(self, code: int, reason: str) -> None:
        """Close the connection; nothing happens if its end has been reported already."""


class Handler(Protocol):
    """The receiver of one client's messages, one after the other, and of its end."""

    async def begin(self) -> None:
        """Prepare for the first message."""

    async def receive(self, message: str | bytes) -> None:
        """Handle one message."""

    def take_pong(self, message: str | bytes) -> bool:
        """Handle a message at once if it is a pong of the client's protocol; return whether it was.

        Called for each message that arrives while another one is handled.
        """

    def pong_withheld(self) -> None:
        """Note that a ping was not answered: too many pongs wait for the client."""

    def slow(self) -> None:
        """Note that the client reads nothing of its backlog."""

    def ended(self, code: int, reason: str) -> None:
        """Note at once, and once, that the connection has ended; messages may still be handled."""

    async def closed(self) -> None:
        """Clean up; called once, after the last message."""
