"""Recovery, history and presence are limited in bytes, already where Redis is read."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from centrifuge import CentrifugeError  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.waiting import settled
from tests.support.api import KEY
from tests.support.clients import centrifuge, command
from tests.support.nodes import RunningNode, StartNode
from tests.support.publications import OPTIONS, published
from tests.support.sdk import has, sdk, subscribed
from wsfleet.broker import following
from wsfleet.broker.history import read_history
from wsfleet.channels.publication import Member, Record, encode
from wsfleet.channels.stream import Position, Reading
from wsfleet.config.file import BUILT_IN

pytestmark = pytest.mark.backends("redis", "memory")

LIMIT = 10_000


@pytest.fixture
async def node(start_node: StartNode, tmp_path: Path) -> RunningNode:
    """A node on which everybody may do everything, with small replies."""
    path = tmp_path / "config.yml"
    path.write_text(f"{BUILT_IN}  reply_max_size: {LIMIT}\nhttp_api: {{key: {KEY}}}\n")
    return await start_node(config=path)


@asynccontextmanager
async def output_of_redis(store: Any) -> AsyncIterator[Callable[[], int]]:
    """The bytes that Redis has sent within the block, to be asked for after it."""

    async def sent() -> int:
        return int((await store.info("stats"))["total_net_output_bytes"])

    before = await sent()
    after = before
    yield lambda: after - before
    after = await sent()


async def test_a_recovery_over_the_limit_fails_once(node: RunningNode, store: Any) -> None:
    """The client is told so and hears what comes next; Redis has not sent all that was missed."""
    async with sdk(node) as client:
        subscription, events = await subscribed(client, "news")
        await published(node, "news", 1000)
        await settled(partial(has, events.publications, 1), "the publication arrives")
        for missed, recovered in ((9, True), (500, False)):
            await subscription.unsubscribe()
            events.subscribed.clear()
            await published(node, "news", *[1000] * missed)
            async with output_of_redis(store) as output:
                await subscription.subscribe()
                await subscription.ready(5)
            assert [each.recovered for each in events.subscribed] == [recovered]
            assert output() < 5 * LIMIT
        await published(node, "news", 1)
        await settled(lambda: events.data[-1] == "x", "what comes next is heard")
        assert len(events.publications) == 1 + 9 + 1


async def test_a_connect_recovers_no_more_than_one_reply_holds(node: RunningNode) -> None:
    """Its channels share the limit: those that do not fit are not recovered."""
    channels = [f"news{number}" for number in range(6)]
    epochs = {}
    for channel in channels:
        await published(node, channel, 0, *[1000] * 4)
        epochs[channel] = (await node.node.broker.history(channel, OPTIONS, 0, 0, max_size=1)).epoch
    subs = {
        channel: {"recover": True, "offset": 1, "epoch": epochs[channel]} for channel in channels
    }
    async with centrifuge(node) as client:
        reply = await command(client, connect={"subs": subs})
    found = reply["connect"]["subs"]
    assert [found[channel].get("recovered", False) for channel in channels] == [
        *[True] * 2,
        *[False] * 4,
    ]
    assert [len(found[channel].get("publications", [])) for channel in channels] == [
        4,
        4,
        0,
        0,
        0,
        0,
    ]


async def test_a_history_over_the_limit_is_an_error(node: RunningNode, store: Any) -> None:
    """Code 106 for clients and for the API, and the connection goes on; less is answered."""
    await published(node, "news", *[1000] * 200)
    headers = {"X-API-Key": KEY}
    async with (
        sdk(node) as client,
        httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http,
    ):
        subscription, _ = await subscribed(client, "news")
        for reverse in (False, True):
            async with output_of_redis(store) as output:
                with pytest.raises(CentrifugeError) as error:
                    await subscription.history(limit=100, reverse=reverse)
            assert error.value.code == 106
            assert output() < 5 * LIMIT
            page = await subscription.history(limit=9, reverse=reverse)
            offsets = [publication.offset for publication in page.publications]
            assert offsets == (list(range(200, 191, -1)) if reverse else list(range(1, 10)))
        for limit, wanted in ((-1, 106), (100, 106), (9, None)):
            response = await http.post("/api/history", json={"channel": "news", "limit": limit})
            answer = response.json()
            assert answer.get("error", {}).get("code") == wanted, answer
            if wanted:
                assert "more than 10000 bytes (client.reply_max_size)" in answer["error"]["message"]
        await published(node, "one", 3 * LIMIT)
        response = await http.post("/api/history", json={"channel": "one", "limit": 5})
        assert len(response.json()["result"]["publications"]) == 1, "one is always answered"


async def test_a_presence_over_the_limit_is_an_error(node: RunningNode) -> None:
    """Code 106 for clients and for the API; the numbers alone are answered."""
    async with (
        sdk(node) as client,
        httpx.AsyncClient(base_url=node.url, headers={"X-API-Key": KEY}, trust_env=False) as http,
    ):
        subscription, _ = await subscribed(client, "news")
        assert len((await subscription.presence()).clients) == 1
        for number in range(20):
            member = Member("ann", f"client{number}", conn_info=b'"%s"' % (b"x" * 1000))
            await node.node.broker.presence_add("news", member.client, member)
        with pytest.raises(CentrifugeError) as error:
            await subscription.presence()
        assert error.value.code == 106
        assert (await subscription.presence_stats()).num_clients == 21
        response = await http.post("/api/presence", json={"channel": "news"})
        assert response.json()["error"]["code"] == 106
        response = await http.post("/api/presence_stats", json={"channel": "news"})
        assert response.json()["result"]["num_clients"] == 21


async def test_a_live_publication_does_not_complete_a_limited_recovery(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that ends before the top does not recover, even if live publications reach it.

    Live publications count as well: the missed ones alone may just fit (size 0 below).
    """
    await published(node, "news", *[10] * 5)
    own = node.node.broker.followed
    follower = own.follow("news", OPTIONS)
    await follower.confirmed()
    channel, read = follower.followed, read_history

    async def and_then_comes_more(*args: Any, **options: Any) -> Reading:
        reading = await read(*args, **options)
        top = channel.stream.offset
        await published(node, "news", 10)
        await settled(lambda: channel.stream.offset == top + 1, "the publication arrives")
        return reading

    monkeypatch.setattr(following, "read_history", and_then_comes_more)
    since = Position(0, channel.stream.epoch)
    for limit, size, continues in (
        (2, LIMIT, False),
        (100, 30, False),
        (100, 0, False),
        (100, LIMIT, True),
    ):
        missed = await read(node.node.store, "news", OPTIONS, 0, limit, max_size=LIMIT)
        room = size or sum(len(entry.record) for entry in missed.entries)
        async with own.catch_up(channel, since, limit, room) as (reading, position):
            assert reading is not None
            assert reading.continues(0) is continues
            assert [entry.offset for entry in reading.entries] == (
                list(range(1, position.offset + 1)) if continues else []
            )


