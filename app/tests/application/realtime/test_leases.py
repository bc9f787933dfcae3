"""Leases on Redis and in memory: one holder at a time, and a token that only ascends."""

import asyncio
import itertools
from typing import Any

import pytest

from lab.waiting import settled
from tests.support.nodes import RunningNode
from tests.support.realtime_guest import realtime
from wsfleet import Lease
from wsfleet.redis import key_names

pytestmark = pytest.mark.backends("redis", "memory")


async def test_there_is_one_holder_at_a_time(node: RunningNode) -> None:
    """Others wait until the lease is released, and get a higher token."""
    inside, tokens = 0, []

    async def work() -> None:
        nonlocal inside
        async with realtime.lease("room:7") as lease:
            inside += 1
            assert inside == 1
            assert lease.held
            tokens.append(lease.token)
            await asyncio.sleep(0)
            inside -= 1
        assert not lease.held

    await asyncio.gather(*(work() for _ in range(4)))
    assert tokens == sorted(set(tokens))
    async with realtime.lease("room:7") as one, realtime.lease("room:8") as other:
        assert one.held
        assert other.held


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
async def test_a_lease_has_a_time_to_live(node: RunningNode, ttl: float) -> None:
    """Without one it would be lost at once; Redis is not asked."""
    with pytest.raises(ValueError, match="ttl is in seconds, above 0"):
        async with realtime.lease("room:7", ttl=ttl):
            pass


async def test_a_lease_is_renewed(node: RunningNode) -> None:
    """A holder keeps it for longer than its time to live; nobody else gets it meanwhile."""
    got = asyncio.Event()

    async def other() -> None:
        async with realtime.lease("room:7", ttl=0.5):
            got.set()

    async with realtime.lease("room:7", ttl=0.5) as lease:
        waiting = asyncio.create_task(other())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(got.wait(), 1.5)
        assert lease.held
    await waiting
    assert got.is_set()


async def test_a_holder_is_told_that_others_wait(node: RunningNode) -> None:
    """As long as they wait: not before, and not after the last one has given up."""
    async with realtime.lease("room:7", ttl=1.5) as lease:
        waiting = asyncio.create_task(realtime.lease("room:7").__aenter__())
        await asyncio.wait_for(lease.wanted.wait(), 10)
        waiting.cancel()
        await settled(lambda: not lease.wanted.is_set(), "nobody waits any more")
        assert lease.held


async def test_a_holder_that_hands_over_is_not_told_of_itself(node: RunningNode) -> None:
    """The next holder begins with nobody who waits."""
    async with realtime.lease("room:7", ttl=1.5) as lease:
        next_one = realtime.lease("room:7", ttl=1.5)
        waiting = asyncio.create_task(next_one.__aenter__())
        await asyncio.wait_for(lease.wanted.wait(), 10)
    successor = await waiting
    acquired = successor._expires
    await settled(lambda: successor._expires > acquired, "it was renewed")
    assert not successor.wanted.is_set()
    await next_one.__aexit__(None, None, None)


async def test_a_holder_can_number_what_it_writes(node: RunningNode) -> None:
    """Tokens are a million apart, so that token + n is below the next holder's token."""
    tokens = []
    for _ in range(3):
        async with realtime.lease("room:7") as lease:
            tokens.append(lease.token)
    assert all(later - token >= 1_000_000 for token, later in itertools.pairwise(tokens))


async def test_a_late_write_of_an_earlier_holder_is_refused(node: RunningNode) -> None:
    """By the version of a publication, which begins at the fencing token."""
    async with realtime.lease("room:7") as earlier:
        await realtime.publish("short:7", "first", version=earlier.token + 1)
    async with realtime.lease("room:7") as later:
        await realtime.publish("short:7", "second", version=later.token + 1)
    await realtime.publish("short:7", "too late", version=earlier.token + 999)
    newest = await realtime.history("short:7", limit=1, reverse=True)
    assert newest.publications[0].data == "second"


async def test_a_lease_that_another_has_is_lost(node: RunningNode, store: Any) -> None:
    """The holder notices at its next renewal, and does not release the other's lease."""
    async with realtime.lease("room:7", ttl=0.6) as lease:
        await store.hset(key_names.lease("room:7"), "holder", "another")
        await asyncio.wait_for(lease.lost.wait(), 5)
        assert not lease.held
        await store.hset(key_names.lease("room:7"), "until", "99999999999.0")
    assert await store.hget(key_names.lease("room:7"), "holder") == "another"


async def test_a_holder_that_does_not_renew_loses_the_lease(node: RunningNode, store: Any) -> None:
    """After the time to live another gets it with a higher token, as after a crash."""
    leases = realtime._serving_of(node.node).leases
    crashed = await leases._acquire("room:7", "crashed", 0.5)
    assert crashed.held
    async with realtime.lease("room:7") as lease:
        assert not crashed.held
        assert lease.token > crashed.token
    assert (await leases._ask("room:7", "crashed", 0.5))[0] > lease.token


async def test_a_lost_answer_keeps_no_lease(node: RunningNode) -> None:
    """A waiter that is cancelled leaves no lease behind."""
    async with realtime.lease("room:7", ttl=60):
        waiting = asyncio.create_task(realtime.lease("room:7", ttl=60).__aenter__())
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5), realtime.lease("room:7", ttl=60) as lease:
        assert lease.held


async def test_tokens_ascend_without_a_memory_of_the_last_one(
    node: RunningNode, store: Any
) -> None:
    """Even when the hash is gone, a later token is higher: it is the time."""
    async with realtime.lease("room:7") as first:
        pass
    await store.delete(key_names.lease("room:7"))
    async with realtime.lease("room:7") as second:
        assert second.token > first.token


async def test_a_lease_expires_on_the_holders_own_clock() -> None:
    """A process that was stopped knows at once that its lease is over."""
    loop = asyncio.get_running_loop()
    lease = Lease("room:7", 1, loop.time() + 60)
    assert lease.held
    lease.extend(loop.time() - 1)
    assert not lease.held
    await settled(lambda: not lease.lost.is_set(), "nobody has told yet")


@pytest.mark.backends("redis")
async def test_without_redis_a_lease_is_lost_in_time(node: RunningNode, redis_process: Any) -> None:
    """A holder that cannot renew is told before another can have the lease."""
    async with realtime.lease("room:7", ttl=1.0) as lease:
        redis_process.stop()
        await asyncio.wait_for(lease.lost.wait(), 10)
        assert not lease.held
        assert lease.expires_in() < 0.1
    redis_process.start()
