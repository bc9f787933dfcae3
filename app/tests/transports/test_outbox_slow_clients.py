"""A client that reads is not slow, however much comes at once; one that does not costs little."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from centrifuge import ClientEventHandler  # type: ignore[import-untyped]

from lab.waiting import TIMEOUT, settled
from tests.support.api import KEY
from tests.support.clients import centrifuge, command
from tests.support.nodes import RunningNode, StartNode
from tests.support.publications import OPTIONS, published
from tests.support.sdk import has, sdk, subscribed
from tests.support.tcp import HANDSHAKE, masked
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Position
from wsfleet.config.file import BUILT_IN
from wsfleet.transports.frames import TEXT
from wsfleet.transports.outbox import HIGH_WATER

REPLY = 2_097_152


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The built-in configuration, with a key of the API."""
    path = tmp_path / "config.yml"
    path.write_text(f"{BUILT_IN}http_api: {{key: {KEY}}}\n")
    return path


@pytest.fixture
async def node(start_node: StartNode, config: Path) -> RunningNode:
    """A node with the limits that it has by default."""
    return await start_node(config=config)


class Connections(ClientEventHandler):  # type: ignore[misc]
    """Counts how often a client came."""

    def __init__(self) -> None:
        self.count = 0

    async def on_connected(self, ctx: Any) -> None:
        """It is there, perhaps again."""
        self.count += 1


def reaches(things: list[Any], count: int) -> bool:
    """Whether a list that grows is at least this long by now."""
    return len(things) >= count


@pytest.mark.parametrize("protobuf", [False, True])
async def test_a_large_publication_of_the_api_arrives(node: RunningNode, protobuf: bool) -> None:
    """1.1 MB are more than the limit of Centrifugo's queue, and close nobody."""
    connections, data = Connections(), "x" * 1_100_000
    async with (
        sdk(node, events=connections, protobuf=protobuf) as client,
        httpx.AsyncClient(
            base_url=node.url, headers={"X-API-Key": KEY}, trust_env=False, timeout=30
        ) as http,
    ):
        _, events = await subscribed(client, "news")
        for number in range(1, 4):
            response = await http.post("/api/publish", json={"channel": "news", "data": data})
            assert response.json()["result"]["offset"] == number
        await settled(partial(has, events.publications, 3), "all publications arrive")
        wanted = json.dumps(data).encode() if protobuf else data
        assert events.data == [wanted] * 3
        assert connections.count == 1


async def test_a_recovery_of_the_whole_history_arrives(node: RunningNode) -> None:
    """A thousand publications of 950 bytes are one reply, once."""
    connections = Connections()
    async with sdk(node, events=connections) as client:
        subscription, events = await subscribed(client, "news")
        await published(node, "news", 950)
        await settled(partial(has, events.publications, 1), "the publication arrives")
        await client.disconnect()
        publisher = Member("ann", "b5b5a6d4-2d3b-4b52-9d5b-2a4ee7f3a1c0", b'{"name":"Ann"}')
        record = Record(data=json.dumps("x" * 950).encode(), time=1, publisher=publisher)
        for _ in range(1000):
            await node.node.broker.publish("news", OPTIONS, record)
        await client.connect()
        await settled(partial(has, events.publications, 1001), "the missed publications arrive")
        assert events.offsets == list(range(1, 1002))
        assert events.subscribed[-1].recovered
        await subscription.publish("next")
        await settled(partial(has, events.publications, 1002), "the next publication arrives")
        assert connections.count == 2


async def test_the_largest_publication_is_recovered(node: RunningNode) -> None:
    """The largest publication fits into every way to a client."""
    size = node.settings.max_publication_size - len('""')
    async with sdk(node) as client:
        _, events = await subscribed(client, "news")
        await published(node, "news", size)
        await settled(partial(has, events.publications, 1), "the publication arrives")
        await client.disconnect()
        await published(node, "news", size)
        await client.connect()
        await settled(partial(has, events.publications, 2), "the missed publications arrive")
        assert events.subscribed[-1].recovered
        assert [len(data) for data in events.data] == [size, size]


