"""The sending half of a WebSocket: frames, those that wait for a slow peer, and pings."""

import asyncio
import enum
from typing import cast

from uvicorn.config import Config

from wsfleet.transports.frames import FRAMING, PING, frame
from wsfleet.transports.outbox import HIGH_WATER, Limits, Outbox, Writer


class State(enum.Enum):
    """The state of a WebSocket; it only moves down this list (RFC 6455, sections 4 and 7)."""

    CONNECTING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class SendingHalf(asyncio.Protocol):
    """The half of a connection that sends: flow control for a slow peer, and pings.

    Frames are written to `writer`: the transport, or an `Outbox` while the transport's buffer is
    full. `writer` is None when no frame may be sent: before the end of the handshake, and after a
    close frame (RFC 6455, section 5.5.1).
    """

    __slots__ = (
        "_blocked",
        "_config",
        "_keepalive",
        "_limits",
        "_loop",
        "_progress_timer",
        "address",
        "state",
        "transport",
        "writer",
    )

    framing = FRAMING

    def __init__(self, transport: asyncio.Transport, config: Config) -> None:
        self.state = State.CONNECTING
        self.transport = transport
        self.writer: Writer | None = None
        self.address = 0
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._blocked = False  # the transport has enough that the peer did not take
        self._limits = Limits()
        self._progress_timer: asyncio.TimerHandle | None = None
        self._keepalive: asyncio.TimerHandle | None = None

    @property
    def buffered(self) -> int:
        """Bytes that the peer has not taken yet; with TLS, without those that TCP has."""
        return (self.writer or self.transport).get_write_buffer_size()

    def limit_outbox(self, limits: Limits) -> None:
        """Set when the peer is too slow: `Outbox.write` returns False, or `slow` is called."""
        self._limits = limits
        self.transport.set_write_buffer_limits(high=min(HIGH_WATER, limits.size))

    async def drained(self) -> None:
        """Wait until the peer has taken all that waited for it, or no frame may be sent."""
        if isinstance(self.writer, Outbox):
            await self.writer.emptied.wait()

    def discard_outbox(self) -> None:
        """Drop the frames that wait for the peer, except those that the transport has."""
        if isinstance(self.writer, Outbox):
            self.writer.discard()

    def pause_writing(self) -> None:
        """Write to an outbox from now on: the transport's buffer is full."""
        self._blocked = True
        if self.writer is self.transport:
            self.writer = Outbox(self.transport, self._limits.size)
            self._watch_progress(self.writer)

    def resume_writing(self) -> None:
        """Write the backlog to the transport, until its buffer is full again."""
        self._blocked = False
        outbox = self.writer
        if isinstance(outbox, Outbox):
            while not self._blocked and outbox.give():
                pass
            if not self._blocked:
                self._stop_waiting(outbox, self.transport)

    def stop_keepalive(self) -> None:
        """Send no more pings."""
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def _stop_waiting(self, outbox: Outbox, writer: Writer | None) -> None:
        """Write to `writer` from now on: the outbox is empty."""
        self.writer = writer
        outbox.emptied.set()
        if self._progress_timer is not None:
            self._progress_timer.cancel()
            self._progress_timer = None

    def _watch_progress(self, outbox: Outbox) -> None:
        self._progress_timer = self._loop.call_later(
            self._limits.timeout, self._check_progress, outbox, outbox.progress()
        )

    def _check_progress(self, outbox: Outbox, before: tuple[int, int]) -> None:
        self._watch_progress(outbox)
        if outbox.progress() == before:
            self._slow()

    def _ping_later(self) -> None:
        interval = cast(float, self._config.ws_ping_interval)
        self._keepalive = self._loop.call_later(interval, self._ping)

    def _ping(self) -> None:
        if self.writer is not None:
            self.writer.write(frame(PING, b""))
            timeout = cast(float, self._config.ws_ping_timeout)
            self._keepalive = self._loop.call_later(timeout, self._no_pong)

    def _slow(self) -> None:
        """Handle a peer that reads nothing of its backlog."""
        raise NotImplementedError

    def _no_pong(self) -> None:
        """Handle a ping without a pong."""
        raise NotImplementedError


def half_close(transport: asyncio.Transport) -> None:
    """Close the sending side, and wait for the peer to close.

    If the socket were closed with bytes unread, TCP would reset the connection, and the peer might
    lose the last answer.
    """
    if transport.can_write_eof():
        transport.write_eof()
    else:  # TLS has no half-closed connections; the peer answers its close_notify
        transport.close()
