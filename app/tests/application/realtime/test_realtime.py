"""A node with a `Realtime`: drain, held WebSockets, start, and the SDK of Centrifuge."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from lab.waiting import settled
from tests.support import realtime_guest
from tests.support.clients import close_code
from tests.support.command import wsfleet
from tests.support.nodes import RunningNode, StartNode
from tests.support.realtime_guest import realtime
from wsfleet.cluster.node_state import NodeState
from wsfleet.redis import key_names

GUEST = "tests.support.realtime_guest:realtime"


def opened(node: RunningNode, path: str, **options: Any) -> connect:
    """Open a WebSocket of the application."""
    return connect(node.client_url.replace("http", "ws") + path, proxy=None, **options)


# Drain.


async def test_on_drain_runs_before_clients_are_sent_away(node: RunningNode, store: Any) -> None:
    """Clients stay, and can go on, until the handler has ended."""
    realtime_guest.may_drain.clear()
    async with opened(node, "/echo") as client:
        await store.hset(key_names.DESIRED, "node1", "drain")
        await settled(lambda: realtime_guest.drains == ["begun"], "the handler runs")
        await client.send("still here")
        assert await client.recv() == "still here"
        assert node.node.drain.refuses
        realtime_guest.may_drain.set()
        assert await close_code(client) == 1012
    assert realtime_guest.drains == ["begun", "ended"]


async def test_on_drain_waits_until_the_balancers_know(
    start_node: StartNode, guest_config: Path, store: Any
) -> None:
    """In `drain_delay` clients go on, so nothing is saved that would be old when they leave."""
    node = await start_node(app=GUEST, config=guest_config, drain_delay=60.0)
    async with opened(node, "/echo") as client:
        await store.hset(key_names.DESIRED, "node1", "drain")
        await settled(lambda: node.node.drain.state is NodeState.DRAINING, "it drains")
        await client.send("still here")
        assert await client.recv() == "still here"
        assert realtime_guest.drains == []
        await store.hset(key_names.DESIRED, "node1", "serve")
        await node.wait_ready()
        assert realtime_guest.drains == []


async def test_on_drain_has_half_of_the_drain_timeout(
    start_node: StartNode, guest_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that hangs is cancelled, and clients are sent away all the same."""
    node = await start_node(app=GUEST, config=guest_config, drain_timeout=1.0)
    realtime_guest.may_drain.clear()
    async with opened(node, "/echo") as client:
        node.server.should_exit = True
        assert await close_code(client) == 1012
    assert realtime_guest.drains == ["begun"]
    assert "drain_preparation_timeout" in capsys.readouterr().out


async def test_a_held_websocket_is_sent_away_last(node: RunningNode, store: Any) -> None:
    """Others go first; a held one goes when its block has ended."""
    async with opened(node, "/hold") as held, opened(node, "/echo") as other:
        assert await held.recv() == "held"
        await store.hset(key_names.DESIRED, "node1", "drain")
        assert await close_code(other) == 1012
        assert node.node.drain.state is NodeState.DRAINING
        assert held.close_code is None
        realtime_guest.go_on.set()
        assert await held.recv() == "let go"
        assert await close_code(held) == 1012
    await settled(lambda: node.node.drain.state is NodeState.DRAINED, "it is drained")


async def test_a_held_websocket_goes_when_the_drain_timeout_is_over(
    start_node: StartNode, guest_config: Path
) -> None:
    """A block that does not end holds nobody up for longer than `drain_timeout`."""
    node = await start_node(app=GUEST, config=guest_config, drain_timeout=1.0)
    async with opened(node, "/hold") as held:
        assert await held.recv() == "held"
        node.server.should_exit = True
        assert await close_code(held) == 1012
    realtime_guest.go_on.set()


# Start.

UNKNOWN = """
from wsfleet import Publish, Realtime, Subscribe
realtime = Realtime()

@realtime.on_publish("typo")
async def say(event: Publish) -> None: ...

@realtime.on_subscribe("")
async def join(event: Subscribe) -> None: ...
"""
WRONG = """
from wsfleet import Realtime, Subscribe
realtime = Realtime()

@realtime.on_publish("")
async def say(event: Subscribe) -> None: ...
"""
INNER = """
from fastapi import FastAPI
from wsfleet import Realtime
app = FastAPI()
realtime = Realtime(app)
"""


CLAIMED = """
from wsfleet import Connect, Realtime
realtime = Realtime()

@realtime.on_connect
async def enter(event: Connect) -> None: ...
"""
PROXY = """
client: {proxy: {connect: {enabled: true, endpoint: "http://127.0.0.1:1/connect"}}}
"""
"""A proxy for the same event."""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (UNKNOWN, "realtime", "guest.py:5 guest.say: on_publish('typo'): the configuration has no"),
        (WRONG, "realtime", "write (event: Publish[Message]) instead of"),
        (INNER, "app", "guest:app is inside of a Realtime, whose handlers would be ignored: serve"),
        (CLAIMED, "realtime", "connect has two backends: remove its handler, or its proxy in the"),
    ],
)
@pytest.mark.parametrize("check", [["--check"], []], ids=["check", "serve"])
def test_mistakes_are_errors_at_start(
    tmp_path: Path, source: str, name: str, message: str, check: list[str]
) -> None:
    """`wsfleet serve`, with and without `--check`, names the mistake and exits with 3."""
    (tmp_path / "guest.py").write_text(source)
    (tmp_path / "wsfleet.yml").write_text(PROXY if source is CLAIMED else "")
    command = ("serve", f"guest:{name}", "--app-dir", str(tmp_path), *check)
    ended = wsfleet(*command, WSFLEET_CONFIG=str(tmp_path / "wsfleet.yml"))
    assert ended.code == 3
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


# Threads.


async def test_from_thread_needs_a_thread(node: RunningNode) -> None:
    """In an event loop it is an error, rather than a deadlock."""
    call = realtime.publish("room:1", 1)
    with pytest.raises(RuntimeError, match="await the call"):
        realtime.from_thread(call)
    position = await asyncio.to_thread(realtime.from_thread, realtime.publish("room:1", 1))
    assert position.offset == 1
