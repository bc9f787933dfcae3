"""A client's WebSocket (RFC 6455), without ASGI in between.

ASGI knows only "send this text": each client would need an encoding, a frame and a task of its own.
Here a broadcast is framed once for all clients of a process, the same bytes go to every transport,
and a silent client costs a few small objects.
"""

import asyncio
import enum
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, cast

import structlog
from uvicorn.config import Config
from uvicorn.server import ServerState

from wsfleet.transports import deflate
from wsfleet.transports.frames import (
    ABNORMAL,
    CLOSE,
    FRAMING,
    PING,
    PONG,
    FrameReader,
    ReceivedMessage,
    ViolationError,
    close_frame,
    frame,
    parse_close,
)
from wsfleet.transports.handshake import Request, response, switching_protocols
from wsfleet.transports.outbox import HIGH_WATER, Limits, Outbox, Writer
from wsfleet.transports.transport import Handler

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT = 10.0
"""Seconds for the closing handshake; then the socket is cut."""
END_TIMEOUT = 1.0
"""Seconds for each message of a client that is gone; one that takes longer is the last."""
BACKLOG_LIMIT = 65_536
"""Bytes of messages that wait for their turn, when no more is read."""
OVERHEAD = 64
"""Bytes that a message takes besides."""
PONG_LIMIT = 65_536
"""Bytes that wait for a client, when its pings are not answered any more."""

Endpoint = Callable[["WebSocket", Request], Awaitable[None]]
"""Decides on a handshake, and serves the WebSocket until it ends."""


class Routing(NamedTuple):
    """What a listening port does with requests, apart from its ASGI application."""

    endpoint: Callable[[str], Endpoint | None]
    """Returns the endpoint of the WebSockets at a path."""
    no_endpoint: str
    """The answer to a handshake at a path without one."""
    on_refused: Callable[[int], None]
    """Is given the status of each answer to a request that no route was asked for."""
    body_limit: Callable[[Request], int]
    """Returns the bytes that the body of a request may have."""


