"""What is common to transports: who handles what a client sends, and how a connection ends."""

from typing import NamedTuple, Protocol


class Close(NamedTuple):
    """A close code with its reason, as the client's protocol has them."""

    code: int
    reason: str


class Closes(NamedTuple):
    """How a protocol says what every connection may have to hear."""

    restart: Close
    slow: Close


class Handler(Protocol):
    """What becomes of a client's messages, one after the other, and of its end."""

    async def begin(self) -> None:
        """Prepare for the first message."""

    async def receive(self, message: str | bytes) -> None:
        """Take one message."""

    def pong_withheld(self) -> None:
        """Hear that a ping was not answered: too many pongs wait for the client."""

    def slow(self) -> None:
        """Hear that the client takes nothing of what waits for it."""

    def ended(self, code: int, reason: str) -> None:
        """Hear at once that the connection has ended, whatever is still under way; said once."""

    async def closed(self) -> None:
        """Clean up; said once, after the last message."""
