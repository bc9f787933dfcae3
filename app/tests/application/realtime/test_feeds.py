"""Ordinary WebSockets that hear channels."""

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.realtime_guest import realtime
from wsfleet import CallError
from wsfleet.application.realtime import feeds

GUEST = "tests.support.realtime_guest:realtime"


def opened(node: RunningNode, path: str, **options: Any) -> connect:
    """Open a WebSocket of the application."""
    return connect(node.client_url.replace("http", "ws") + path, proxy=None, **options)


async def ready(client: ClientConnection) -> None:
    """Wait until the feed has begun."""
    assert await client.recv() == "ready"


@pytest.mark.backends("redis", "memory")
async def test_publications_of_any_node_are_heard(
    start_node: StartNode, guest_config: Path
) -> None:
    """A WebSocket hears the data of its channels, in order, and not of others."""
    one = await start_node(app=GUEST, config=guest_config)
    two = await start_node(app=GUEST, config=guest_config)
    async with opened(one, "/feed/room:1,room:2") as first, opened(two, "/feed/room:1") as second:
        await ready(first)
        await ready(second)
        for number in range(50):
            await realtime.publish("room:1", {"number": number})
        await realtime.publish("room:3", {"other": True})
        for client in (first, second):
            for number in range(50):
                assert json.loads(await client.recv()) == {"number": number}
        await realtime.publish("room:2", "ü")
        assert await first.recv() == '"ü"'
        await realtime.publish("room:2", b"\xff\x00")
        assert await first.recv() == b"\xff\x00"


async def test_a_feed_of_another_server_begins_with_all_channels_or_none(
    node: RunningNode,
) -> None:
    """If one of them is unknown, no task of another one stays behind."""
    listeners, before = realtime._serving_of(node.node).listeners, asyncio.all_tasks()
    with pytest.raises(CallError, match="102"):
        async with feeds.relayed(listeners, cast(WebSocket, None), ("room:1", "unknown:1")):
            pass
    assert {task for task in asyncio.all_tasks() - before if "_relay" in repr(task)} == set()
    assert not listeners._listeners


async def test_a_publication_is_framed_once_for_all(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many WebSockets hear a channel, each publication has one frame."""
    framed: list[bytes] = []

    def is_text(data: bytes) -> bool:
        framed.append(data)
        return True

    monkeypatch.setattr(feeds, "_is_text", is_text)
    clients = [await opened(node, "/feed/room:1") for _ in range(20)]
    for client in clients:
        await ready(client)
    await realtime.publish("room:1", {"text": "x"})
    for client in clients:
        assert await client.recv() == '{"text":"x"}'
        await client.close()
    assert len(framed) == 1


async def test_a_feed_ends_with_its_block(node: RunningNode) -> None:
    """After the block nothing is heard, and the channel has no subscriber; so if a client goes."""
    async with opened(node, "/feed/room:1") as client, opened(node, "/feed/room:1") as gone:
        await ready(client)
        await ready(gone)
        assert await realtime.channels() == {"room:1": 2}
        gone.transport.abort()

        async def has_one() -> bool:
            return await realtime.channels() == {"room:1": 1}

        await settled(has_one, "the node has noticed")
        await client.send("end")
        assert await client.recv() == "over"
        assert await realtime.channels() == {}
        await realtime.publish("room:1", 1)
        await client.send("end")
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_feed_needs_a_channel_that_exists(node: RunningNode) -> None:
    """An unknown namespace is an exception in the handler: 1011; so is a missing accept: 500."""
    async with opened(node, "/feed/unknown:1") as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
    with pytest.raises(InvalidStatus):
        await opened(node, "/unaccepted")


async def test_a_feed_twice_is_heard_once(node: RunningNode) -> None:
    """Blocks for the same channel may be nested: the inner end does not end the outer."""
    async with opened(node, "/echo") as client:
        await settled(lambda: len(node.node.hub) == 1, "it is there")
        (connection,) = node.node.hub
        serving = realtime._serving_of(node.node)
        async with serving.feeds.feed(connection, ("room:1", "room:1")):
            async with serving.feeds.feed(connection, ("room:1",)):
                await realtime.publish("room:1", 1)
                assert await client.recv() == "1"
            await realtime.publish("room:1", 2)
            assert await client.recv() == "2"
        await realtime.publish("room:1", 3)
        await client.send("nothing between")
        assert await client.recv() == "nothing between"


async def test_under_another_server_a_task_writes(node: RunningNode) -> None:
    """Through the bare ASGI interface, which has no node's WebSocket, the channel is heard too."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    received.put_nowait({"type": "websocket.connect"})
    scope = {
        "type": "websocket",
        "path": "/feed/room:1,room:2",
        "headers": [],
        "query_string": b"",
        "subprotocols": [],
    }
    serving = asyncio.create_task(realtime(scope, received.get, sent.put))  # type: ignore[arg-type]
    assert (await sent.get())["type"] == "websocket.accept"
    assert (await sent.get())["text"] == "ready"
    await realtime.publish("room:1", {"text": "x"})
    assert (await sent.get())["text"] == '{"text":"x"}'
    await realtime.publish("room:2", b"\xff")
    assert (await sent.get())["bytes"] == b"\xff"
    received.put_nowait({"type": "websocket.receive", "text": "end"})
    assert (await sent.get())["text"] == "over"
    await realtime.publish("room:1", 1)
    received.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await serving
    assert sent.empty()