class State(enum.Enum):
    """A WebSocket only ever moves down this list (RFC 6455, sections 4 and 7)."""

    CONNECTING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class WebSocket(asyncio.Protocol):
    """One client's socket, from the handshake to the end.

    A task runs while there is a message to carry out, and none while the client is silent.
    """

    __slots__ = (
        "_backlog",
        "_blocked",
        "_carried_out",
        "_close_timer",
        "_config",
        "_early",
        "_end",
        "_extension",
        "_failed",
        "_finishing",
        "_handler",
        "_keepalive",
        "_key",
        "_limits",
        "_loop",
        "_messages",
        "_paused",
        "_progress_timer",
        "_reader",
        "_server_state",
        "_worker",
        "shared_framing",
        "state",
        "transport",
        "writer",
    )

    framing = FRAMING

    def __init__(
        self, transport: asyncio.Transport, config: Config, server_state: ServerState
    ) -> None:
        self.state = State.CONNECTING
        self.transport = transport
        # Where whole frames may be written; None as long as, and as soon as, none may be sent:
        # before the handshake is over, and after a close frame (RFC 6455, section 5.5.1).
        self.writer: Writer | None = None
        self._blocked = False  # the transport has enough that the peer did not take
        self._limits = Limits()
        self._progress_timer: asyncio.TimerHandle | None = None
        self._config = config
        self._server_state = server_state
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(config.ws_max_size)
        self._extension = ""
        self.shared_framing = FRAMING
        self._key = b""
        self._early = b""
        self._messages: deque[str | bytes] | None = None  # an empty one is 600 bytes
        self._backlog = 0
        self._paused = False
        self._handler: Handler | None = None
        self._worker: asyncio.Task[None] | None = None
        self._end: tuple[int, str] | None = None
        self._failed = False  # nothing is read any more
        self._finishing: Callable[[], None] | None = None
        self._carried_out = 0
        self._keepalive: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        # uvicorn asks all that are in here to shut down, and waits for them.
        server_state.connections.add(cast(Any, self))

    @property
    def buffered(self) -> int:
        """Bytes that the peer has not taken yet; with TLS, without what TCP has of them."""
        return (self.writer or self.transport).get_write_buffer_size()

    # The handshake.

    def begin(self, request: Request, routing: Routing) -> None:
        """Let the endpoint of the request's path decide."""
        mistake, endpoint = request.mistake(), routing.endpoint(request.path)
        if mistake is None and endpoint is not None:
            self._key = request.headers["sec-websocket-key"].encode()
            if self._config.ws_per_message_deflate:
                self._negotiate(request)
            self._start(self._shake_hands(endpoint, request))
            return
        if mistake is None:
            mistake = HTTPStatus.NOT_FOUND, routing.no_endpoint, {}
        routing.on_refused(mistake[0])
        self.deny(*mistake)

    def _negotiate(self, request: Request) -> None:
        agreement = deflate.negotiate(request.headers.getlist("sec-websocket-extensions"))
        if agreement is not None:
            self._extension, deflates = agreement
            if deflates:
                self.shared_framing = deflate.FRAMING
            self._reader = FrameReader(self._config.ws_max_size, deflate.inflate)

    def accept(
        self, subprotocol: str | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> bool:
        """Open it, and then `attend` to it; False if the client is gone.

        Raises:
            ValueError: a field of the answer has no valid form.
        """
        if self.state is not State.CONNECTING:
            return False
        answer = switching_protocols(
            self._key, subprotocol=subprotocol, extension=self._extension, headers=headers
        )
        self.transport.write(answer)
        self._extension = ""
        self.state, self.writer = State.OPEN, self.transport
        if self._blocked:
            self.pause_writing()
        self._ping_later()
        early, self._key, self._early = self._early, b"", b""
        if early:
            self.data_received(early)
        return True

    def deny(
        self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer the handshake with an error instead."""
        self.refuse(response(status, reason, headers))

    def refuse(self, answer: bytes) -> None:
        """Answer the handshake with a whole response instead, and close."""
        if self.state is State.CONNECTING:
            self.state = State.CLOSING
            self.transport.write(answer)
            self._close_transport()

    async def attend(self, handler: Handler) -> None:
        """Give the messages to `handler` from now on, those that came already first."""
        self._handler, self._worker = handler, asyncio.current_task()
        if self._end is not None:
            handler.ended(*self._end)
            self._limit_work()
        await self._carry_out(handler, begin=True)

    def handle(self, handler: Handler | None) -> None:
        """Give messages and the end to `handler` from now on, in tasks of their own.

        It is prepared already: `begin` is not called. None: messages wait.
        """
        self._handler = handler
        if handler is not None and self._end is not None:
            handler.ended(*self._end)
        self._work()

    # To the client.

    def start_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; messages that wait for their turn are dropped.

        A peer that does not answer, or does not even read, is cut after `CLOSE_TIMEOUT` seconds.
        """
        if self._end is None:
            self._begin_close(code, reason)

    def _begin_close(self, code: int, reason: str) -> None:
        if self.state is not State.OPEN:
            return
        self._messages, self._backlog = None, 0
        self._resume()
        self._say_close(code, reason)
        self._ended(code, reason)

    def stop_keepalive(self) -> None:
        """Send no pings any more."""
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    def shutdown(self) -> None:
        """End a handshake that is under way: the server stops, and has drained before."""
        self.deny(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")
        self._begin_close(1012, "stopping")

    def limit_outbox(self, limits: Limits) -> None:
        """Say when the peer is too slow: `Outbox.write` refuses, and the handler hears of it."""
        self._limits = limits
        self.transport.set_write_buffer_limits(high=min(HIGH_WATER, limits.size))

    async def drained(self) -> None:
        """Wait until the peer has taken what waited for it, or may be sent nothing any more."""
        if isinstance(self.writer, Outbox):
            await self.writer.emptied.wait()

    def discard_outbox(self) -> None:
        """Forget the frames that wait for the peer, but for those that the transport has."""
        if isinstance(self.writer, Outbox):
            self.writer.discard()

    def pause_writing(self) -> None:
        """Let what is written wait here: the transport has enough that the peer did not take."""
        self._blocked = True
        if self.writer is self.transport:
            self.writer = Outbox(self.transport, self._limits.size)
            self._watch_progress(self.writer)

    def resume_writing(self) -> None:
        """Give what waited to the transport, until it has enough again."""
        self._blocked = False
        outbox = self.writer
        if isinstance(outbox, Outbox):
            while not self._blocked and outbox.give():
                pass
            if not self._blocked:
                self._stop_waiting(outbox, self.transport)

    def _stop_waiting(self, outbox: Outbox, writer: Writer | None) -> None:
        """Write to `writer` from now on: nothing waits any more."""
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
        if outbox.progress() == before and self._handler is not None:
            self._handler.slow()

    # From the client.

    def data_received(self, data: bytes) -> None:
        """Read frames; what comes before the handshake's end waits for it."""
        if self.state is State.CONNECTING:
            self._early += data
            if len(self._early) > BACKLOG_LIMIT:
                self.transport.abort()
            return
        if self._failed or self.state is State.CLOSED:
            return
        try:
            for message in self._reader.feed(data):
                if message.opcode < CLOSE:
                    self._take(message.payload)
                else:
                    self._control(message)
                if self._failed:
                    break
        except ViolationError as violation:
            self._finish(violation.code, violation.reason, partial(self._fail, violation))
        if self._backlog > BACKLOG_LIMIT and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self.state, self._finishing = State.CLOSED, None
        if isinstance(self.writer, Outbox):
            self._stop_waiting(self.writer, None)
        self.writer = None
        self._server_state.connections.discard(cast(Any, self))
        self.stop_keepalive()
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._ended(ABNORMAL, "connection lost")

    def _take(self, payload: str | bytes) -> None:
        if self.state is State.OPEN:  # after our close, what still comes is too late
            if self._messages is None:
                self._messages = deque()
            self._messages.append(payload)
            self._backlog += len(payload) + OVERHEAD
            self._work()

    def _control(self, message: ReceivedMessage) -> None:
        payload = cast(bytes, message.payload)
        if message.opcode == PING:
            if self.writer is None:
                return
            if self.buffered < PONG_LIMIT:
                self.writer.write(frame(PONG, payload))
            elif self._handler is not None:
                self._handler.pong_withheld()
        elif message.opcode == PONG:
            if self._keepalive is not None:
                self._keepalive.cancel()
                self._ping_later()
        else:
            code, reason = parse_close(payload)
            self._finish(code, reason or "closed by client", partial(self._answer_close, code))

    def _answer_close(self, code: int) -> None:
        if self.state is State.OPEN:
            self._say_close(code, "")
        self._close_transport()

    def _fail(self, violation: ViolationError) -> None:
        """Fail the connection (RFC 6455, section 7.1.7)."""
        self._begin_close(violation.code, violation.reason)
        if not self.transport.is_closing():
            half_close(self.transport)

    # Closing.

    def _finish(self, code: int, reason: str, end: Callable[[], None]) -> None:
        """Read nothing any more, and end when all messages that came before are carried out.

        Messages that take longer than `CLOSE_TIMEOUT` seconds are not waited for.
        """
        self._failed = True
        self.stop_keepalive()
        self._finishing = end
        waits = self.state is State.OPEN and (self._messages or self._worker is not None)
        if waits:
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self._finish_now)
        self._ended(code, reason)
        if not waits:
            self._finish_now()

    def _finish_now(self) -> None:
        end, self._finishing = self._finishing, None
        if end is not None:
            end()

    def _say_close(self, code: int, reason: str) -> None:
        if isinstance(outbox := self.writer, Outbox):  # what waits goes before the close frame
            outbox.give_all()
            self._stop_waiting(outbox, None)
        self.state, self.writer = State.CLOSING, None
        self.stop_keepalive()
        self.transport.write(close_frame(code, reason))
        if self._close_timer is not None:  # of `_finish`
            self._close_timer.cancel()
        self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _close_transport(self) -> None:
        self.transport.close()
        if self._close_timer is None:  # who does not read keeps what was written waiting
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _ended(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = (code, reason)
            self._limit_work()
            self._work()
            if self._handler is not None:
                self._handler.ended(code, reason)

    def _ping_later(self) -> None:
        interval = cast(float, self._config.ws_ping_interval)
        self._keepalive = self._loop.call_later(interval, self._ping)

    def _ping(self) -> None:
        if self.writer is not None:
            self.writer.write(frame(PING, b""))
            timeout = cast(float, self._config.ws_ping_timeout)
            self._keepalive = self._loop.call_later(timeout, self._no_pong)

    def _no_pong(self) -> None:
        self._keepalive = None
        if self._paused:  # it may have come, and is not read before other messages are handled
            self._ping_later()
            return
        self.start_close(1011, "no pong")

    # Carrying out.

    def _work(self) -> None:
        if self._worker is None and self._handler is not None and (self._messages or self._end):
            self._worker = self._start(self._carry_out(self._handler))

    async def _carry_out(self, handler: Handler, *, begin: bool = False) -> None:
        try:
            if begin:
                await handler.begin()
            while self._messages:
                payload = self._messages.popleft()
                self._backlog -= len(payload) + OVERHEAD
                self._carried_out += 1
                if self._end is not None:
                    self._limit_work()
                await handler.receive(payload)
        except asyncio.CancelledError:
            if self._end is None:  # not by `_give_up`
                raise
            cast("asyncio.Task[None]", self._worker).uncancel()
        except Exception:
            log.exception("message failed")
            self._begin_close(1011, "internal error")
        self._messages, self._backlog, self._worker = None, 0, None
        self._finish_now()
        self._resume()
        if self._end is not None:
            self._handler = None
            try:
                await handler.closed()
            except Exception:
                log.exception("clean-up failed")

    def _limit_work(self) -> None:
        """Give up the message that is being carried out if it takes long: the client is gone."""
        if self._worker is not None:
            self._loop.call_later(END_TIMEOUT, self._give_up, self._carried_out)

    def _give_up(self, carried_out: int) -> None:
        if self._worker is not None and self._carried_out == carried_out:
            self._worker.cancel()

    def _resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    async def _shake_hands(self, endpoint: Endpoint, request: Request) -> None:
        try:
            await endpoint(self, request)
        except Exception:
            log.exception("endpoint failed")
            self.deny(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
            self._begin_close(1011, "internal error")

    def _start(self, work: Any) -> asyncio.Task[None]:
        """Begin with something that the server waits for when it stops."""
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)
        return task


def half_close(transport: asyncio.Transport) -> None:
    """Write nothing any more, and wait for the peer to close.

    Closed at once, with bytes unread, TCP resets the peer, which may not see the last answer then.
    """
    if transport.can_write_eof():
        transport.write_eof()
    else:  # TLS has no half-closed connections, but a farewell that the peer answers
        transport.close()
