"""Publications for tasks: in order, with recovery, and an end where some are lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.realtime_guest import realtime
from tests.support.redis import RedisServer
from wsfleet import CallError, ClientInfo, GapError, Position, Publication
from wsfleet.application.realtime.listening import to_publication
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry

GUEST = "tests.support.realtime_guest:realtime"


async def take(listening: AsyncIterator[Publication], count: int) -> list[Any]:
    """Return the data of the next publications."""
    return [(await anext(listening)).data for _ in range(count)]


def begun(node: RunningNode) -> int:
    """Return the number of listeners of a node."""
    return sum(map(len, realtime._serving_of(node.node).listeners._listeners.values()))


@pytest.mark.backends("redis", "memory")
async def test_publications_come_in_order(node: RunningNode) -> None:
    """A listener gets what is published from its start on, with positions and publisher."""
    await realtime.publish("room:1", "before")
    async with aclosing(realtime.listen("room:1")) as listening:
        first = asyncio.ensure_future(anext(listening))
        await settled(lambda: begun(node) == 1, "it listens")
        positions = [await realtime.publish("room:1", number) for number in range(100)]
        publication = await first
        assert (publication.data, publication.position) == (0, positions[0])
        assert await take(listening, 99) == list(range(1, 100))
    assert begun(node) == 0


@pytest.mark.backends("redis", "memory")
async def test_since_a_position_nothing_is_missed(node: RunningNode) -> None:
    """The publications after the position come first, then the live ones, each once."""
    positions = [await realtime.publish("room:1", number) for number in range(10)]
    async with aclosing(realtime.listen("room:1", since=positions[3])) as listening:
        assert await take(listening, 6) == [4, 5, 6, 7, 8, 9]
        await realtime.publish("room:1", 10)
        assert await take(listening, 1) == [10]
    async with aclosing(realtime.listen("room:1", since=Position())) as listening:
        assert await take(listening, 11) == list(range(11))


@pytest.mark.backends("redis", "memory")
async def test_a_long_history_is_no_gap(node: RunningNode) -> None:
    """What is longer than a reply to a client may be, and not too much for a listener, is read."""
    most = node.node.config.client.reply_max_size
    text = "x" * (most // 3)
    for _ in range(4):
        await realtime.publish("room:1", text)
    async with aclosing(realtime.listen("room:1", since=Position())) as listening:
        assert await take(listening, 4) == [text] * 4


@pytest.mark.backends("redis", "memory")
async def test_a_position_out_of_reach_is_a_gap(node: RunningNode) -> None:
    """So is one of another epoch; without history, a position is an error."""
    first, *_ = [await realtime.publish("short:1", number) for number in range(5)]
    for since in (first, Position(4, "other")):
        with pytest.raises(GapError, match="channel short:1: its history does not reach"):
            await anext(aiter(realtime.listen("short:1", since=since)))
    for channel, code in (("live:1", 108), ("unknown:1", 102)):
        with pytest.raises(CallError) as error:
            await anext(aiter(realtime.listen(channel, since=first)))
        assert error.value.code == code
    assert begun(node) == 0


async def test_an_outage_of_redis_is_bridged(node: RunningNode, redis_process: RedisServer) -> None:
    """A listener goes on where it was after Redis was away, with what was published at once."""
    async with aclosing(realtime.listen("room:1", since=Position())) as listening:
        await realtime.publish("room:1", 0)
        assert await take(listening, 1) == [0]
        redis_process.stop()
        await settled(lambda: not node.node.store.connected, "the node has noticed")
        with pytest.raises(CallError) as error:
            await realtime.publish("room:1", "lost")
        assert error.value.temporary
        redis_process.start()
        await node.wait_ready()
        await realtime.publish("room:1", 1)
        assert await take(listening, 1) == [1]


async def test_lost_publications_are_a_gap(
    node: RunningNode, redis_process: RedisServer, store: Any
) -> None:
    """When Redis has lost its data, the listener ends, after what it has got."""
    async with aclosing(realtime.listen("room:1", since=Position())) as listening:
        for number in range(3):
            await realtime.publish("room:1", number)
        assert await take(listening, 3) == [0, 1, 2]
        await store.flushall()
        for number in range(3):
            await realtime.publish("room:1", number)
        with pytest.raises(GapError, match="Redis has lost publications"):
            await take(listening, 10)
    assert begun(node) == 0


async def test_a_slow_listener_ends(start_node: StartNode, guest_config: Any) -> None:
    """A listener that takes nothing costs the node a limited amount of memory."""
    node = await start_node(app=GUEST, config=guest_config, outbox_limit=10_000)
    async with aclosing(realtime.listen("room:1", since=Position())) as listening:
        await realtime.publish("room:1", "first")
        assert await take(listening, 1) == ["first"]
        for _ in range(30):
            await realtime.publish("room:1", "x" * 1000)
        (listeners,) = realtime._serving_of(node.node).listeners._listeners.values()
        (listener,) = listeners
        await settled(lambda: bool(listener._gap), "it is too slow")
        assert len(listener._waiting) == 10
        assert await take(listening, 10) == ["x" * 1000] * 10
        with pytest.raises(GapError, match="over 10000 bytes wait for the listener"):
            await take(listening, 1)


def test_a_publication_as_the_application_sees_it() -> None:
    """Infos are JSON values; data that is not JSON is text; a publication may have no position."""
    member = Member("7", "client", b'{"name": "Anna"}')
    record = Record(data=b"\xff", time=0, publisher=member, tags={"a": "b"})
    assert to_publication(Entry(5, 4, b""), record, "epoch") == Publication(
        data="\ufffd",
        offset=5,
        epoch="epoch",
        info=ClientInfo(client="client", user="7", conn_info={"name": "Anna"}),
        tags={"a": "b"},
    )
    live = to_publication(Entry(0, 0, b""), Record(data=b"1", time=0), "epoch")
    assert live == Publication(data=1)
