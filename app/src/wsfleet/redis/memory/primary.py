"""The primary of a node without Redis: `redis.primary` and `redis.connection`, in memory."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psutil
import structlog
from redis.exceptions import DataError, RedisError, ResponseError

from wsfleet.config.redis_url import RedisURL
from wsfleet.redis.connection import Command, Push
from wsfleet.redis.memory.commands import COMMANDS
from wsfleet.redis.memory.database import Database
from wsfleet.redis.memory.functions import FUNCTIONS
from wsfleet.redis.primary import MovedOnError, UnavailableError

log = structlog.get_logger(__name__)

SWEEP_INTERVAL = 10.0
"""Seconds between two sweeps of expired keys."""


class Databases:
    """The databases of this process by name; each lives until its last user closes it."""

    def __init__(self) -> None:
        self._used: dict[str, tuple[Database, int]] = {}

    def open(self, name: str) -> Database:
        """Return the database of a name, a new one if it has no user; `close` it after use."""
        database, users = self._used.get(name) or (Database(), 0)
        self._used[name] = database, users + 1
        return database

    def close(self, name: str) -> None:
        """End the use of a database; it is lost with its last user."""
        database, users = self._used.pop(name)
        if users > 1:
            self._used[name] = database, users - 1


DATABASES = Databases()


class MemoryLink:
    """A pub/sub connection to a database in memory: `connection.Link` without a socket.

    Pushes go to `on_push` in the next turn of the event loop, as pushes of a server would.
    """

    def __init__(self, database: Database, on_push: Callable[[Push], None]) -> None:
        self._database = database
        self._on_push = on_push
        self._pushes: list[Push] = []
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()

    @property
    def alive(self) -> bool:
        """True until the connection is lost."""
        return not self._lost.done()

    def send(self, *commands: Command) -> None:
        """Run SSUBSCRIBE and SUNSUBSCRIBE."""
        for name, *arguments in commands:
            channels = [_encoded(name, argument) for argument in arguments]
            if name == "SUNSUBSCRIBE":
                self._database.unsubscribe(self._on_message, channels)
            for channel in channels:
                if name == "SSUBSCRIBE":
                    self._database.subscribe(channel, self._on_message)
                self._push([name.lower().encode(), channel, 0])

    async def lost(self) -> None:
        """Wait until the connection is lost.

        Raises:
            redis.exceptions.RedisError: always, with the reason.
        """
        await asyncio.shield(self._lost)

    def lose(self, error: RedisError) -> None:
        """Abandon the connection."""
        self._database.unsubscribe(self._on_message)
        if self.alive:
            self._lost.set_exception(error)
            self._lost.exception()  # a reason that is never retrieved is no defect

    async def close(self) -> None:
        """End all subscriptions."""
        self.lose(RedisError("the connection was closed"))

    def _on_message(self, channel: bytes, message: bytes) -> None:
        self._push([b"smessage", channel, message])

    def _push(self, push: Push) -> None:
        if not self._pushes:
            self._loop.call_soon(self._deliver)
        self._pushes.append(push)

    def _deliver(self) -> None:
        pushes, self._pushes = self._pushes, []
        for push in pushes:
            if self.alive:
                self._on_push(push)


def information() -> dict[str, Any]:
    """Return the fields of INFO that the console shows; the memory is the whole process's."""
    return {
        "connected_slaves": 0,
        "redis_version": "memory of this process",
        "used_memory": psutil.Process().memory_info().rss,
        "instantaneous_ops_per_sec": 0,
        "connected_clients": 0,
    }


class MemoryPrimary:
    """A primary without Redis: `primary.Primary` on a database of this process.

    Nodes whose URL has the same name share the database. There is no replica to wait for.
    """

    owns_all = True

    def __init__(self, url: RedisURL) -> None:
        self._name = str(url)
        self._database = DATABASES.open(self._name)
        self.alive = True
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __str__(self) -> str:
        """Return the URL."""
        return self._name

    async def info(self) -> dict[str, Any]:
        """Return the fields of INFO that the console shows."""
        return information()

    async def listen(self, on_push: Callable[[Push], None]) -> MemoryLink:
        """Return a connection for pub/sub, which the caller closes."""
        return MemoryLink(self._database, on_push)

    def owns(self, key: str) -> bool:
        """Return True: there is no other primary."""
        return True

    async def prepare(self) -> None:
        """Log a warning: the state is lost with the process."""
        log.warning("state_in_memory", hint="no other process has it; it is lost with this one")

    async def close(self) -> None:
        """End the use of the database."""
        self.alive = False
        DATABASES.close(self._name)

    async def call(self, *command: Any, replicated: bool = False) -> Any:
        """Run one command.

        Raises:
            UnavailableError: the node stops.
            redis.exceptions.ResponseError: the command is unknown, or a key is of another kind.
            redis.exceptions.DataError: the command is invalid: see `connection.pack`.
        """
        name, *arguments = (_encoded(command[0], argument) for argument in command)
        run = COMMANDS.get(name)
        if run is None:
            raise ResponseError(f"unknown command '{command[0]}': memory:// does not have it")
        return await self._answer(lambda: run(self._database, *arguments))

    async def function(
        self, name: str, keys: list[str], *args: Any, replicated: bool = False
    ) -> Any:
        """Call one of `FUNCTIONS`.

        Raises:
            UnavailableError, redis.exceptions.DataError: as for `call`.
            redis.exceptions.ResponseError: a key is of another kind.
        """
        texts = [_encoded(name, key) for key in keys]
        arguments = [_encoded(name, argument) for argument in args]
        return await self._answer(lambda: FUNCTIONS[name](self._database, texts, arguments))

    async def forget_functions(self, used: set[str]) -> None:
        """Return at once: the process has one version of the functions."""

    def lost(self, error: Exception) -> None:
        """Mark this primary as lost."""
        self.alive = False
        if not self._lost.done():
            self._lost.set_exception(MovedOnError(str(error)))

    async def serve(self) -> None:
        """Sweep expired keys until the primary is lost.

        Raises:
            UnavailableError: it was lost.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_INTERVAL):
                    await asyncio.shield(self._lost)
            self._database.sweep()

    async def _answer(self, run: Callable[[], Any]) -> Any:
        """Run a command, and answer in a later turn of the event loop, as a server would."""
        if not self.alive:
            raise UnavailableError()
        answer = run()
        await asyncio.sleep(0)
        return answer


def _encoded(command: str, argument: Any) -> bytes:
    """Encode an argument as `connection.pack` does.

    Raises:
        redis.exceptions.DataError: it is no Unicode text, bytes or number.
    """
    try:
        if isinstance(argument, str):
            return argument.encode()
        if isinstance(argument, bytes):
            return argument
        if isinstance(argument, int | float):
            return repr(argument).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise DataError(f"the command {command} cannot be sent to Redis: {error}") from None
    kind = type(argument).__name__
    raise DataError(f"the command {command} cannot be sent to Redis: {kind} is no text or number")
