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
    """The pending answers to a group of commands."""

    __slots__ = ("answers", "count", "future")

    def __init__(self, count: int, future: "asyncio.Future[list[Any]]") -> None:
        self.answers: list[Any] = []
        self.count = count
        self.future = future


class Link(asyncio.Protocol):
    """One RESP3 connection, from a pool of redis-py.

    An error of Redis is returned: an exception in the place of the answer. Pushes (pub/sub
    messages, and confirmations of subscriptions) go to `on_push`.
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
        """Take a connection from the pool; `close` returns it.

        Raises:
            redis.exceptions.RedisError, OSError: none is available.
        """
        connection: AbstractConnection = await pool.get_connection()  # type: ignore[no-untyped-call]
        return cls(pool, connection, on_push)

    @property
    def alive(self) -> bool:
        """Whether the connection is not known to be lost."""
        return not self._lost.done()

    async def close(self) -> None:
        """Close the connection; pending commands fail."""
        await self._connection.disconnect(nowait=True)
        await self._pool.release(self._connection)

    def send(self, *commands: Command) -> None:
        """Send commands whose only answers are pushes.

        Raises:
            redis.exceptions.DataError: one of them is invalid; none was sent.
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
            redis.exceptions.RedisError: always, with the reason.
        """
        await asyncio.shield(self._lost)

    def lose(self, error: RedisError) -> None:
        """Abandon the connection: pending commands fail with this reason."""
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # a reason that is never retrieved is no defect
        while self._asked:
            future = self._asked.popleft().future
            if not future.done():
                future.set_exception(error)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse answers and pushes."""
        self._parser.feed(data)
        try:
            while (answer := self._parser.gets()) is not _INCOMPLETE:
                self._take(answer)
        except hiredis.ProtocolError as error:
            self.lose(LostError(f"not the protocol of Redis: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all pending commands."""
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
    """Encode a command in the Redis protocol.

    Raises:
        redis.exceptions.DataError: an argument is no Unicode text, bytes or number.
    """
    try:
        packed: bytes = hiredis.pack_command(command)
    except (TypeError, ValueError) as error:  # ValueError: half a surrogate pair
        raise DataError(f"the command {command[0]} cannot be sent to Redis: {error}") from None
    return packed


def _error(text: str) -> ResponseError:
    """Return redis-py's exception for an error of Redis."""
    kind, _, rest = text.partition(" ")
    return _ERRORS[kind](rest) if kind in _ERRORS else ResponseError(text)
