"""A node drains because that is wanted of it or because it stops, and serves again when told to."""

import asyncio
import json
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lab.waiting import TIMEOUT, settled
from tests.support.clients import close_code, silent
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from wsfleet.cluster.node_state import NodeState
from wsfleet.redis import key_names
from wsfleet.redis.store import Store


async def want(store: Any, wish: str, node: str = "node1") -> None:
    """Say what is wanted of a node."""
    await store.hset(key_names.DESIRED, node, wish)


async def reached(node: RunningNode, state: NodeState) -> None:
    """Wait until the node is in a state."""
    await settled(lambda: node.node.drain.state is state, f"the node is {state.value}")


async def sent_away(node: RunningNode, clients: list[ClientConnection]) -> list[int | None]:
    """Close codes of all; not all went at once."""
    left_behind = []

    async def one(client: ClientConnection) -> int | None:
        code = await close_code(client)
        left_behind.append(len(node.node.hub))
        return code

    codes = await asyncio.gather(*(one(client) for client in clients))
    assert len(set(left_behind)) > 3, left_behind
    return codes


async def answers(client: ClientConnection) -> bool:
    """Whether a message of the client is still acknowledged."""
    await client.send("still here?")
    async with asyncio.timeout(TIMEOUT):
        while json.loads(await client.recv())["type"] != "ack":
            pass
    return True


def _is_away(store: Store) -> bool:
    return not store.connected


async def test_a_node_drains_when_that_is_wanted(start_node: StartNode, store: Any) -> None:
    """It is not ready, refuses handshakes, sends clients away bit by bit, and stays, drained."""
    node = await start_node(drain_rate=20)
    clients = [await node.connect() for _ in range(10)]
    await want(store, "drain")
    assert await sent_away(node, clients) == [1012] * 10
    await reached(node, NodeState.DRAINED)
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        ready = await http.get("/ready")
        health = (await http.get("/health")).json()
    assert (ready.status_code, ready.json()["reason"]) == (503, "drained")
    assert (health["status"], health["connections"]) == ("drained", 0)
    with pytest.raises(InvalidStatus) as refused:
        await node.connect()
    assert refused.value.response.status_code == 503

    async def registered() -> bool:
        return bool(await store.hget(key_names.node("node1"), "state") == "drained")

    await settled(registered, "the registry says so")
    assert [key async for key in store.scan_iter("connection:*")] == []


async def test_sdk_clients_are_asked_in_their_protocol(start_node: StartNode, store: Any) -> None:
    """A Centrifuge client gets 3001 (shutdown), which SDKs answer by reconnecting."""
    node = await start_node()
    url = node.url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, proxy=None) as client:
        await client.send('{"id":1,"connect":{}}')
        await client.recv()
        await want(store, "drain")
        assert await close_code(client) == 3001


async def test_the_first_client_to_come_is_the_first_to_go(
    start_node: StartNode, store: Any
) -> None:
    """Clients that have come last, from a node that was restarted before, leave last."""
    node = await start_node(drain_rate=20)
    clients = [await node.connect() for _ in range(10)]
    gone: list[int] = []

    async def leave(number: int) -> None:
        await close_code(clients[number])
        gone.append(number)

    await want(store, "drain")
    await asyncio.gather(*map(leave, range(10)))
    distances = [abs(place - number) for place, number in enumerate(gone)]
    assert max(distances) <= 4, gone  # a few are asked at once


async def test_a_drain_is_cancelled_in_the_middle(start_node: StartNode, store: Any) -> None:
    """Wanted to serve again it is ready, and who has not been sent away yet stays."""
    node = await start_node(drain_rate=5, drain_timeout=60)
    clients = [await node.connect() for _ in range(20)]
    await want(store, "drain")
    await settled(lambda: len(node.node.hub) < 18, "some were sent away")
    await want(store, "serve")
    await node.wait_ready()
    staying = 0
    for client in clients:
        with suppress(ConnectionClosed):
            staying += await answers(client)
        await client.close()
    assert 0 < staying < 20
    async with node.connect() as new:
        assert await answers(new)


async def test_a_drained_node_serves_again(start_node: StartNode, store: Any) -> None:
    """The same process is ready as soon as it is wanted, and drains once more."""
    node = await start_node()
    for _ in range(2):
        await want(store, "drain")
        await reached(node, NodeState.DRAINED)
        await want(store, "serve")
        await node.wait_ready()
        async with node.connect() as client:
            assert await answers(client)


