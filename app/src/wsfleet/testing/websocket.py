"""A client of one of the application's own WebSockets in a test."""

import asyncio

from wsfleet.testing.replies import ReplyDisconnect
from wsfleet.testing.subscription import TIMEOUT
from wsfleet.testing.transport import MemoryTransport
from wsfleet.transports.transport import Framing

CLOSED_BY_CLIENT = 1000
TEXT, BINARY = b"t", b"b"


def _framed(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4) + payload


FRAMING = Framing(
    "counted",
    text=lambda payload: _framed(TEXT, payload),
    binary=lambda payload: _framed(BINARY, payload),
)


class TestbedWebSocket:
    """A WebSocket of the application, open at a node."""

    __test__ = False  # for pytest
    framing = FRAMING

    def __init__(self, node: str) -> None:
        self.node = node
        """The name of its node."""
        self._transport: MemoryTransport
        self._inbox: asyncio.Queue[str | bytes | ReplyDisconnect] = asyncio.Queue()
        self._over: asyncio.Future[ReplyDisconnect] = asyncio.get_running_loop().create_future()

    def send(self, message: str | bytes) -> None:
        """Send a message; after the end, it is dropped."""
        self._transport.send(message)

    async def receive(self, within: float = TIMEOUT) -> str | bytes:
        """Return the next message.

        Raises:
            Disconnect: the connection has ended, and all messages are received.
            TimeoutError: none has come `within` these seconds.
        """
        async with asyncio.timeout(within):
            message = await self._inbox.get()
        if isinstance(message, ReplyDisconnect):
            self._inbox.put_nowait(message)  # for the next call
            raise message
        return message

    async def disconnected(self, within: float = TIMEOUT) -> ReplyDisconnect:
        """Wait until the connection has ended; return code and reason.

        Raises:
            TimeoutError: it has not ended `within` these seconds.
        """
        async with asyncio.timeout(within):
            return await asyncio.shield(self._over)

    async def close(self, code: int = CLOSED_BY_CLIENT) -> None:
        """Close the connection, and wait until the application's handler has returned."""
        await self._transport.close(code, "closed by the test")

    # For the testbed and the transport.

    def attach(self, transport: MemoryTransport) -> None:
        """Use an open transport."""
        self._transport = transport

    def received(self, frames: bytes) -> None:
        """Take messages."""
        while frames:
            end = 5 + int.from_bytes(frames[1:5])
            payload = frames[5:end]
            self._inbox.put_nowait(payload.decode() if frames[:1] == TEXT else payload)
            frames = frames[end:]

    def closed(self, close: ReplyDisconnect) -> None:
        """Take note of the end of the connection."""
        self._over.set_result(close)
        self._inbox.put_nowait(close)
