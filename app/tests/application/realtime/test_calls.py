"""Calls of the server API from the application, on Redis and in memory."""

from typing import Any

import pytest
from pydantic import BaseModel

from lab.waiting import settled
from tests.support.nodes import RunningNode
from tests.support.peer import Peer
from tests.support.realtime_guest import realtime
from tests.support.tokens import token
from wsfleet import CallError, NodeInfo, Position, PresenceStats, Realtime

pytestmark = pytest.mark.backends("redis", "memory")


class Message(BaseModel):
    """Data of a publication."""

    text: str


async def test_publish_and_history(node: RunningNode) -> None:
    """Publications have positions, and the history has them in both orders."""
    first = await realtime.publish("room:1", {"text": "a"}, tags={"k": "v"})
    second = await realtime.publish("room:1", Message(text="b"))
    assert (first.offset, second.offset) == (1, 2)
    assert first.epoch == second.epoch != ""
    history = await realtime.history("room:1", limit=-1)
    assert [each.data for each in history.publications] == [{"text": "a"}, {"text": "b"}]
    assert history.publications[0].tags == {"k": "v"}
    assert history.publications[0].position == first
    assert history.position == second
    assert (await realtime.history("room:1")).publications == []
    newer = await realtime.history("room:1", limit=10, since=first)
    assert [each.position for each in newer.publications] == [second]
    newest = await realtime.history("room:1", limit=1, reverse=True)
    assert [each.position for each in newest.publications] == [second]
    await realtime.history_remove("room:1")
    assert (await realtime.history("room:1", limit=-1)).publications == []
    assert (await realtime.publish("room:1", "c")).offset == 3


async def test_publish_once_and_by_version(node: RunningNode) -> None:
    """An idempotency key publishes once; a version that is not above the last does not publish."""
    first = await realtime.publish("room:1", 1, idempotency_key="k")
    assert await realtime.publish("room:1", 1, idempotency_key="k") == first
    assert (await realtime.publish("room:1", 2, version=5)).offset == 2
    assert (await realtime.publish("room:1", 2, version=5)).offset == 2
    assert await realtime.publish("room:1", 3, skip_history=True) == Position()
    assert await realtime.publish("live:1", 3) == Position()


async def test_broadcast(node: RunningNode) -> None:
    """Each channel has its own result."""
    results = await realtime.broadcast(["room:1", "unknown:1", "room:2"], {"text": "x"})
    assert [isinstance(each, Position) for each in results] == [True, False, True]
    assert isinstance(results[1], CallError)
    assert (results[1].code, results[1].message) == (102, "unknown channel")
    with pytest.raises(TypeError, match=r"\['room:1'\]"):
        await realtime.broadcast("room:1", {"text": "x"})


async def test_one_client_is_no_list_of_clients(node: RunningNode) -> None:
    """Its letters would be the whitelist, and the client itself be disconnected."""
    with pytest.raises(TypeError, match=r"whitelist is a list of clients: \['abc'\]"):
        await realtime.disconnect("anna", whitelist="abc")


async def test_errors_are_those_of_the_server_api(node: RunningNode) -> None:
    """A call raises its error with code and message."""
    wrong: Any = {"a": 1}
    cases: list[tuple[Any, int, str]] = [
        (realtime.publish("unknown:1", 1), 102, "unknown channel"),
        (realtime.publish("", 1), 107, "channel name is empty"),
        (realtime.history("live:1"), 108, "no history"),
        (realtime.history("room:1", since=Position(1, "other")), 112, "another epoch"),
        (realtime.presence("live:1"), 108, "no presence"),
        (realtime.broadcast([], 1), 107, "channels is empty"),
        (realtime.subscribe("u", "room:1", override={"x": True}), 107, "override has x"),
        (realtime.subscribe("u", "room:1", expire_at=1), 107, "in the past"),
        (realtime.disconnect("u", code=1000), 107, "from 3000 to 4999"),
        (realtime.channels("["), 107, "pattern"),
        (realtime.publish("room:1", 1, tags=wrong), 107, "Expected `str`, got `int`"),
        (realtime.publish(wrong, 1), 107, "Expected `str | null`"),
        (realtime.disconnect("u", whitelist=[wrong]), 107, "Expected `str`"),
    ]
    for call, code, message in cases:
        with pytest.raises(CallError, match=message) as error:
            await call
        assert (error.value.code, error.value.temporary) == (code, False)
        assert str(error.value).startswith(f"{code}: ")
    with pytest.raises(ValueError, match="serialize"):
        await realtime.publish("room:1", object())


async def test_users_are_subscribed_unsubscribed_and_disconnected(node: RunningNode) -> None:
    """The calls reach the user's connections, with the options of the call."""
    async with Peer(node, token=token("ann")) as peer:
        await realtime.subscribe("ann", "room:1", info={"a": 1}, data={"b": 2})
        await settled(lambda: any(r.push for r in peer.replies), "it is subscribed")
        await settled(lambda: node.node.hub, "it is there")

        async def present() -> bool:
            return len(await realtime.presence("room:1")) == 1

        await settled(present, "it is present")
        ((client, info),) = (await realtime.presence("room:1")).items()
        assert (info.client, info.user, info.chan_info) == (client, "ann", {"a": 1})
        assert await realtime.presence_stats("room:1") == PresenceStats(1, 1)
        assert await realtime.channels("room:*") == {"room:1": 1}
        (described,) = await realtime.info()
        assert isinstance(described, NodeInfo)
        assert (described.name, described.num_clients, described.num_subs) == ("node1", 1, 1)
        await realtime.unsubscribe("ann", "room:1", client="another")
        await realtime.unsubscribe("ann", "room:1", client=client)

        async def absent() -> bool:
            return await realtime.channels("room:*") == {}

        await settled(absent, "it is not subscribed any more")
        await realtime.disconnect("ann", whitelist=[client])
        await realtime.disconnect("ann", code=4002, reason="enough")
        await settled(lambda: peer.close_code == 4002, "it is disconnected")


async def test_without_a_node_calls_are_an_error() -> None:
    """The error says how to run the application."""
    alone = Realtime()
    with pytest.raises(RuntimeError, match="run `wsfleet serve MODULE:NAME`"):
        await alone.publish("room:1", 1)
    with pytest.raises(RuntimeError, match="no node serves this Realtime"):
        await anext(aiter(alone.listen("room:1")))


async def test_calls_end_with_the_node(node: RunningNode) -> None:
    """After the node has stopped, calls are an error again."""
    await node.stop()
    with pytest.raises(RuntimeError, match="no node serves this Realtime"):
        await realtime.publish("room:1", 1)
