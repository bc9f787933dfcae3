"""The memory that nodes share without Redis, and a client of it."""

import itertools
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Self

import redis.asyncio

from wsfleet.redis.memory.commands import COMMANDS
from wsfleet.redis.memory.database import Database, Hash, SortedSet
from wsfleet.redis.memory.primary import DATABASES

_numbers = itertools.count()


def _get(database: Database, key: bytes) -> bytes | None:
    return database.find(key, bytes)


def _ttl(database: Database, key: bytes) -> int:
    if not database.exists(key):
        return -2
    deadline = database.deadline(key)
    return -1 if deadline is None else round(deadline - database.clock())


def _hlen(database: Database, key: bytes) -> int:
    return len(database.read(key, Hash))


def _hkeys(database: Database, key: bytes) -> list[bytes]:
    return list(database.read(key, Hash))


def _hincrby(database: Database, key: bytes, field: bytes, by: bytes) -> int:
    found = database.ensure(key, Hash)
    found[field] = b"%d" % (int(found.get(field, b"0")) + int(by))
    return int(found[field])


def _zadd(database: Database, key: bytes, *pairs: bytes) -> int:
    found = database.ensure(key, SortedSet)
    before = len(found)
    found.update(zip(pairs[1::2], map(float, pairs[::2]), strict=True))
    return len(found) - before


def _xadd(database: Database, key: bytes, *arguments: bytes) -> bytes:
    answer: bytes = COMMANDS[b"XADD"](database, key, b"MAXLEN", b"1000000", *arguments)
    return answer


def _zscore(database: Database, key: bytes, member: bytes) -> float | None:
    return database.read(key, SortedSet).get(member)


def _keys(database: Database, pattern: bytes) -> list[bytes]:
    names = [key for key in list(database._values) if database.exists(key)]
    return [key for key in names if fnmatchcase(key.decode(), pattern.decode())]


def _scan(database: Database, cursor: bytes, match: bytes, pattern: bytes) -> list[Any]:
    return [b"0", _keys(database, pattern)]


def _info(database: Database, section: bytes) -> dict[bytes, int]:
    assert section == b"stats"
    return {b"total_net_output_bytes": 0}  # nothing is sent


def _flushall(database: Database) -> bytes:
    for key in list(database._values):
        database.delete(key)
    return b"OK"


FOR_TESTS: dict[bytes, Callable[..., Any]] = {
    b"FLUSHALL": _flushall,
    b"FUNCTION": lambda *_: b"OK",  # the functions cannot be lost
    b"INFO": _info,
    b"HINCRBY": _hincrby,
    b"XADD": _xadd,
    b"GET": _get,
    b"TTL": _ttl,
    b"HLEN": _hlen,
    b"HKEYS": _hkeys,
    b"ZADD": _zadd,
    b"ZSCORE": _zscore,
    b"KEYS": _keys,
    b"SCAN": _scan,
}
"""Commands, or forms of them, that tests use and no node does."""


class MemoryClient(redis.asyncio.Redis):
    """redis-py on a database in memory, answers decoded."""

    def __init__(self, database: Database) -> None:
        super().__init__(protocol=3)
        self.database = database

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        name, *subcommand = str(args[0]).split()
        texts = [each if isinstance(each, bytes) else str(each).encode() for each in args[1:]]
        run = (COMMANDS | FOR_TESTS)[name.encode()]
        answer = _decoded(run(self.database, *(each.encode() for each in subcommand), *texts))
        parse = None if isinstance(answer, dict) else self.response_callbacks.get(args[0])
        return parse(answer, **options) if parse else answer


def _decoded(answer: Any) -> Any:
    match answer:
        case bytes():
            return answer.decode(errors="replace")
        case list() | set():
            return type(answer)(map(_decoded, answer))
        case dict():
            return {_decoded(key): _decoded(value) for key, value in answer.items()}
    return answer


class MemoryServer:
    """A database in memory of a test's own; a context manager that keeps it."""

    def __init__(self) -> None:
        self.url = f"memory://test{next(_numbers)}"

    def __enter__(self) -> Self:
        """Keep the database while nodes come and go."""
        self._database = DATABASES.open(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        DATABASES.close(self.url)

    def url_of(self, user: str) -> str:
        """The URL: memory has no users."""
        return self.url

    def client(self) -> MemoryClient:
        """A client of it, answers decoded."""
        return MemoryClient(self._database)