async def test_a_burst_and_a_gap_that_come_in_one_tick_arrive(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one write of megabytes; so are two channels of one flush."""
    connections = Connections()
    own = node.node.broker
    async with sdk(node, events=connections) as client:
        _, one = await subscribed(client, "one")
        _, two = await subscribed(client, "two")
        await published(node, "one", 1)
        await published(node, "two", 1)
        await settled(
            lambda: has(one.publications, 1) and has(two.publications, 1),
            "both clients get the publication",
        )
        for gap in (False, True):
            before = len(one.publications)
            hear = own.followed._subscriber._on_message
            held: list[tuple[str, bytes]] = []

            def hold(*message: Any, held: list[tuple[str, bytes]] = held) -> None:
                held.append(message)

            monkeypatch.setattr(own.followed._subscriber, "_on_message", hold)
            for channel in ("one", "two"):
                await published(node, channel, *[60_000] * 30)
            await settled(partial(reaches, held, 60), "Redis has sent all")
            monkeypatch.setattr(own.followed._subscriber, "_on_message", hear)
            for message in held[-1:] if gap else held:  # the others are lost
                hear(*message)
            if gap:
                await published(node, "one", 1)
            wanted = before + 30 + gap
            await settled(partial(has, one.publications, wanted), "all of the first came")
        for events in (one, two):
            await settled(partial(reaches, events.publications, 61), "all publications arrive")
            assert events.offsets == list(range(1, len(events.offsets) + 1))
        assert connections.count == 1


async def test_a_large_connect_reply_arrives(node: RunningNode) -> None:
    """Many server-side subscriptions, each with a recovery, are one reply."""
    channels = [f"news{number}" for number in range(100)]
    subs = {}
    for channel in channels:
        await published(node, channel, 1, *[1000] * 15)
        top = await node.node.broker.history(channel, OPTIONS, 0, 0, max_size=1)
        subs[channel] = {"recover": True, "offset": 1, "epoch": top.epoch}
    async with centrifuge(node, max_size=None) as client:
        reply = await command(client, connect={"subs": subs})
        found = reply["connect"]["subs"].values()
        assert [len(each["publications"]) for each in found] == [15] * 100
        assert (await command(client, ping={}, presence={"channel": "news1"}))["presence"]


async def large(node: RunningNode, count: int) -> list[dict[str, Any]]:
    """Subscribe commands that each recover almost as much as a reply may have."""
    commands = []
    for number in range(1, count + 1):
        await published(node, f"large{number}", 1, *[60_000] * 33)
        epoch = (await node.node.broker.history(f"large{number}", OPTIONS, 0, 0, max_size=1)).epoch
        position = Position(1, epoch)
        commands.append(
            {
                "id": number + 1,
                "subscribe": {
                    "channel": f"large{number}",
                    "recover": True,
                    "offset": position.offset,
                    "epoch": position.epoch,
                },
            }
        )
    return commands


async def test_many_large_replies_arrive_at_a_reading_client(node: RunningNode) -> None:
    """Ten recoveries in one frame are more than may wait: each is read when there is room."""
    commands = await large(node, 10)
    async with centrifuge(node, max_size=None) as client:
        await command(client, connect={})
        await client.send("\n".join(map(json.dumps, commands)))
        for wanted in commands:
            reply = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT))
            assert reply["id"] == wanted["id"]
            assert len(reply["subscribe"]["publications"]) == 33


async def test_a_client_that_does_not_read_costs_one_reply(
    start_node: StartNode, config: Path
) -> None:
    """The next reply is not made before it has read; after `write_timeout` it is closed."""
    node = await start_node(config=config, write_timeout=0.5)
    commands = await large(node, 10)
    _, writer = await asyncio.open_connection("127.0.0.1", node.settings.port, limit=1)
    writer.write(HANDSHAKE.replace(b"/ws", b"/connection/websocket"))
    everything = [{"id": 1, "connect": {}}, *commands]
    writer.write(masked(TEXT, "\n".join(map(json.dumps, everything)).encode()))
    await settled(lambda: len(node.node.hub) == 1, "the client is connected")
    connection = next(iter(node.node.hub))
    most = 0

    def closed() -> bool:
        nonlocal most
        most = max(most, connection.buffered)
        return connection.close_code == 3008

    await settled(closed, "it was closed")
    assert 0 < most <= HIGH_WATER + REPLY
    writer.transport.abort()
