"""A database in memory for other processes: the node's client for Redis finds no difference."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from lab.ports import free_port
from lab.waiting import settled
from tests.support.nodes import RunningNode
from tests.support.publications import OPTIONS
from wsfleet.channels.publication import Record
from wsfleet.config.settings import Settings
from wsfleet.redis.memory.server import MemoryServer, encode
from wsfleet.redis.primary import Primary
from wsfleet.redis.topology import SLOTS, Shard
from wsfleet.server.server import create_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[MemoryServer]:
    """A server."""
    async with MemoryServer(tmp_path / "redis.sock") as server:
        yield server


@pytest.fixture
async def primary(server: MemoryServer) -> AsyncIterator[Primary]:
    """A client of it, prepared and running."""
    primary = Primary(Shard(server.url, (range(SLOTS),)), Settings())
    await primary.prepare()
    serving = asyncio.create_task(primary.serve())
    yield primary
    serving.cancel()
    await asyncio.wait([serving])
    await primary.close()


answers = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.binary(), inner),
)


@given(answers)
def test_answers_are_read_as_they_were(answer: Any) -> None:
    """By hiredis, which the node reads them with."""
    reader = hiredis.Reader()
    reader.feed(encode(answer))
    assert reader.gets() == answer
    reader.feed(encode({b"a", b"b"}))
    assert sorted(reader.gets()) == [b"a", b"b"]


async def test_commands_and_functions_are_those_of_redis(primary: Primary) -> None:
    """Values of each kind, and errors with their reason."""
    assert await primary.call("HSET", "hash", "field", 1) == 1
    assert await primary.call("HGETALL", "hash") == {b"field": b"1"}
    await primary.call("SADD", "set", "a", "b")
    assert sorted(await primary.call("SMEMBERS", "set")) == [b"a", b"b"]
    assert await primary.call("HGET", "hash", "none") is None
    assert await primary.function("claim", ["connection:ann"], "n1", "") == b"n1"
    assert await primary.function("claim", ["connection:ann"], "n2", "", replicated=True) == b"n1"
    for command in (("KEYS", "*"), ("SMEMBERS", "hash"), ("EXPIRE", "hash"), ("XADD", "x", "y")):
        with pytest.raises(ResponseError):
            await primary.call(*command)
    with pytest.raises(ResponseError, match="unknown command 'KEYS'"):
        await primary.call("KEYS", "*")
    await primary.forget_functions(set())
    assert (await primary.info())["connected_slaves"] == 0


async def test_messages_are_pushed_in_order(primary: Primary) -> None:
    """After the confirmation, until the end of the subscription or the connection."""
    pushes: list[Any] = []
    link = await primary.listen(pushes.append)
    link.send(("SSUBSCRIBE", "a", "b"))
    await settled(lambda: len(pushes) == 2, "both are confirmed")
    for number in range(3):
        assert await primary.call("SPUBLISH", "a", number) == 1
    link.send(("SUNSUBSCRIBE", "a"))
    await settled(lambda: len(pushes) == 6, "all has come")
    assert [push[0] for push in pushes[:2]] == [b"ssubscribe", b"ssubscribe"]
    assert pushes[2:5] == [[b"smessage", b"a", b"%d" % number] for number in range(3)]
    assert pushes[5][:2] == [b"sunsubscribe", b"a"]
    await link.close()

    async def unheard() -> bool:
        return bool(await primary.call("SPUBLISH", "b", "unheard") == 0)

    await settled(unheard, "the subscription ended with the connection")


async def test_expired_keys_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for them."""
    monkeypatch.setattr("wsfleet.redis.memory.server.SWEEP_INTERVAL", 0.01)
    async with MemoryServer(tmp_path / "redis.sock") as server:
        async with redis.asyncio.Redis.from_url(server.url, protocol=3) as client:
            await client.set("key", 1)
            await client.expire("key", 0)
        await settled(lambda: len(server._database) == 0, "the key is swept")


async def test_what_is_not_the_protocol_ends_the_connection(
    tmp_path: Path, server: MemoryServer
) -> None:
    """And no other."""
    reader, writer = await asyncio.open_unix_connection(tmp_path / "redis.sock")
    writer.write(b"?\r\n")
    assert await reader.read() == b""
    writer.close()


async def test_a_stream_outlives_the_node(server: MemoryServer) -> None:
    """The next node of the name continues it: same epoch, next offset."""
    positions = []
    for _ in range(2):
        settings = Settings(
            port=free_port(), redis_url=server.url, drain_delay=0.0, heartbeat_interval=0.2
        )
        node = RunningNode(create_server(settings), settings)
        await node.wait_ready()
        positions.append(await node.node.broker.publish("room", OPTIONS, Record(b"1", 1)))
        await node.stop()
    first, second = positions
    assert (second.offset, second.epoch) == (first.offset + 1, first.epoch)
