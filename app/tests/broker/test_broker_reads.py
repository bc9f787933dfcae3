"""Reads leave nothing in Redis, and are answered where its memory is full."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import Peer
from wsfleet.protocol.centrifuge.messages import (
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    UnsubscribeRequest,
)

pytestmark = pytest.mark.backends("redis", "memory")

KEY = "a key"
CONFIG = f"""
http_api: {{key: {KEY}}}
client:
  allow_anonymous_connect_without_token: true
channel:
  without_namespace: &open
    history_size: 100
    history_ttl: 300s
    force_recovery: true
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
    allow_publish_for_client: true
    allow_publish_for_anonymous: true
    allow_history_for_client: true
    allow_history_for_anonymous: true
    allow_presence_for_client: true
    allow_presence_for_anonymous: true
  namespaces:
    - name: seen
      <<: *open
      presence: true
    - name: loose  # subscribers have no position
      <<: *open
      force_recovery: false
"""

Pair = tuple[RunningNode, RunningNode]


@pytest.fixture
async def pair(start_node: StartNode, tmp_path: Path) -> Pair:
    """Two nodes, which wait for a Redis that has much to read."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    patient = {"redis_timeout": 5.0, "heartbeat_interval": 2.0, "node_dead_after": 8.0}
    one = await start_node(config=path, **patient)
    return one, await start_node(config=path, **patient)


async def api(node: RunningNode, method: str, **request: Any) -> Any:
    """Call a method of the server's API; its result."""
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
        answer = (await http.post(f"{node.url}/api/{method}", json=request)).json()
    return answer["result"]


async def used(store: Any) -> tuple[int, int]:
    """How many keys Redis has, and how many bytes it uses."""
    return await store.dbsize(), (await store.info("memory"))["used_memory"]


@pytest.mark.backends("redis")
async def test_reads_of_unknown_names_leave_nothing(pair: Pair, store: Any) -> None:
    """Ten thousand names that nobody published to: no key more, and no memory to speak of."""
    one, _ = pair
    node, options = one.node, one.node.channels.find("x").options
    await node.broker.history("warm-up", options, 0, 10, max_size=1000)
    keys, memory = await used(store)
    for start in range(0, 10_000, 200):
        names = [f"seen:unknown{number}" for number in range(start, start + 200)]
        await asyncio.gather(
            *(node.broker.history(name, options, 0, 10, max_size=1000) for name in names),
            *(node.broker.members(name, max_size=1000) for name in names),
        )
    async with Peer(one) as ann:
        for number in range(20):
            name = f"seen:other{number}"
            await ann.ask(HistoryRequest(name, limit=10))
            await ann.ask(PresenceRequest(name))
            await ann.ask(PresenceStatsRequest(name))
            assert await ann.subscribe(f"loose:other{number}") is not None
            result = await api(one, "history", channel=name)
            assert (result["publications"], result["offset"]) == ([], 0)
            await api(one, "presence", channel=name)
        await api(one, "channels")
        keys_then, memory_then = await used(store)
        # The client's own two keys are there, and those of a heartbeat may have come.
        assert keys_then <= keys + 4
        assert memory_then < memory + 1_000_000


@pytest.mark.backends("redis")
async def test_a_full_redis_answers_reads(pair: Pair, store: Any) -> None:
    """History, presence, surveys and subscriptions go on, and add nothing."""
    one, two = pair
    async with Peer(one) as ann, Peer(two) as bob:
        await ann.ask(PublishRequest("room", b"1"))
        await store.config_set("maxmemory", 1)
        keys, _ = await used(store)
        page = await ann.result(HistoryRequest("room", limit=10))
        assert [publication.data for publication in page.publications] == [b"1"]
        assert (await ann.result(HistoryRequest("unknown", limit=10))).publications == []
        assert (await ann.result(PresenceRequest("seen:unknown"))).presence == {}
        assert (await bob.subscribe("room", recover=True)).publications[0].data == b"1"
        for number in range(50):
            assert (await bob.subscribe(f"unknown{number}")).positioned
        assert len((await api(one, "info"))["nodes"]) == 2
        assert "unknown1" in (await api(one, "channels"))["channels"]
        assert (await used(store))[0] == keys

        await store.config_set("maxmemory", 0)
        await ann.ask(PublishRequest("unknown0", b"1"))
        await bob.until(lambda: bob.data("unknown0") == [b"1"])


