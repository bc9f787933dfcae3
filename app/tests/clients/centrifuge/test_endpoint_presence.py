"""Presence is renewed for the clients that are connected, even if others leave meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lab.waiting import TIMEOUT, settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import Peer
from wsfleet.channels.publication import Member
from wsfleet.protocol.centrifuge.messages import UnsubscribeRequest

pytestmark = pytest.mark.backends("redis", "memory")

CONFIG = """
client:
  allow_anonymous_connect_without_token: true
  presence_update_interval: 0.1s
channel:
  without_namespace:
    presence: true
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
"""


@pytest.fixture
async def node(start_node: StartNode, tmp_path: Path) -> RunningNode:
    """A node that renews presence ten times a second."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return await start_node(config=path)


class Gate:
    """Holds back what the node says of presence, as a Redis that answers late does."""

    def __init__(self, node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[str] = []
        self.open = asyncio.Event()
        self._join = node.node.broker.presence_add
        monkeypatch.setattr(node.node.broker, "presence_add", self._held)

    async def _held(self, channel: str, client: str, member: Member) -> None:
        self.waiting.append(channel)
        await self.open.wait()
        await self._join(channel, client, member)


async def present(store: Any, channel: str) -> bool:
    """Whether anybody is in a channel, in Redis."""
    return bool(await store.exists(f"wsfleet:presence:{{{channel}}}"))


@pytest.mark.parametrize("how", ["unsubscribes", "disconnects"])
async def test_a_renewal_does_not_restore_a_gone_client(
    node: RunningNode, store: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The renewal reaches Redis after the farewell, and is taken back."""
    async with Peer(node) as ann:
        await ann.subscribe("room")
        gate = Gate(node, monkeypatch)
        await settled(lambda: gate.waiting == ["room"], "a renewal is under way")
        if how == "unsubscribes":
            await ann.ask(UnsubscribeRequest("room"))
    async with asyncio.timeout(TIMEOUT):
        while await present(store, "room"):
            await asyncio.sleep(0.01)
    joined = asyncio.Event()
    gate._join, join = lambda *entry: _then(join(*entry), joined), gate._join
    gate.open.set()
    await joined.wait()

    async def away() -> bool:
        return not await present(store, "room")

    await settled(away, "nobody is there")


async def _then(work: Any, done: asyncio.Event) -> None:
    await work
    done.set()


async def test_a_renewal_round_skips_gone_clients(
    node: RunningNode, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client of the round's list is checked again when its turn comes."""
    monkeypatch.setattr("wsfleet.clients.centrifuge.endpoint.PRESENCE_CHUNK", 1)
    async with Peer(node) as ann:
        await ann.subscribe("first")
        await ann.subscribe("second")
        gate = Gate(node, monkeypatch)
        await settled(lambda: gate.waiting == ["first"], "the round waits for the first")
        await ann.ask(UnsubscribeRequest("second"))
        gate.open.set()
        await settled(lambda: gate.waiting.count("first") > 2, "further rounds have begun")
        assert "second" not in gate.waiting
        assert await present(store, "first")
        assert not await present(store, "second")


async def test_a_renewal_keeps_a_new_subscription(
    node: RunningNode, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal removes the old subscription's entry, not that of the new one."""
    async with Peer(node) as ann:
        await ann.subscribe("room")
        gate = Gate(node, monkeypatch)
        await settled(lambda: gate.waiting == ["room"], "a renewal is under way")
        await ann.ask(UnsubscribeRequest("room"))
        gate.open.set()
        await ann.subscribe("room")
        await settled(lambda: len(gate.waiting) > 4, "further rounds have begun")
        assert await present(store, "room")
