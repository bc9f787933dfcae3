"""Pub/sub channels by the thousand: subscribed in portions, and left without a trace."""

import asyncio
from collections import deque
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.waiting import settled
from tests.support.nodes import StartNode
from tests.support.redis import RedisServer
from wsfleet.broker.following import Follower
from wsfleet.broker.pubsub import PORTION_BYTES, PORTION_COUNT, Listening, Probe
from wsfleet.channels.permissions import Channels
from wsfleet.channels.publication import Record
from wsfleet.config.schema import ChannelConfig
from wsfleet.redis import key_names
from wsfleet.redis.connection import Link

OPTIONS = (
    Channels(
        ChannelConfig.model_validate(
            {"without_namespace": {"history_size": 10, "history_ttl": "300s"}}
        )
    )
    .find("any")
    .options
)
"""Of a channel with history."""


class FakeRedis:
    """The pub/sub side of a Redis that answers when it is told to."""

    alive = True

    def __init__(self) -> None:
        self.subscribed: set[bytes] = set()
        self.asked: deque[tuple[bytes, bool]] = deque()
        self.most = 0

    def send(self, command: tuple[Any, ...]) -> None:
        """Take a command."""
        kind, *channels = command
        self.asked += [(channel, kind == "SSUBSCRIBE") for channel in channels]
        self.most = max(self.most, len(self.asked))
        assert len(self.asked) <= PORTION_COUNT
        assert sum(len(channel) for channel, _ in self.asked) <= PORTION_BYTES

    def answer(self, listening: Listening, count: int) -> None:
        """Carry out some of what was asked, and confirm it."""
        for _ in range(min(count, len(self.asked))):
            channel, subscribe = self.asked.popleft()
            (self.subscribed.add if subscribe else self.subscribed.discard)(channel)
            assert listening.confirmed(channel, subscribed=subscribe)


names = st.integers(0, 40).map(lambda number: b"%d" % number + b"x" * 5000)
steps = st.lists(
    st.tuples(names, st.booleans()) | st.integers(1, 30).map(lambda count: (b"", count)),
    max_size=80,
)


@settings(deadline=None)
@given(st.sets(names), steps, st.booleans())
def test_any_order_of_changes_and_answers_ends_as_wanted(
    first: set[bytes], changes: list[tuple[bytes, int]], by_slot: bool
) -> None:
    """Redis hears of a bounded portion at a time; in the end it has what was wanted last."""
    fake, told = FakeRedis(), []
    listening = Listening(Probe("probe"), lambda: told.append(1), by_slot=by_slot)
    wanted = {b"probe", *first}
    listening.begin(cast(Link, fake), [name.decode() for name in first])
    for name, value in changes:
        if name:
            listening.change(name, subscribe=bool(value))
            (wanted.add if value else wanted.discard)(name)
        else:
            fake.answer(listening, value)
        assert listening.complete == bool(told)
    while fake.asked:
        fake.answer(listening, 1)
    assert fake.subscribed == wanted
    assert listening.complete
    assert told == [1]
    assert not listening.confirmed(b"probe", subscribed=False)  # nobody asked for that
    assert not listening._waiting
    assert not listening._sent


async def follow_all(followers: list[Follower]) -> None:
    """Wait until all channels are heard."""
    async with asyncio.timeout(60):
        for follower in followers:
            await follower.followed.confirmed.wait()


async def subscriber(store: Any) -> dict[str, str]:
    """Return Redis's entry of the node's pub/sub connection."""
    [found] = await store.client_list(_type="pubsub")
    return cast(dict[str, str], found)


async def test_thousands_of_long_names_fit_into_small_buffers(
    start_node: StartNode, tmp_path: Path
) -> None:
    """A Redis with little room for answers cuts nobody who follows 4,000 channels, or leaves them.

    At once, after a reconnect, and when the last subscribers of all of them go in one tick.
    """
    limits: dict[str, Any] = {
        "client_output_buffer_limit": "pubsub 256kb 0 0",
        "client_query_buffer_limit": "1mb",
    }
    server = RedisServer(tmp_path / "small", **limits)
    server.start()
    try:
        patient = {"redis_timeout": 5.0, "heartbeat_interval": 2.0, "node_dead_after": 8.0}
        node = await start_node(redis_url=server.url, **patient)
        broker = node.node.broker
        names = [f"{number:05}".ljust(230, "x") for number in range(4000)]
        heard: list[str] = []
        node.node.dispatcher.published = (  # type: ignore[method-assign]
            lambda channel, entry: heard.append(channel)
        )
        async with redis.asyncio.Redis.from_url(server.url, decode_responses=True) as store:
            before = (await subscriber(store))["id"]
            followers = [broker.followed.follow(name, OPTIONS) for name in names]
            await follow_all(followers)
            assert (await subscriber(store))["id"] == before

            await store.client_kill_filter(_type="pubsub")
            await settled(lambda: not broker.subscribed, "the loss was noticed")
            await settled(lambda: broker.subscribed, "all is heard again")
            found = await subscriber(store)
            assert found["ssub"] == str(len(names) + 4)  # the probe, control twice, broadcast
            for name in (names[0], names[-1]):
                await broker.publish(name, OPTIONS, Record(b"1", 1))
            await settled(lambda: heard == [names[0], names[-1]], "both were heard")

            for follower in followers:
                follower.release()

            async def left() -> bool:
                return (await subscriber(store))["ssub"] == "4"

            await settled(left, "all channels were left")
            assert (await subscriber(store))["id"] == found["id"]
            assert not broker.followed._channels.keys() - {"broadcast"}
            assert len(broker.followed._subscriber._wanted) == 3
            [listening] = broker.followed._subscriber._listening.values()
            assert not listening._waiting
            assert not listening._sent
        await node.stop()
    finally:
        server.stop()


@pytest.mark.parametrize("again", [False, True])
async def test_a_channel_is_left_and_followed_while_others_are_confirmed(
    start_node: StartNode, store: Any, again: bool
) -> None:
    """The last request for a channel wins, also if several come in the same moment."""
    node = await start_node()
    broker = node.node.broker
    others = [broker.followed.follow(f"other{number}", OPTIONS) for number in range(1000)]
    broker.followed._subscriber.subscribe(key_names.channel("room"))
    broker.followed._subscriber.unsubscribe(key_names.channel("room"))
    if again:
        broker.followed._subscriber.subscribe(key_names.channel("room"))
    await follow_all(others)

    async def as_wanted() -> bool:
        [(_, count)] = await store.pubsub_shardnumsub(key_names.channel("room"))
        return bool(count) == again

    await settled(as_wanted, "it is as it was last wanted")
