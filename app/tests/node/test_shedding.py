"""A node sheds clients: they are asked to reconnect, and their next handshake is sent on."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from lab.waiting import settled
from tests.support.clients import centrifuge, close_code, exchange
from tests.support.nodes import RunningNode, StartNode
from wsfleet.broker import control
from wsfleet.broker.control import Shed
from wsfleet.node import shedding
from wsfleet.redis import key_names

FAST = 1000.0
Connect = Callable[..., Awaitable[ClientConnection]]


@pytest.fixture
async def node(start_node: StartNode) -> RunningNode:
    """Return a node."""
    return await start_node()


@pytest.fixture
async def connect(node: RunningNode) -> AsyncIterator[Connect]:
    """Return a function that connects a client with an address, as a balancer reports it."""
    async with AsyncExitStack() as stack:

        async def connected(address: str) -> ClientConnection:
            headers = {"X-Forwarded-For": address}
            return await stack.enter_async_context(node.connect(additional_headers=headers))

        yield connected


async def shed(node: RunningNode, count: int, keep: int = 0, rate: float = FAST) -> None:
    """Tell a node to shed, and wait until it has."""
    before = counted(node)
    message = control.encode(Shed(count, keep, rate))
    await node.node.broker.publish_control(message, node.settings.name)
    await settled(lambda: counted(node) > before and not node.node.shedding.left, "it has shed")


def counted(node: RunningNode) -> float:
    """Return the number of clients that a node has shed."""
    count: float = node.node.metrics.connections_shed._value.get()
    return count


async def refused(connect: Connect, address: str) -> bool:
    """Return whether a handshake from an address is refused with 503."""
    try:
        await connect(address)
    except InvalidStatus as answer:
        return answer.response.status_code == 503
    return False


async def test_a_node_sheds_the_clients_that_came_first(
    node: RunningNode, connect: Connect
) -> None:
    """As many as it is told, with the code after which clients reconnect; the others stay."""
    clients = [await connect(f"192.0.2.{number}") for number in range(6)]
    await shed(node, 2)
    assert [await close_code(client) for client in clients[:2]] == [1012] * 2
    assert (await exchange(clients[2], "still here?"))["type"] == "ack"
    for client in clients[3:]:
        assert json.loads(await asyncio.wait_for(client.recv(), 5))["data"] == "still here?"
    assert len(node.node.hub) == 4


async def test_a_node_keeps_its_share(node: RunningNode, connect: Connect) -> None:
    """Clients that left by themselves meanwhile are not shed a second time."""
    clients = [await connect(f"192.0.2.{number}") for number in range(5)]
    await shed(node, 4, keep=3)
    await settled(lambda: len(node.node.hub) == 3, "two are gone")
    await node.node.broker.publish_control(control.encode(Shed(4, 3, FAST)), "node1")
    assert (await exchange(clients[4], "still here?"))["type"] == "ack"
    assert len(node.node.hub) == 3


async def test_shed_clients_are_sent_on_once(node: RunningNode, connect: Connect) -> None:
    """The next handshake of a shed client is refused, the one after it is not, nor any other's."""
    for number in range(3):
        await connect(f"192.0.2.{number}")
    await shed(node, 2)
    assert not await refused(connect, "192.0.2.2")
    assert not await refused(connect, "198.51.100.1")
    for number in (0, 1):
        assert await refused(connect, f"192.0.2.{number}")
        assert not await refused(connect, f"192.0.2.{number}")


async def test_clients_of_one_address_are_counted(node: RunningNode, connect: Connect) -> None:
    """Of clients behind one address as many are sent on as were shed."""
    for _ in range(4):
        await connect("192.0.2.1")
    await shed(node, 2)
    assert [await refused(connect, "192.0.2.1") for _ in range(4)] == [True, True, False, False]


async def test_a_shed_client_that_stays_away_keeps_no_other_out(
    node: RunningNode, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while a handshake from its address is accepted."""
    monkeypatch.setattr(shedding, "RETURN_TIMEOUT", 0.0)
    await connect("192.0.2.1")
    await shed(node, 1)
    assert not await refused(connect, "192.0.2.1")


async def test_sdk_clients_are_asked_in_their_protocol(node: RunningNode) -> None:
    """A Centrifuge client gets 3001 (shutdown), and its next handshake 503."""
    async with centrifuge(node) as client:
        await client.send('{"id":1,"connect":{}}')
        await client.recv()
        await shed(node, 1)
        assert await close_code(client) == 3001
    with pytest.raises(InvalidStatus, match="503"):
        async with centrifuge(node):
            pass


async def test_clients_are_shed_at_a_rate(node: RunningNode, connect: Connect) -> None:
    """They do not go all at once; the registry has the number that is left."""
    clients = [await connect("192.0.2.1") for _ in range(8)]
    left = []

    async def one(client: ClientConnection) -> None:
        await close_code(client)
        left.append(node.node.shedding.left)

    waiting = asyncio.gather(*(one(client) for client in clients))
    await shed(node, 8, rate=20)
    await waiting
    assert len(set(left)) > 3, left


async def test_a_drain_ends_the_shedding(node: RunningNode, connect: Connect, store: Any) -> None:
    """A node that drains sheds no more: the drain sends all clients away."""
    for _ in range(4):
        await connect("192.0.2.1")
    await node.node.broker.publish_control(control.encode(Shed(4, 0, 1.0)), "node1")
    await settled(lambda: node.node.shedding.left > 0, "it sheds")
    await store.hset(key_names.DESIRED, "node1", "drain")
    await settled(lambda: not node.node.shedding.left and not node.node.hub, "it is empty")
    assert counted(node) < 4
    await node.node.broker.publish_control(control.encode(Shed(4, 0, FAST)), "node1")
    assert counted(node) < 4
