"""A primary in memory: shared by name, lost with its last user, pub/sub in order."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import DataError, MovedError, RedisError, ResponseError

from lab.waiting import settled
from tests.support.nodes import StartNode
from tests.support.publications import OPTIONS
from wsfleet.channels.publication import Record
from wsfleet.config.redis_url import RedisURL
from wsfleet.redis.memory.primary import MemoryPrimary
from wsfleet.redis.primary import UnavailableError

ONE, OTHER = RedisURL.parse("memory://one"), RedisURL.parse("memory://other")


async def test_primaries_of_one_name_share_a_database() -> None:
    """Until the last is closed: then all is lost."""
    first, second, other = MemoryPrimary(ONE), MemoryPrimary(ONE), MemoryPrimary(OTHER)
    await first.call("HSET", "key", "field", 1)
    assert await second.call("HGET", "key", "field") == b"1"
    assert await other.call("EXISTS", "key") == 0
    await first.close()
    assert await second.call("EXISTS", "key") == 1
    await second.close()
    await other.close()
    again = MemoryPrimary(ONE)
    assert await again.call("EXISTS", "key") == 0
    await again.close()


async def test_errors_are_those_of_redis() -> None:
    """Commands that are not there, arguments that cannot be sent, a primary that is closed."""
    primary = MemoryPrimary(ONE)
    with pytest.raises(ResponseError, match="unknown command 'KEYS'"):
        await primary.call("KEYS", "*")
    for argument in ("\ud800", None, object()):
        with pytest.raises(DataError, match="the command SET cannot be sent"):
            await primary.call("SET", "key", argument)
        with pytest.raises(DataError, match="the command claim cannot be sent"):
            await primary.function("claim", ["key"], "node", argument)
    await primary.close()
    with pytest.raises(UnavailableError):
        await primary.call("EXISTS", "key")


async def test_messages_arrive_in_order_in_a_later_turn() -> None:
    """A confirmation comes before the messages after it; none comes after the end."""
    primary, pushes = MemoryPrimary(ONE), list[Any]()
    link = await primary.listen(pushes.append)
    link.send(("SSUBSCRIBE", b"a", b"b"))
    asking = asyncio.gather(*(primary.call("SPUBLISH", "a", number) for number in range(3)))
    assert pushes == []
    assert await asking == [1, 1, 1]
    wanted = [[b"ssubscribe", b"a", 0], [b"ssubscribe", b"b", 0]]
    wanted += [[b"smessage", b"a", b"%d" % number] for number in range(3)]
    assert pushes == wanted
    assert await primary.call("PUBSUB", "SHARDNUMSUB", "a") == [b"a", 1]
    link.send(("SUNSUBSCRIBE", b"a"))
    assert await primary.call("SPUBLISH", "a", "unheard") == 0
    assert pushes[-1] == [b"sunsubscribe", b"a", 0]
    await primary.call("SPUBLISH", "b", "heard")
    assert pushes[-1] == [b"smessage", b"b", b"heard"]
    await link.close()
    with pytest.raises(RedisError, match="closed"):
        await link.lost()
    assert await primary.call("SPUBLISH", "b", "unheard") == 0
    await primary.close()


async def test_expired_keys_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for them."""
    monkeypatch.setattr("wsfleet.redis.memory.primary.SWEEP_INTERVAL", 0.01)
    primary = MemoryPrimary(ONE)
    serving = asyncio.create_task(primary.serve())
    await primary.call("SET", "key", 1)
    await primary.call("SET", "stays", 1)
    await primary.call("EXPIRE", "key", 0)
    await settled(lambda: len(primary._database) == 1, "the key is swept")
    primary.lost(MovedError("0 elsewhere:0"))
    with pytest.raises(UnavailableError):
        await serving
    await primary.close()


@pytest.mark.backends("memory")
async def test_a_replicated_channel_works_without_a_replica(start_node: StartNode) -> None:
    """A configuration for production works on a laptop: what is held is sent at once."""
    broker = (await start_node()).node.broker
    replicated = OPTIONS.model_copy(update={"durability": "replicated"})
    for number in (1, 2):
        position = await broker.publish("room", replicated, Record(b"%d" % number, 1))
        reading = await broker.history("room", replicated, 0, 10, max_size=1000)
        assert reading.offset == position.offset == number


@pytest.mark.backends("memory")
async def test_a_node_recovers_from_the_loss_of_its_primary(
    start_node: StartNode, store: Any
) -> None:
    """As with Redis: it reconnects, and who is connected is known again."""
    node = await start_node()
    async with node.connect() as client:
        await client.send('{"client_id": "ann"}')
        await client.recv()
        first = node.node.store.primaries[0]
        first.lost(MovedError("0 elsewhere:0"))

        def replaced() -> bool:
            return node.node.store.primaries not in ([], [first])

        await settled(replaced, "there is another primary")
        await node.wait_ready()
        assert await store.get("connection:ann") == "node1"
