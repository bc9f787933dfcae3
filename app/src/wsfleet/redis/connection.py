"""A connection to Redis without a task of its own: commands go in, answers and pushes come out.

redis-py connects it, with all that a URL may ask for (TLS, names, a database); then hiredis reads
it where the bytes arrive: a fraction of what redis-py spends on a command, and on a message.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import hiredis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    DataError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostError

_INCOMPLETE = object()

_ERRORS: dict[str, type[ResponseError]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "MOVED": MovedError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
}

Command = tuple[Any, ...]
Push = list[Any]


class _Asked:
    """The answers that some commands wait for."""

    __slots__ = ("answers", "count", "future")

    def __init__(self, count: int, future: "asyncio.Future[list[Any]]") -> None:
        self.answers: list[Any] = []
        self.count = count
        self.future = future


class Link(asyncio.Protocol):
    """One connection of a pool, speaking RESP3.

    An error of Redis is an answer, too: an exception in its place. Pushes (messages of pub/sub,
    and what confirms a subscription) go to `on_push`.
    """

    def __init__(
        self,
        pool: BlockingConnectionPool,
        connection: AbstractConnection,
        on_push: Callable[[Push], None],
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._on_push = on_push
        self._parser = hiredis.Reader(replyError=_error, notEnoughData=_INCOMPLETE)
        self._asked: deque[_Asked] = deque()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # redis-py has no public way to lend its socket: the streams stay, to be closed with it.
        self._transport: asyncio.Transport = connection._writer.transport  # type: ignore
        self._streams = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @classmethod
    async def open(
        cls, pool: BlockingConnectionPool, on_push: Callable[[Push], None] = lambda push: None
    ) -> Self:
        """Take a connection from the pool; `close` gives it back.

        Raises:
            redis.exceptions.RedisError, OSError: there is none to be had.
        """
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
        return cls(pool, connection, on_push)

    @property
    def alive(self) -> bool:
        """Whether it is not known to be lost."""
        return not self._lost.done()

    async def close(self) -> None:
        """Close the connection; who still waits for an answer gets an error."""
        await self._connection.disconnect(nowait=True)
        await self._pool.release(self._connection)

    def send(self, *commands: Command) -> None:
        """Send commands that are answered by pushes alone.

        Raises:
            redis.exceptions.DataError: one cannot be sent; nothing was.
        """
        self._transport.write(b"".join(map(pack, commands)))

    async def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands, and return their answers in the same order.

        Raises:
            redis.exceptions.ConnectionError: the connection was lost first.
        """
        if not self.alive:
            await self._lost
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(len(commands), future))
        self._transport.write(b"".join(commands))
        return await future

    async def lost(self) -> None:
        """Wait until the connection is lost.

        Raises:
            redis.exceptions.RedisError: always, and says why.
        """
        await asyncio.shield(self._lost)

    def lose(self, error: RedisError) -> None:
        """Give it up: whoever waits for it is told this reason."""
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # it is no defect if nobody asks
        while self._asked:
            future = self._asked.popleft().future
            if not future.done():
                future.set_exception(error)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read what Redis says."""
        self._parser.feed(data)
        try:
            while (answer := self._parser.gets()) is not _INCOMPLETE:
                self._take(answer)
        except hiredis.ProtocolError as error:
            self.lose(LostError(f"not the protocol of Redis: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever waits."""
        self._streams.connection_lost(exc)
        self.lose(LostError(str(exc) if exc else "Redis closed the connection"))

    def _take(self, answer: Any) -> None:
        if isinstance(answer, hiredis.PushNotification):
            self._on_push(answer)
        elif self._asked:
            asked = self._asked[0]
            asked.answers.append(answer)
            if len(asked.answers) == asked.count:
                self._asked.popleft()
                if not asked.future.done():
                    asked.future.set_result(asked.answers)
        elif isinstance(answer, RedisError):  # of a command that pushes alone would have answered
            self.lose(answer)


def pack(command: Command) -> bytes:
    """Write a command as Redis reads it.

    Raises:
        redis.exceptions.DataError: a part of it is not text in Unicode, bytes or a number.
    """
    try:
        packed: bytes = hiredis.pack_command(command)
    except (TypeError, ValueError) as error:  # ValueError: half a surrogate pair
        raise DataError(f"the command {command[0]} cannot be sent to Redis: {error}") from None
    return packed


def _error(text: str) -> ResponseError:
    """The exception that redis-py has for an error of Redis."""
    kind, _, rest = text.partition(" ")
    return _ERRORS[kind](rest) if kind in _ERRORS else ResponseError(text)
