"""Handlers on a node, as the SDK of Centrifuge sees them."""

import asyncio
from typing import Any

import pytest
from centrifuge import Client, ReplyError  # type: ignore[import-untyped]

from lab.waiting import settled
from tests.support import realtime_guest
from tests.support.metrics import value
from tests.support.nodes import RunningNode
from tests.support.realtime_guest import realtime
from tests.support.sdk import sdk, subscribed

pytestmark = pytest.mark.backends("redis", "memory")


async def refused(work: Any) -> int:
    """Return the code of the error that a command is answered with."""
    with pytest.raises(ReplyError) as error:
        await work
    code: int = error.value.code
    return code


async def test_connect_identifies_and_answers(node: RunningNode) -> None:
    """Data and cookies identify the client; the answer's info and data arrive; `state` stays."""
    async with sdk(node, data={"name": "anna"}) as anna:
        assert (await anna.rpc("greeting", None)).data == "hello anna"
    async with sdk(node, headers={"Cookie": "name=ben"}) as ben:
        assert (await ben.rpc("greeting", None)).data == "hello ben"
        (info,) = [each for each in (await realtime.info()) if each.num_clients]
        assert (info.num_clients, info.num_users) == (1, 1)


async def test_a_refused_connect_is_final(node: RunningNode) -> None:
    """`Disconnect` closes with its code; a client without credentials is not let in."""
    for data, code in (({"name": "mallory"}, 4501), (None, 3501)):
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        client = Client(node.client_url.replace("http", "ws") + "/connection/websocket", data=data)

        async def on_disconnected(ctx: Any, ended: asyncio.Future[int] = ended) -> None:
            ended.set_result(ctx.code)

        client.events.on_disconnected = on_disconnected
        await client.connect()
        assert await asyncio.wait_for(ended, 10) == code


async def test_invalid_connect_data_is_refused(node: RunningNode) -> None:
    """Data of the wrong type never reach the handler: error 422, which SDKs take as final."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    client = Client(node.client_url.replace("http", "ws") + "/connection/websocket", data=[1])

    async def on_disconnected(ctx: Any) -> None:
        ended.set_result(ctx.code)

    client.events.on_disconnected = on_disconnected
    await client.connect()
    assert await asyncio.wait_for(ended, 10) == 422


async def test_subscribe_and_publish(node: RunningNode) -> None:
    """The handlers decide, and what they return is published, with the publisher's info."""
    async with sdk(node, data={"name": "anna"}) as anna, sdk(node, data={"name": "ben"}) as ben:
        own, _ = await subscribed(anna, "room:1")
        _, heard = await subscribed(ben, "room:1")
        assert heard.subscribed[0].data == {"topic": "1"}
        await own.publish({"text": "hello"})
        await settled(lambda: heard.publications, "ben hears it")
        (publication,) = [each.pub for each in heard.publications]
        assert publication.data == {"text": "HELLO"}
        assert publication.info.user == "anna"
        assert publication.info.conn_info == {"name": "anna"}
        assert publication.info.chan_info == {"room": "1"}
        assert publication.tags == {"by": "anna"}
        assert await refused(own.publish({"text": ""})) == 422
        assert await refused(own.publish("no object")) == 422
        assert len((await realtime.history("room:1", limit=-1)).publications) == 1
        present = await realtime.presence("room:1")
        assert {each.user for each in present.values()} == {"anna", "ben"}


async def test_a_subscription_is_refused(node: RunningNode) -> None:
    """`Error` is answered to the client with code and message, and the connection stays."""
    async with sdk(node, data={"name": "anna"}) as anna:
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        subscription = anna.new_subscription("room:secret")

        async def on_unsubscribed(ctx: Any) -> None:
            told.set_result(ctx)

        subscription.events.on_unsubscribed = on_unsubscribed
        await subscription.subscribe()
        ctx = await asyncio.wait_for(told, 10)
        assert (ctx.code, ctx.reason) == (403, "not your room")
        assert (await anna.rpc("greeting", None)).data == "hello anna"


async def test_rpc_errors(node: RunningNode) -> None:
    """An unknown method is 104; an exception is 100, counted, and the connection stays."""
    async with sdk(node, data={"name": "anna"}) as anna:
        assert await refused(anna.rpc("missing", None)) == 104
        assert await refused(anna.rpc("broken", None)) == 100
        assert await refused(anna.rpc("block", 7)) == 422
        assert (
            value(node, "handler_errors_total", event="rpc", namespace="broken", reason="exception")
            == 1
        )
        assert (await anna.rpc("greeting", None)).data == "hello anna"


async def test_a_blocked_thread_blocks_nobody(node: RunningNode) -> None:
    """Other clients are served while a handler blocks, which can publish from its thread."""
    async with sdk(node, data={"name": "anna"}) as anna, sdk(node, data={"name": "ben"}) as ben:
        _, heard = await subscribed(ben, "room:block")
        blocked = asyncio.create_task(anna.rpc("block", "x"))
        assert (await ben.rpc("greeting", None)).data == "hello ben"
        assert not blocked.done()
        realtime_guest.release.set()
        assert (await blocked).data == "x"
        await settled(lambda: heard.data == [{"text": "x"}], "it was published from the thread")


async def test_a_disconnect_is_told(node: RunningNode) -> None:
    """The handler gets the same client object as the others, with its state."""
    async with sdk(node, data={"name": "anna"}):
        pass
    await settled(lambda: realtime_guest.disconnected, "it is told")
    (event,) = realtime_guest.disconnected
    assert event.client.user == "anna"
    assert event.client.state == {"greeting": "hello anna"}