async def test_the_balancers_see_it_before_clients_go(start_node: StartNode, store: Any) -> None:
    """For `drain_delay` seconds new clients are refused, and nobody is sent away."""
    node = await start_node(drain_delay=2.0)
    async with node.connect() as client:
        await want(store, "drain")
        await reached(node, NodeState.DRAINING)
        assert node.node.not_ready_reason() == "draining"
        assert await silent(client)
        assert await close_code(client) == 1012


async def test_without_clients_there_is_nothing_to_wait_for(
    start_node: StartNode, store: Any
) -> None:
    """An empty node is drained at once."""
    node = await start_node(drain_delay=600.0)
    await want(store, "drain")
    await reached(node, NodeState.DRAINED)


async def test_a_standby_waits_until_it_is_wanted(start_node: StartNode, store: Any) -> None:
    """It starts drained and serves only when told so."""
    node = await start_node(wait=False, standby=True)
    await settled(lambda: node.node.store.connected, "redis is there")
    await asyncio.sleep(0.3)
    assert node.node.not_ready_reason() == "drained"
    await want(store, "serve")
    await node.wait_ready()
    await store.hdel(key_names.DESIRED, "node1")
    await reached(node, NodeState.DRAINED)


async def test_a_drained_node_restarts_drained(start_node: StartNode, store: Any) -> None:
    """The wish outlives the process: the new one is never ready, not even for a moment."""
    first = await start_node(node_name="phoenix")
    await want(store, "drain", "phoenix")
    await reached(first, NodeState.DRAINED)
    await first.stop()
    second = await start_node(wait=False, node_name="phoenix")
    reasons = set()
    while second.node.drain.state is not NodeState.DRAINED:
        reasons.add(second.node.not_ready_reason())
        await asyncio.sleep(0)
    assert None not in reasons


async def test_without_redis_a_node_stays_as_it_is(
    start_node: StartNode, store: Any, redis_process: RedisServer
) -> None:
    """An outage neither drains nor undrains, and what is wanted is there after it."""
    drained, serving = await start_node(), await start_node()
    await want(store, "drain")
    await reached(drained, NodeState.DRAINED)
    async with serving.connect() as client:
        redis_process.stop()
        for away in (drained.node.store, serving.node.store):
            await settled(partial(_is_away, away), "the outage is noticed")
        await asyncio.sleep(0.3)
        assert drained.node.drain.state is NodeState.DRAINED
        assert serving.node.drain.state is NodeState.SERVING
        redis_process.start()
        await serving.wait_ready()
        await settled(lambda: drained.node.store.connected, "redis is back")
        assert drained.node.not_ready_reason() == "drained"
        assert await answers(client)


async def test_a_stopping_node_drains(start_node: StartNode, store: Any) -> None:
    """SIGTERM refuses new clients and sends the others away, whatever is wanted of the node."""
    node = await start_node(drain_rate=20)
    clients = [await node.connect() for _ in range(10)]
    stopping = asyncio.create_task(node.stop())
    await reached(node, NodeState.DRAINING)
    await want(store, "serve")
    assert await sent_away(node, clients) == [1012] * 10
    await stopping
    assert node.node.drain.state is NodeState.DRAINED
    assert [key async for key in store.scan_iter("connection:*")] == []
    assert await store.zrange(key_names.NODES, 0, -1) == []


async def test_a_drain_under_way_is_finished_by_a_stop(start_node: StartNode, store: Any) -> None:
    """SIGTERM in the middle of a drain goes on with it."""
    node = await start_node(drain_rate=20)
    clients = [await node.connect() for _ in range(10)]
    await want(store, "drain")
    await reached(node, NodeState.DRAINING)
    await node.stop()
    assert [await close_code(client) for client in clients] == [1012] * 10


async def test_a_drained_node_stops_at_once(start_node: StartNode, store: Any) -> None:
    """There is nothing to wait for."""
    node = await start_node(drain_delay=600.0)
    await want(store, "drain")
    await reached(node, NodeState.DRAINED)
    await node.stop()


async def test_a_late_handshake_is_sent_on(
    start_node: StartNode, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that was let in while the node became empty does not stay on it."""
    node = await start_node()
    await want(store, "drain")
    await reached(node, NodeState.DRAINED)
    monkeypatch.setattr(node.node, "refusal_reason", lambda: None)
    async with node.connect() as client:
        assert await close_code(client) == 1012


async def test_an_unknown_desired_state_is_ignored(start_node: StartNode, store: Any) -> None:
    """The node stays as it is."""
    node = await start_node()
    await want(store, "dance")
    await asyncio.sleep(0.3)
    assert node.node.not_ready_reason() is None