@pytest.mark.backends("redis")
async def test_a_position_given_by_a_full_redis_recovers_nothing(pair: Pair, store: Any) -> None:
    """It is in no stream that ever is: what came meanwhile is not called recovered."""
    one, two = pair
    async with Peer(one) as ann:
        async with Peer(two) as bob:
            await store.config_set("maxmemory", 1)
            at = await bob.subscribe("room")
        await store.config_set("maxmemory", 0)
        await ann.ask(PublishRequest("room", b"1"))
        async with Peer(two) as bob:
            again = await bob.subscribe("room", recover=True, offset=at.offset, epoch=at.epoch)
            assert (again.was_recovering, again.recovered, again.publications) == (True, False, [])


@pytest.mark.parametrize("live", [0, 2])
async def test_recovery_from_before_the_first_publication(
    pair: Pair, store: Any, live: int
) -> None:
    """A subscriber of a channel that is new misses nothing, also when it was away at its birth."""
    one, two = pair
    async with Peer(one) as ann:
        async with Peer(two) as bob:
            at = await bob.subscribe("room")
            assert (at.offset, at.recoverable) == (0, True)
            for number in range(live):
                await ann.ask(PublishRequest("room", b"%d" % number))
            await bob.until(lambda: len(bob.data("room")) == live)
        await two.crash()  # nothing that it knew is needed
        for number in range(live, live + 3):
            await ann.ask(PublishRequest("room", b"%d" % number))
        async with Peer(one) as bob:
            again = await bob.subscribe("room", recover=True, offset=live, epoch=at.epoch)
            assert again.recovered
            wanted = [b"%d" % number for number in range(live, live + 3)]
            assert [publication.data for publication in again.publications] == wanted


async def test_a_channel_that_was_lost_is_not_the_one_that_began(pair: Pair, store: Any) -> None:
    """A stream that was lost and begun again while a subscriber was away is not recovered."""
    one, two = pair
    async with Peer(one) as ann:
        async with Peer(two) as bob:
            at = await bob.subscribe("room")
        await ann.ask(PublishRequest("room", b"1"))
        await store.delete("wsfleet:meta:{room}", "wsfleet:stream:{room}")
        await ann.ask(PublishRequest("room", b"2"))
        async with Peer(two) as bob:
            again = await bob.subscribe("room", recover=True, offset=at.offset, epoch=at.epoch)
            assert (again.was_recovering, again.recovered) == (True, False)


async def test_an_epoch_without_publications_expires_early(
    pair: Pair, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as one may come back: not for the month that publications are counted on."""
    monkeypatch.setattr("wsfleet.broker.following.CHECK_AFTER", 0.2)
    one, _ = pair
    async with Peer(one) as ann:
        await ann.subscribe("room")
        assert 300 < await store.ttl("wsfleet:meta:{room}") <= 360
        await store.expire("wsfleet:meta:{room}", 100)

        async def renewed() -> bool:
            return bool(await store.ttl("wsfleet:meta:{room}") > 300)

        await settled(renewed, "it is remembered while there is a subscriber")
        await ann.ask(UnsubscribeRequest("room"))
        await settled(lambda: "room" not in one.node.broker.followed._channels, "nobody follows it")
        await store.expire("wsfleet:meta:{room}", 100)
        await ann.subscribe("loose:room")
        await asyncio.sleep(0.5)
        assert await store.ttl("wsfleet:meta:{room}") <= 100
        assert not await store.exists("wsfleet:meta:{loose:room}")


async def test_a_join_removes_expired_presence(pair: Pair, store: Any) -> None:
    """To ask who is there leaves them where they are, and leaves them out."""
    one, _ = pair
    async with Peer(one) as ann:
        await ann.subscribe("seen:room")
        for number in range(250):
            await store.hset("wsfleet:presence:{seen:room}", f"gone{number}", b"\x90")
            await store.zadd("wsfleet:expiry:{seen:room}", {f"gone{number}": 1})
        present = await ann.result(PresenceRequest("seen:room"))
        assert len(present.presence) == 1
        assert await store.hlen("wsfleet:presence:{seen:room}") == 251
        for _ in range(3):
            async with Peer(one) as bob:
                await bob.subscribe("seen:room")

        async def cleared() -> bool:
            return bool(await store.hlen("wsfleet:presence:{seen:room}") == 1)

        await settled(cleared, "ann alone is left")
