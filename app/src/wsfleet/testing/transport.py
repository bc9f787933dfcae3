"""A transport without a socket: what the node writes is read in the same turn."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Protocol, cast

from wsfleet.testing.replies import HandshakeRefused, ReplyDisconnect
from wsfleet.transports.frames import ABNORMAL
from wsfleet.transports.handshake import Request
from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Framing, Handler
from wsfleet.transports.websocket import Endpoint, WebSocket

FRAMING = Framing("memory", text=lambda payload: payload + b"\n", binary=lambda payload: payload)
"""Payloads of JSON are lines: they have no line breaks of their own."""


class Peer(Protocol):
    """The client's side of a transport."""

    def received(self, line: bytes) -> None:
        """Take one payload."""

    def closed(self, close: ReplyDisconnect) -> None:
        """Take note of the end; it is told once."""


class MemoryTransport:
    """A client's connection in memory: for the node, it is a `WebSocket`.

    It has no outbox, since its client takes everything at once.
    """

    framing = shared_framing = FRAMING
    buffered = address = 0

    def __init__(self, peer: Peer) -> None:
        self.writer: MemoryTransport | None = None
        self._peer = peer
        self._inbox: asyncio.Queue[str | None] = asyncio.Queue()
        self._handler: Handler | None = None
        self._end: tuple[int, str] | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    # For the test.

    async def open(self, endpoint: Endpoint, request: Request) -> None:
        """Open the connection.

        Raises:
            HandshakeRefused: the node refuses it.
        """
        self._task = asyncio.create_task(self._serve(endpoint, request))
        await self._opened

    def send(self, message: str) -> None:
        """Send a message to the node."""
        if self._end is None:
            self._inbox.put_nowait(message)

    async def close(self, code: int, reason: str) -> None:
        """Close the connection from the client's side, and wait for the node's clean-up."""
        self._ended(code, reason)
        if self._task is not None:
            await self._task

    async def cut(self) -> None:
        """End the connection without a word to the node, which was killed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._task = self._handler = None
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

    async def attend(self, handler: Handler) -> None:
        """Give all messages to `handler`."""
        self._handler = handler
        await handler.begin()
        while self._end is None and (message := await self._inbox.get()) is not None:
            await handler.receive(message)
        await handler.closed()

    def write(self, frames: bytes, /) -> bool:
        """Give payloads to the client."""
        for line in frames.splitlines():
            self._peer.received(line)
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
        """Close the connection."""
        self._ended(code, reason)

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
        if self._handler is not None:
            self._handler.ended(code, reason)
        self._peer.closed(ReplyDisconnect(code, reason))
