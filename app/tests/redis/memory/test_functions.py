"""The functions and commands in memory answer as Redis does, whatever their order."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tests.support.memory import FOR_TESTS
from tests.support.redis import RedisServer
from wsfleet.config.settings import Settings
from wsfleet.redis.memory.commands import COMMANDS
from wsfleet.redis.memory.database import Database, EntryStream, SortedSet
from wsfleet.redis.memory.functions import CLEARED, FUNCTIONS, HELD, LEASE_KEPT
from wsfleet.redis.primary import DIGEST, Primary
from wsfleet.redis.topology import SLOTS, Shard

CHANNEL = b"channel"
STREAM = [b"stream", b"meta"]
PRESENCE = [b"presence", b"expiry"]
SOON = 100
"""Seconds: longer than a test, so that only what expires at once does expire."""

Step = tuple[Any, ...]
"""`function`, its name, keys and arguments; or `command` and its words."""


def function(name: str, keys: list[bytes], *args: st.SearchStrategy[Any]) -> Any:
    """Steps that call a function."""
    return st.tuples(st.just("function"), st.just(name), st.just(keys), st.tuples(*args))


def command(name: str, *args: st.SearchStrategy[Any]) -> Any:
    """Steps that run a command."""
    return st.tuples(st.just("command"), st.just(name), st.tuples(*args))


def sampled(*values: Any) -> Any:
    """One of some values."""
    return st.sampled_from(values)


epochs, versions = sampled("e1", "e2"), sampled(0, 0, 0, 1, 2, 10, 2**53, 2**53 + 1)
nodes, clients, keys = sampled("n1", "n2", ""), sampled("c1", "c2", "c3"), sampled("k1", "k2", "k3")
ttls = sampled(SOON, 3 * SOON)
records = st.integers(0, 40).map(lambda size: b"x" * size)
publish = st.builds(
    lambda once, args: ("function", "publish", [*STREAM, once], args),
    sampled(b"once1", b"once2"),
    st.tuples(
        *(st.just(CHANNEL), records, sampled(0, 1, 2, 40, 40), ttls, ttls, epochs),
        *(sampled(0, 0, SOON), sampled(0, 0, 1), versions, sampled("", "", "a")),
    ),
)


def _held(count: int, offset: int, epoch: str) -> list[Step]:
    """Publish some records that are held, and confirm a part of them."""
    args = (CHANNEL, b"x", 2, SOON, SOON, epoch, 0, 1, 0, "")
    return [
        *[("function", "publish", [*STREAM, b""], args)] * count,
        ("function", "confirm", STREAM, (CHANNEL, offset, epoch, 2)),
    ]


held = st.builds(_held, st.integers(1, 10), st.integers(1, 60), epochs)
history = function(
    "history",
    STREAM,
    *(st.integers(0, 60) | st.just(0), sampled(0, 1, 3, 16, 17, 100), sampled(0, 1)),
    sampled(1, 30, 200, 10_000),
)
streams = st.one_of(
    publish,
    held,
    st.lists(publish, min_size=20, max_size=40),
    history,
    history,
    function("confirm", STREAM, st.just(CHANNEL), st.integers(0, 60), epochs, sampled(1, 2, 40)),
    function("begin", STREAM, epochs, ttls),
    command("DEL", sampled(*STREAM)),
)
presences = st.one_of(
    function("join", PRESENCE, clients, records, ttls),
    function("leave", PRESENCE, clients),
    function("members", PRESENCE, sampled(0, 10, 50, 1000)),
    command("ZADD", st.just(PRESENCE[1]), st.just(1), clients),  # expires it
)
registries = st.one_of(
    function("claim", [b"connection"], nodes, nodes),
    function("release", [b"connection"], nodes),
    function("heartbeat", [b"nodes"], nodes, st.just(SOON)),
    function("describe", [b"node"], ttls, st.just("cpu"), records),
    function("silence", [b"nodes"], nodes),
    function("forget", [b"nodes"], nodes, st.just(SOON)),
    command("ZADD", st.just(b"nodes"), sampled(1, 2), nodes),  # silences it
    command("ZRANGE", st.just(b"nodes"), st.just(0), st.just(-1)),
    command("ZREM", st.just(b"nodes"), nodes),
)
leases = st.one_of(
    function("lease_acquire", [b"lease"], clients, st.just(SOON * 1000)),
    function("lease_release", [b"lease"], clients),
    command("HSET", st.just(b"lease"), st.just("until"), st.just(1)),  # expires it
)
changes = st.dictionaries(sampled("a", "bb", "ccc"), sampled("", '"x"', "1", "[1, 2, 3, 4]"))
sessions = st.one_of(
    st.builds(
        lambda largest, ttl, changed: (
            *("function", "session_save", [b"session"]),
            (largest, ttl, *(item for pair in changed.items() for item in pair)),
        ),
        *(sampled(0, 10, 20, 10_000), ttls, changes),
    ),
    command("HGETALL", st.just(b"session")),
)
commands = st.one_of(
    command("DEL", keys),
    command("EXISTS", keys),
    command("EXPIRE", keys, sampled(-1, 0, SOON)),
    command("HGET", keys, clients),
    command("HGETALL", keys),
    command("HSCAN", keys, st.just(0), st.just("COUNT"), st.just(100)),
    command("HSET", keys, clients, records),
    command("PERSIST", keys),
    command("PUBSUB SHARDNUMSUB", sampled(CHANNEL, b"other")),
    command("SADD", keys, clients),
    command("SET", keys, records),
    command("SET", keys, records, st.just("EXAT"), sampled(1, 2**32)),
    command("SMEMBERS", keys),
    command("SPUBLISH", st.just(CHANNEL), records),
    command("SRANDMEMBER", keys, st.just(10)),
    command("SREM", keys, clients),
    command(
        *("XADD", keys, st.just("MAXLEN"), sampled(1, 3), sampled("1-1", "2-1", "3-1", "4-1")),
        *(st.just("sample"), records),
    ),
    command("XRANGE", keys, sampled("-", 2, "2-0"), sampled("+", 3, "3-1")),
)


class InRedis:
    """A Redis with the functions, and a subscriber of the channel."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.flushdb()
        self._subscriber = client.pubsub()
        self._subscriber.ssubscribe(CHANNEL)
        while self._subscriber.parse_response()[0] != b"ssubscribe":
            pass

    def call(self, step: Step) -> Any:
        """Return the answer."""
        if step[0] == "command":
            return self._client.execute_command(*step[1].split(), *step[2])
        _, name, keys, args = step
        return self._client.fcall(f"wsfleet_{name}_{DIGEST}", len(keys), *keys, *args)

    def messages(self) -> list[bytes]:
        """Return what the channel's subscriber got."""
        self._client.execute_command("SPUBLISH", CHANNEL, "the end")
        found = []
        while (message := self._subscriber.parse_response()[2]) != b"the end":
            found.append(message)
        self._subscriber.close()
        return found

    def state(self) -> dict[bytes, Any]:
        """Return all keys, with their values and when they expire."""
        readers = {
            b"string": self._client.get,
            b"hash": self._client.hgetall,
            b"set": self._client.smembers,
            b"zset": lambda key: dict(self._client.zrange(key, 0, -1, withscores=True)),
            b"stream": self._client.xrange,
        }
        state = {}
        for key in self._client.scan_iter():
            value = readers[self._client.type(key)](key)
            ttl = self._client.pttl(key)
            if key == b"meta":  # the memory has one life
                del value[b"life"]
            state[key] = (value, None if ttl < 0 else ttl / 1000)
        return state


