"""The Redis commands that a node uses besides the functions, on a database in memory."""

import random
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from wsfleet.redis.memory.database import (
    Database,
    EntryStream,
    Hash,
    Id,
    Members,
    SortedSet,
)

Command = Callable[..., Any]

_LAST = 2**64 - 1
"""The largest half of an entry's id."""


def _delete(database: Database, *keys: bytes) -> int:
    return sum(database.exists(key) and database.delete(key) for key in keys)


def _exists(database: Database, *keys: bytes) -> int:
    return sum(map(database.exists, keys))


def _expire(database: Database, key: bytes, seconds: bytes) -> int:
    return int(database.expire(key, int(seconds)))


def _persist(database: Database, key: bytes) -> int:
    return int(database.persist(key))


def _set(database: Database, key: bytes, value: bytes, *expiry: bytes) -> bytes:
    database.put(key, value)
    if expiry:
        kind, moment = expiry
        if kind != b"EXAT":
            raise ResponseError("syntax error")
        database.expire_at(key, int(moment))
    return b"OK"


def _hget(database: Database, key: bytes, field: bytes) -> bytes | None:
    return database.read(key, Hash).get(field)


def _hgetall(database: Database, key: bytes) -> dict[bytes, bytes]:
    return dict(database.read(key, Hash))


def _hscan(database: Database, key: bytes, cursor: bytes, *_: bytes) -> list[Any]:
    """Return all fields and values at once; 0 is the cursor after the last ones."""
    return [b"0", [text for pair in database.read(key, Hash).items() for text in pair]]


def _hdel(database: Database, key: bytes, *fields: bytes) -> int:
    return database.remove(key, Hash, *fields)


def _hset(database: Database, key: bytes, *pairs: bytes) -> int:
    found = database.ensure(key, Hash)
    before = len(found)
    found.update(zip(pairs[::2], pairs[1::2], strict=True))
    return len(found) - before


def _sadd(database: Database, key: bytes, *members: bytes) -> int:
    found = database.ensure(key, Members)
    before = len(found)
    found.update(members)
    return len(found) - before


def _srem(database: Database, key: bytes, *members: bytes) -> int:
    return database.remove(key, Members, *members)


def _smembers(database: Database, key: bytes) -> set[bytes]:
    return set(database.read(key, Members))


def _srandmember(database: Database, key: bytes, count: bytes) -> list[bytes]:
    found = list(database.read(key, Members))
    return random.sample(found, min(int(count), len(found)))


def _zrange(database: Database, key: bytes, start: bytes, stop: bytes) -> list[bytes]:
    found = database.read(key, SortedSet)
    members = found.between(float("-inf"), float("inf"))
    last = int(stop)
    return members[int(start) : None if last == -1 else last + 1]


def _zrem(database: Database, key: bytes, *members: bytes) -> int:
    return database.remove(key, SortedSet, *members)


def _xadd(
    database: Database, key: bytes, option: bytes, length: bytes, number: bytes, *fields: bytes
) -> bytes:
    if option != b"MAXLEN":
        raise ResponseError("syntax error")
    database.ensure(key, EntryStream).add(_entry_id(number, 0), list(fields), int(length))
    return number


def _xrange(database: Database, key: bytes, first: bytes, last: bytes) -> list[Any]:
    found = database.read(key, EntryStream)
    return [
        [b"%d-%d" % number, fields]
        for number, fields in found.between(_entry_id(first, 0), _entry_id(last, _LAST))
    ]


def _entry_id(text: bytes, default: int) -> Id:
    """Parse an entry's id: `5-0`, `5`, `-` and `+`."""
    if text in (b"-", b"+"):
        return (0, 0) if text == b"-" else (_LAST, _LAST)
    number, _, sequence = text.partition(b"-")
    return int(number), int(sequence) if sequence else default


def _pubsub(database: Database, subcommand: bytes, *channels: bytes) -> list[Any]:
    if subcommand != b"SHARDNUMSUB":
        raise ResponseError(f"unknown subcommand '{subcommand.decode(errors='replace')}'")
    return [item for channel in channels for item in (channel, database.subscribers(channel))]


COMMANDS: dict[bytes, Command] = {
    b"DEL": _delete,
    b"EXISTS": _exists,
    b"EXPIRE": _expire,
    b"HDEL": _hdel,
    b"HGET": _hget,
    b"HGETALL": _hgetall,
    b"HSCAN": _hscan,
    b"HSET": _hset,
    b"PERSIST": _persist,
    b"PUBSUB": _pubsub,
    b"SADD": _sadd,
    b"SET": _set,
    b"SMEMBERS": _smembers,
    b"SPUBLISH": Database.publish,
    b"SRANDMEMBER": _srandmember,
    b"SREM": _srem,
    b"XADD": _xadd,
    b"XRANGE": _xrange,
    b"ZRANGE": _zrange,
    b"ZREM": _zrem,
}
"""Commands by name; each takes the database and its arguments."""
