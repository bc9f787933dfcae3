"""A database in memory for other processes: the Redis protocol on a Unix socket.

The nodes use it as they use a Redis, and it outlives each of them. It has the commands that a node
sends. Source: https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP3)
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import hiredis
from redis.exceptions import ResponseError

from wsfleet.redis.memory.commands import COMMANDS
from wsfleet.redis.memory.database import Database
from wsfleet.redis.memory.functions import FUNCTIONS
from wsfleet.redis.memory.primary import SWEEP_INTERVAL, information
from wsfleet.redis.primary import DIGEST
from wsfleet.tasks import end

_OK = b"OK"
_INCOMPLETE = object()


class MemoryServer:
    """A server of one database in memory; a context manager that serves it.

    Only the user of this process can connect if the folder of `path` is theirs alone.
    """

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._database = Database()

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: the socket cannot be made.
        """
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Session(self._database), str(self._path)
        )
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; the database is lost."""
        self._server.close()
        await end([self._sweeping])

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            self._database.sweep()


class _Session(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._database.unsubscribe(self._on_message)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (command := self._reader.gets()) is not _INCOMPLETE:
                self._answer(command)
        except hiredis.ProtocolError:
            self._transport.abort()

    def _answer(self, command: list[bytes]) -> None:
        name, *arguments = command
        name = name.upper()
        if name in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
            self._change_subscriptions(name, arguments)
            return
        try:
            answer = encode(self._run(name, arguments))
        except ResponseError as error:
            answer = b"-ERR %b\r\n" % str(error).encode()
        except (IndexError, KeyError, TypeError, ValueError) as error:
            answer = b"-ERR invalid arguments of %b: %b\r\n" % (name, repr(error).encode())
        self._transport.write(answer)

    def _run(self, name: bytes, arguments: list[bytes]) -> Any:
        if name == b"FCALL":
            function, count, *rest = arguments
            run = FUNCTIONS[function.decode().removeprefix("wsfleet_").removesuffix(f"_{DIGEST}")]
            return run(self._database, rest[: int(count)], rest[int(count) :])
        if name in SERVER_COMMANDS:
            return SERVER_COMMANDS[name](*arguments)
        if name not in COMMANDS:
            raise ResponseError(f"unknown command '{name.decode(errors='replace')}'")
        return COMMANDS[name](self._database, *arguments)

    def _change_subscriptions(self, name: bytes, channels: list[bytes]) -> None:
        for channel in channels:
            if name == b"SSUBSCRIBE":
                self._database.subscribe(channel, self._on_message)
            else:
                self._database.unsubscribe(self._on_message, [channel])
            self._transport.write(encode_push([name.lower(), channel, 0]))

    def _on_message(self, channel: bytes, message: bytes) -> None:
        self._transport.write(encode_push([b"smessage", channel, message]))


def _hello(*_: bytes) -> dict[bytes, Any]:
    return {b"server": b"redis", b"proto": 3, b"role": b"master", b"modules": []}


def _function(subcommand: bytes, *_: bytes) -> Any:
    """Handle FUNCTION: all functions are there already."""
    library = b"wsfleet_%b" % DIGEST.encode()
    return [{b"library_name": library}] if subcommand.upper() == b"LIST" else library


def _info(*_: bytes) -> bytes:
    return "".join(f"{name}:{value}\r\n" for name, value in information().items()).encode()


SERVER_COMMANDS: dict[bytes, Callable[..., Any]] = {
    b"CLIENT": lambda *_: _OK,
    b"FUNCTION": _function,
    b"HELLO": _hello,
    b"INFO": _info,
    b"PING": lambda: b"PONG",
    b"ROLE": lambda: [b"master", 0, []],
    b"SELECT": lambda _: _OK,
    b"WAIT": lambda *_: 1,  # there is no replica to wait for
}
"""Commands about a connection or the server, by name."""


def encode(answer: Any) -> bytes:
    """Encode an answer in RESP3."""
    match answer:
        case None:
            return b"_\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(answer), answer)
        case int():
            return b":%d\r\n" % answer
        case dict():
            items = (encode(each) for pair in answer.items() for each in pair)
            return b"%%%d\r\n" % len(answer) + b"".join(items)
        case set():
            return b"~%d\r\n" % len(answer) + b"".join(map(encode, answer))
    return b"*%d\r\n" % len(answer) + b"".join(map(encode, answer))


def encode_push(push: list[Any]) -> bytes:
    """Encode a push in RESP3."""
    return b">" + encode(push)[1:]