class InMemory:
    """A database in memory, and a subscriber of the channel."""

    def __init__(self) -> None:
        self._database = Database()
        self._messages: list[bytes] = []
        self._database.subscribe(CHANNEL, lambda _, message: self._messages.append(message))

    def call(self, step: Step) -> Any:
        """Return the answer."""
        encode = [
            each if isinstance(each, bytes) else str(each).encode()
            for each in step[3 if step[0] == "function" else 2]
        ]
        if step[0] == "function":
            return FUNCTIONS[step[1]](self._database, step[2], encode)
        name, *subcommand = step[1].encode().split()
        return (FOR_TESTS | COMMANDS)[name](self._database, *subcommand, *encode)

    def messages(self) -> list[bytes]:
        """Return what the channel's subscriber got."""
        return self._messages

    def state(self) -> dict[bytes, Any]:
        """Return all keys, with their values and when they expire."""
        state: dict[bytes, Any] = {}
        for key in FOR_TESTS[b"KEYS"](self._database, b"*"):
            value: Any = self._database._values[key]
            if isinstance(value, EntryStream):
                value = [
                    (b"%d-%d" % number, {fields[0]: fields[1]}) for number, fields in value.entries
                ]
            deadline = self._database.deadline(key)
            state[key] = (value, None if deadline is None else deadline - time.time())
        return state


