"""One connection to a real Redis: answers in order, errors in their place, pushes, and the end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import DataError, RedisError, ResponseError

from lab.waiting import settled
from tests.support.redis import RedisServer
from wsfleet.config.settings import Settings
from wsfleet.redis.connection import Command, Link, Push, pack
from wsfleet.redis.store import Store
from wsfleet.tasks import end


def packed(*commands: Command) -> list[bytes]:
    """Commands as they are sent."""
    return [pack(command) for command in commands]


@pytest.fixture
async def pool(redis_server: str) -> AsyncIterator[BlockingConnectionPool]:
    """A pool of two connections."""
    pool = BlockingConnectionPool.from_url(redis_server, max_connections=2, timeout=0.1, protocol=3)
    yield pool
    await pool.aclose()


async def test_replies_come_in_order_with_errors(pool: BlockingConnectionPool) -> None:
    """Commands that are sent together are answered together, each to its caller."""
    link = await Link.open(pool)
    one, two = await asyncio.gather(
        link.ask(packed(("SET", "a", 1), ("INCR", "a"), ("LPOP", "a"))),
        link.ask(packed(("GET", "a"), ("SADD", "s", "x"), ("SMEMBERS", "s"))),
    )
    assert one[:2] == [b"OK", 2]
    assert isinstance(one[2], ResponseError)
    assert str(one[2]).startswith("WRONGTYPE")
    assert two == [b"2", 1, [b"x"]]
    await link.close()


async def test_pushes_go_their_own_way(pool: BlockingConnectionPool) -> None:
    """Messages and confirmations between answers are not taken for answers."""
    pushes: list[Push] = []
    link = await Link.open(pool, pushes.append)
    link.send(("SSUBSCRIBE", "{x}a", "{x}b"))
    answers = await link.ask(packed(("SPUBLISH", "{x}b", "hello"), ("PING",)))
    assert answers == [1, b"PONG"]
    await settled(lambda: len(pushes) == 3, "all were pushed")
    assert pushes == [
        [b"ssubscribe", b"{x}a", 1],
        [b"ssubscribe", b"{x}b", 2],
        [b"smessage", b"{x}b", b"hello"],
    ]
    await link.close()


async def test_an_error_where_only_pushes_are_due_ends_it(pool: BlockingConnectionPool) -> None:
    """Nobody waits for an answer, so the whole connection says what is wrong."""
    link = await Link.open(pool)
    link.send(("SSUBSCRIBE",))
    with pytest.raises(ResponseError):
        await link.lost()
    assert not link.alive
    await link.close()


async def test_a_lost_connection_fails_pending_commands(
    pool: BlockingConnectionPool, redis_process: RedisServer
) -> None:
    """A frozen Redis that dies fails what was asked, and what is asked later; then all is new."""
    link = await Link.open(pool)
    redis_process.freeze()
    asking = asyncio.create_task(link.ask(packed(("PING",))))
    await asyncio.sleep(0)
    redis_process.kill()
    with pytest.raises(LostError):
        await asking
    with pytest.raises(RedisError):
        await link.ask(packed(("PING",)))
    await link.close()
    redis_process.start()
    again = await Link.open(pool)
    assert await again.ask(packed(("PING",))) == [b"PONG"]
    await again.close()


async def test_a_closed_connection_frees_its_place_in_the_pool(
    pool: BlockingConnectionPool,
) -> None:
    """The pool bounds connections, and does not run dry."""
    for _ in range(5):
        links = [await Link.open(pool), await Link.open(pool)]
        with pytest.raises(LostError):
            await Link.open(pool)
        for link in links:
            await link.close()


@pytest.mark.parametrize("part", ["\ud83d", None, ["a"], object()])
async def test_only_a_command_that_cannot_be_sent_fails(redis_server: str, part: object) -> None:
    """Those that share its round trip are answered, and so are those after it."""
    store = Store(Settings(redis_url=redis_server, redis_timeout=0.5))
    tasks = [asyncio.create_task(loop) for loop in store.loops()]
    await settled(lambda: store.connected, "the store is connected")
    answers: Any = await asyncio.gather(
        store.call("SET", "a", 1),
        store.call("SET", "b", part),
        store.call("GET", "a"),
        return_exceptions=True,
    )
    before, failed, after = answers
    assert (before, after) == (b"OK", b"1")
    assert isinstance(failed, DataError)
    assert "SET cannot be sent to Redis" in str(failed)
    assert not any(task.done() for task in tasks)
    assert await store.call("GET", "a") == b"1"
    await end(tasks)
    await store.close()