async def test_a_large_gap_is_filled_in_portions(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publications that pub/sub lost come in order and once, read a few at a time."""
    monkeypatch.setattr(following, "READ_SIZE", 5_000)
    own = node.node.broker.followed
    readings: list[Reading] = []
    read, hear = read_history, own._subscriber._on_message

    async def noted(*args: Any, **options: Any) -> Reading:
        readings.append(await read(*args, **options))
        return readings[-1]

    async with sdk(node) as client:
        _, events = await subscribed(client, "news")
        await published(node, "news", 1)
        await settled(partial(has, events.publications, 1), "the publication arrives")
        monkeypatch.setattr(following, "read_history", noted)
        monkeypatch.setattr(own._subscriber, "_on_message", lambda *_: None)
        await published(node, "news", *[1000] * 100)
        monkeypatch.setattr(own._subscriber, "_on_message", hear)
        await published(node, "news", 1)
        await settled(partial(has, events.publications, 102), "all publications arrive")
        assert events.offsets == list(range(1, 103))
    assert len(readings) >= 20
    assert max(len(reading.entries) for reading in readings) <= 5


sizes = st.lists(st.integers(0, 60), max_size=50)


async def test_the_function_reads_like_a_list(node: RunningNode) -> None:
    """Any stretch, in either direction, ends at the count, the size or the stream's end."""
    loop, channels = asyncio.get_running_loop(), iter(range(10**6))

    @settings(max_examples=60, deadline=None)
    @given(sizes, st.integers(0, 55), st.integers(0, 55), st.integers(1, 900), st.booleans())
    def check(sizes: list[int], since: int, limit: int, room: int, reverse: bool) -> None:
        channel = f"channel{next(channels)}"

        async def found() -> Reading:
            await published(node, channel, *sizes)
            return await node.node.broker.history(
                channel, OPTIONS, since, limit, max_size=room, reverse=reverse
            )

        reading = asyncio.run_coroutine_threadsafe(found(), loop).result(30)
        offsets = list(range(since + 1, len(sizes) + 1))
        if reverse:
            below = min(since - 1, len(sizes)) if since else len(sizes)
            offsets = list(range(below, 0, -1))
        found_sizes = {entry.offset: len(entry.record) for entry in reading.entries}
        assert list(found_sizes) == offsets[: len(found_sizes)]
        assert all(entry.previous == entry.offset - 1 for entry in reading.entries)
        assert sum(found_sizes.values()) <= room or len(found_sizes) == 1
        ended = len(found_sizes) in (limit, len(offsets))
        assert reading.cut is not ended
        if reading.cut:
            size = sizes[offsets[len(found_sizes)] - 1]
            left_out = Record(data=json.dumps("x" * size).encode(), time=1)
            assert sum(found_sizes.values()) + len(encode(left_out)) > room
        assert reading.offset == len(sizes)

    await asyncio.to_thread(check)