def answer(where: InRedis | InMemory, step: Step) -> Any:
    """Return the answer to a step, in a form that can be compared."""
    try:
        found = where.call(step)
    except ResponseError:
        return "an error"
    name = step[1]
    if name == "members" and found is not None:
        return dict(zip(found[::2], found[1::2], strict=True))
    if name == "silence":
        return -1 if found < 0 else found < 60_000
    if name in ("SMEMBERS", "SRANDMEMBER", "ZRANGE"):  # scores are the clock's: two may be equal
        return set(found)
    if name in ("SET", "lease_acquire"):  # a lease's token is the time
        return bool(found)
    if name == "HSCAN":
        flat = list(_flat(found[1]))
        return int(found[0]), dict(zip(flat[::2], flat[1::2], strict=True))
    if name == "XRANGE":
        return [(number, list(_flat(fields))) for number, fields in found]
    return found


def _flat(fields: Any) -> Iterator[bytes]:
    if isinstance(fields, dict):
        fields = [each for pair in fields.items() for each in pair]
    yield from fields


@contextmanager
def loaded(url: str) -> Iterator[Any]:
    """A client of a Redis that has the functions."""

    async def load() -> None:
        primary = Primary(Shard(url, (range(SLOTS),)), Settings())
        await primary.prepare()
        await primary.close()

    asyncio.run(load())
    with redis.Redis.from_url(url) as client:
        yield client


def close(one: Any, other: Any) -> bool:
    """Whether two times, or scores by member, are the same but for the time of the calls."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if one is None or other is None:
        return one is other
    return bool(abs(one - other) < 60)


@pytest.mark.parametrize(
    "steps_of",
    [streams, presences, registries, leases, sessions, commands],
    ids=["streams", "presences", "registries", "leases", "sessions", "commands"],
)
def test_random_sequences_are_answered_as_by_redis(
    redis_process: RedisServer, steps_of: Any
) -> None:
    """Answer by answer; then the messages, the keys, their values and their lifetimes agree."""
    with loaded(redis_process.url) as client:

        @given(st.lists(steps_of, max_size=20))
        def compare(steps: list[Any]) -> None:
            one, other = InRedis(client), InMemory()
            for each in steps:
                for step in each if isinstance(each, list) else [each]:
                    assert answer(other, step) == answer(one, step), step
            assert other.messages() == one.messages()
            state, wanted = other.state(), one.state()
            assert state.keys() == wanted.keys()
            for key, (value, ttl) in state.items():
                assert close(ttl, wanted[key][1]), key
                if isinstance(value, SortedSet):
                    assert close(value, wanted[key][0]), key
                elif key == b"lease":
                    holders = [each.get(b"holder") for each in (value, wanted[key][0])]
                    assert holders[0] == holders[1]
                else:
                    assert value == wanted[key][0], key

        compare()


def test_every_function_of_redis_is_there() -> None:
    """A function that is added to functions.lua is added to memory as well, with its limits."""
    source = resources.files("wsfleet.redis").joinpath("functions.lua").read_text()
    registered = re.findall(r"register_function\('wsfleet_(\w+)_@D@'", source)
    registered += re.findall(r"also_when_full\('(\w+)'", source)
    assert set(FUNCTIONS) == set(registered)
    assert f"local HELD = {HELD}\n" in source
    assert f"local CLEARED = {CLEARED}\n" in source
    assert f"local LEASE_KEPT = {LEASE_KEPT * 1000}\n" in source
