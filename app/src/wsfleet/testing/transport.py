"""A transport without a socket: the client reads the node's bytes in the same turn."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol, cast

from wsfleet.tasks import end
from wsfleet.testing.replies import HandshakeRefused, ReplyDisconnect
from wsfleet.transports.frames import ABNORMAL
from wsfleet.transports.handshake import Request
from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Framing, Handler
from wsfleet.transports.websocket import END_TIMEOUT, Endpoint, WebSocket

INTERNAL_ERROR = 1011


class Peer(Protocol):
    """The client's side of a transport."""

    framing: Framing

    def received(self, frames: bytes) -> None:
        """Take payloads, in the peer's own framing."""

    def closed(self, close: ReplyDisconnect) -> None:
        """Record the end, once."""


class MemoryTransport:
    """A client's connection in memory: for the node, it is a `WebSocket`.

    It has no outbox, since its client takes everything at once.
    """

    buffered = address = 0

    def __init__(self, peer: Peer) -> None:
        self.framing = self.shared_framing = peer.framing
        self.writer: MemoryTransport | None = None
        self._peer = peer
        self._inbox: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._handler: Handler | None = None
        self._end: tuple[int, str] | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._limit: asyncio.Timeout | None = None

    # For the test.

    async def open(self, endpoint: Endpoint, request: Request) -> None:
        """Open the connection.

        Raises:
            HandshakeRefused: the node refuses it.
        """
        self._tasks.append(asyncio.create_task(self._serve(endpoint, request)))
        await self._opened

    def send(self, message: str | bytes) -> None:
        """Send a message to the node."""
        if self._end is None:
            self._inbox.put_nowait(message)

    async def close(self, code: int, reason: str) -> None:
        """Close the connection from the client's side, and wait for the node's clean-up."""
        self._ended(code, reason)
        await asyncio.gather(*self._tasks)

    async def cut(self) -> None:
        """End the connection without the node, which was killed."""
        await end(self._tasks)
        self._tasks.clear()
        self._handler = None
        self._ended(ABNORMAL, "connection lost")

    # For the node: `transports.transport.Transport`, and the handshake of a `WebSocket`.

    def accept(self, subprotocol: str | None = None, headers: Any = ()) -> bool:
        """Open the connection."""
        self.writer = self
        self._opened.set_result(None)
        return True

    def deny(
        self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Refuse the connection."""
        self._opened.set_exception(HandshakeRefused(status, reason))

    def refuse(self, answer: bytes) -> None:
        """Refuse the connection with a whole response."""
        head, _, body = answer.partition(b"\r\n\r\n")
        self.deny(HTTPStatus(int(head.split(maxsplit=2)[1])), body.decode())

    async def attend(self, handler: Handler) -> None:
        """Give all messages to `handler`."""
        self._handler = handler
        await handler.begin()
        await self._handle_messages(handler)

    def handle(self, handler: Handler | None) -> None:
        """Give all messages to `handler`, which is prepared already, in a task."""
        self._handler = handler
        if handler is not None and self.writer is not None:
            self._tasks.append(asyncio.create_task(self._handle_messages(handler)))

    def take_waiting(self) -> list[str | bytes]:
        """Return the messages that wait for their turn."""
        waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        return [message for message in waiting if message is not None]

    def write(self, frames: bytes, /) -> bool:
        """Give payloads to the client."""
        self._peer.received(frames)
        return True

    def get_write_buffer_size(self) -> int:
        """Return 0: nothing waits."""
        return 0

    def limit_outbox(self, limits: Limits) -> None:
        """Return at once: nothing waits."""

    async def drained(self) -> None:
        """Return at once: nothing waits."""

    def discard_outbox(self) -> None:
        """Return at once: nothing waits."""

    def stop_keepalive(self) -> None:
        """Return at once: there are no pings below the protocol."""

    def start_close(self, code: int, reason: str) -> None:
        """Close the connection; messages that wait for their turn are dropped."""
        if self._end is None:
            self.take_waiting()
            self._ended(code, reason)

    async def _handle_messages(self, handler: Handler) -> None:
        """Handle messages until the end, and at most `END_TIMEOUT` seconds after it."""
        try:
            async with asyncio.timeout(None) as self._limit:
                while (message := await self._inbox.get()) is not None:
                    await handler.receive(message)
        except TimeoutError:
            pass
        except Exception:  # as a WebSocket does; the test gets the exception when it closes
            self._limit = None
            self._ended(INTERNAL_ERROR, "internal error")
            raise
        finally:
            self._limit = None
        await handler.closed()

    async def _serve(self, endpoint: Endpoint, request: Request) -> None:
        try:
            await endpoint(cast(WebSocket, self), request)
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    def _ended(self, code: int, reason: str) -> None:
        if self._end is not None:
            return
        self._end = code, reason
        self.writer = None
        self._inbox.put_nowait(None)
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + END_TIMEOUT)
        if self._handler is not None:
            self._handler.ended(code, reason)
        self._peer.closed(ReplyDisconnect(code, reason))
