"""A client's WebSocket (RFC 6455), without ASGI in between.

ASGI sends one text to one client, which costs an encoding, a frame and a task each. Here a
broadcast is framed once for all clients of a process; a silent client costs a few small objects.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast

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
from wsfleet.transports.outbox import Outbox
from wsfleet.transports.sending import SendingHalf, State, half_close
from wsfleet.transports.transport import Handler

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT = 10.0
"""Seconds for the closing handshake; then the socket is aborted."""
END_TIMEOUT = 1.0
"""Seconds for each pending message of a client that is gone; after that it is cancelled."""
BACKLOG_LIMIT = 65_536
"""Bytes of pending messages above which reading pauses."""
OVERHEAD = 64
"""Bytes of memory that a pending message takes beside its payload."""
PONG_LIMIT = 65_536
"""Bytes that wait for a client above which its pings are not answered."""


Endpoint = Callable[["WebSocket", Request], Awaitable[None]]
"""Decides on a handshake, and serves the WebSocket until it ends."""


class WebSocket(SendingHalf):
    """One client's socket, from the handshake to the end.

    A task runs while there is a message to handle, and none while the client is silent.
    """

    __slots__ = (
        "_backlog",
        "_close_timer",
        "_early",
        "_end",
        "_extension",
        "_failed",
        "_finishing",
        "_handled",
        "_handler",
        "_key",
        "_messages",
        "_reader",
        "_server_state",
        "_worker",
        "paused",
        "shared_framing",
    )

    def __init__(
        self, transport: asyncio.Transport, config: Config, server_state: ServerState
    ) -> None:
        super().__init__(transport, config)
        self._server_state = server_state
        self._reader = FrameReader(config.ws_max_size)
        self._extension = ""
        self.shared_framing = FRAMING
        self._key = b""
        self._early = b""
        self._messages: deque[str | bytes] | None = None  # an empty one is 600 bytes
        self._backlog = 0
        self.paused = False
        self._handler: Handler | None = None
        self._worker: asyncio.Task[None] | None = None
        self._end: tuple[int, str] | None = None
        self._failed = False  # nothing more is read
        self._finishing: Callable[[], None] | None = None
        self._handled = 0
        self._close_timer: asyncio.TimerHandle | None = None
        # uvicorn shuts these down when it stops, and waits for them.
        server_state.connections.add(cast(Any, self))

    # The handshake.

    def begin(self, request: Request, endpoint: Endpoint) -> None:
        """Let an endpoint decide on a valid handshake."""
        self._key = request.headers["sec-websocket-key"].encode()
        self.address = request.address
        if self._config.ws_per_message_deflate:
            self._negotiate(request)
        self._start(self._shake_hands(endpoint, request))

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
        """Open the WebSocket, then call `attend`; return False if the client is gone.

        Raises:
            ValueError: a field of the answer has no valid form.
        """
        if self.state is not State.CONNECTING:
            return False
        answer = switching_protocols(
            self._key,
            subprotocol=subprotocol,
            extension=self._extension,
            headers=[*self._config.encoded_headers, *headers],
        )
        self.transport.write(answer)
        self._extension = ""
        self.state, self.writer = State.OPEN, self.transport
        if self._blocked:
            self.pause_writing()
        self._ping_later()
        early, self._key, self._early = self._early, b"", b""
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
        """Give all messages to `handler`, from those that have arrived already."""
        self._handler, self._worker = handler, asyncio.current_task()
        if self._end is not None:
            handler.ended(*self._end)
            self._limit_work()
        await self._handle_messages(handler, begin=True)

    def handle(self, handler: Handler | None) -> None:
        """Give messages and the end to `handler` from now on, in tasks of their own.

        It is prepared already: `begin` is not called. None: messages wait.
        """
        self._handler = handler
        if handler is not None and self._end is not None:
            handler.ended(*self._end)
        self._work()

    def take_waiting(self) -> list[str | bytes]:
        """Return the messages that wait for their turn, which `Handler.receive` is not given."""
        waiting, self._messages, self._backlog = list(self._messages or ()), None, 0
        return waiting

    # To the client.

    def start_close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; messages that wait for their turn are dropped.

        The socket of a peer that does not answer is aborted after `CLOSE_TIMEOUT` seconds.
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

    def shutdown(self) -> None:
        """End the connection if it is left when the server stops, after the drain."""
        self.deny(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")
        self._begin_close(1012, "stopping")

    # From the client.

    def data_received(self, data: bytes) -> None:
        """Read frames; bytes that come before the end of the handshake wait for it."""
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
            self.paused = True
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
        if self.state is State.OPEN:  # what arrives after our close frame is dropped
            handler = self._handler
            if self._worker is not None and handler is not None and handler.take_pong(payload):
                return
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
        """Stop reading, and call `end` when all pending messages are handled.

        `end` is called after `CLOSE_TIMEOUT` seconds at the latest.
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
        if isinstance(outbox := self.writer, Outbox):  # what waits is sent before the close frame
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
        if self._close_timer is None:  # a peer that does not read blocks the close
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _ended(self, code: int, reason: str) -> None:
        if self._end is None:
            self._end = (code, reason)
            self._limit_work()
            self._work()
            if self._handler is not None:
                self._handler.ended(code, reason)

    def _slow(self) -> None:
        if self._handler is not None:
            self._handler.slow()

    def _no_pong(self) -> None:
        self._keepalive = None
        if self.paused:  # a pong may have arrived: reading is paused
            self._ping_later()
            return
        self.start_close(1011, "no pong")

    # Handling messages.

    def _work(self) -> None:
        if self._worker is None and self._handler is not None and (self._messages or self._end):
            self._worker = self._start(self._handle_messages(self._handler))

    async def _handle_messages(self, handler: Handler, *, begin: bool = False) -> None:
        try:
            if begin:
                await handler.begin()
            while self._messages:
                payload = self._messages.popleft()
                self._backlog -= len(payload) + OVERHEAD
                self._handled += 1
                if self._end is not None:
                    self._limit_work()
                await handler.receive(payload)
        except asyncio.CancelledError:
            if self._end is None:  # not by `_give_up`
                raise
            cast("asyncio.Task[None]", self._worker).uncancel()
        except Exception:
            log.exception("message_failed")
            self._begin_close(1011, "internal error")
        self._messages, self._backlog, self._worker = None, 0, None
        self._finish_now()
        self._resume()
        if self._end is not None:
            self._handler = None
            try:
                await handler.closed()
            except Exception:
                log.exception("cleanup_failed")

    def _limit_work(self) -> None:
        """Cancel the handling of the current message if it takes long: the client is gone."""
        if self._worker is not None:
            self._loop.call_later(END_TIMEOUT, self._give_up, self._handled)

    def _give_up(self, handled: int) -> None:
        if self._worker is not None and self._handled == handled:
            self._worker.cancel()

    def _resume(self) -> None:
        if self.paused and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    async def _shake_hands(self, endpoint: Endpoint, request: Request) -> None:
        try:
            await endpoint(self, request)
        except Exception:
            log.exception("endpoint_failed")
            self.deny(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
            self._begin_close(1011, "internal error")

    def _start(self, work: Any) -> asyncio.Task[None]:
        """Start a task that the server waits for when it stops."""
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)
        return task
