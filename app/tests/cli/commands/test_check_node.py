"""``wsfleet check node``: nodes that answer, are drained, are mute or are not there."""

import asyncio
import json
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from lab.ports import free_port
from lab.waiting import settled, until
from tests.support import guest
from tests.support.command import wsfleet
from tests.support.fleet import Rig
from tests.support.metrics import value
from tests.support.nodes import StartNode
from tests.support.websocket_server import Serve
from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.commands.check_node import probe
from wsfleet.protocol.centrifuge.negotiation import PATH


def says(document: dict[str, object], status: HTTPStatus = HTTPStatus.OK) -> object:
    """Answer /ready with a document, and let everything else be a WebSocket."""

    def process(connection: ServerConnection, request: Request) -> Response | None:
        if request.path != "/ready":
            return None
        return connection.respond(status, json.dumps(document))

    return process


async def mute(connection: ServerConnection) -> None:
    """Take messages and say nothing."""
    async for _ in connection:
        pass


def test_a_node_that_serves(fleet: Rig) -> None:
    """It is ready and answers on a WebSocket: exit code 0; its clients hear nothing of it."""
    outcome = wsfleet("check", "node", fleet.nodes["host1-8001"], "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["ready"] is outcome.document["exchanged"] is True


async def test_a_node_that_wants_a_token_is_not_broken(
    start_node: StartNode, tmp_path: Path
) -> None:
    """The probe needs no token: its message is invalid before one is asked for."""
    (tmp_path / "closed.yml").write_text("client: {}\n")
    node = await start_node(config=tmp_path / "closed.yml")
    found = await probe(parse_url(node.url, PATH), parse_url(node.url), 5)
    assert found.ready
    assert found.exchanged
    assert found.problem is None


async def test_a_node_with_two_ports(start_node: StartNode) -> None:
    """`/ready` is asked on the internal one, a WebSocket is opened on the one for clients."""
    node = await start_node(internal_port=free_port())
    check = ("check", "node", node.client_url, "--timeout", 1, "--json")
    outcome = await asyncio.to_thread(wsfleet, *check, "--internal-url", node.url)
    assert outcome.code == 0, outcome
    assert outcome.document["ready"] is outcome.document["exchanged"] is True
    assert (await asyncio.to_thread(wsfleet, *check)).code == 1


@pytest.mark.parametrize(
    ("path", "code"), [("", 0), ("/", 0), ("/echo", 0), ("/ws", 0), ("/nowhere", 1)]
)
async def test_a_node_with_an_application(start_node: StartNode, path: str, code: int) -> None:
    """Without a path the application gets no client; with one, a client that sends nothing."""
    guest.ends.clear()
    node = await start_node(app="tests.support.guest:app")
    check = ("check", "node", node.client_url + path, "--timeout", 1, "--internal-url", node.url)
    outcome = await asyncio.to_thread(wsfleet, *check)
    assert outcome.code == code, outcome
    await settled(lambda: not node.node.hub, "the client has gone")
    ends = [1000] if path.strip("/") and not code else []
    await settled(lambda: [end for end, _ in guest.ends] == ends, "the application hears of it")
    assert value(node, "messages_received_total") == (not ends and not code)


def test_a_node_that_starts_is_waited_for(own_fleet: Rig) -> None:
    """The check tries until the time is over."""
    own_fleet.kill("host1-8001")
    assert wsfleet("check", "node", own_fleet.nodes["host1-8001"], "--timeout", 1).code == 1
    own_fleet.start("host1-8001")
    assert wsfleet("check", "node", own_fleet.nodes["host1-8001"]).code == 0


def test_a_drained_node_is_as_it_should_be(own_fleet: Rig) -> None:
    """It takes no clients because that is wanted: exit code 0, and no exchange is tried."""
    assert wsfleet("drain", "host1", "--fleet", own_fleet.fleet_file).code == 0
    outcome = wsfleet("check", "node", own_fleet.nodes["host1-8001"], "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["reason"] == "drained"
    assert outcome.document["exchanged"] is False


def test_a_node_without_redis_is_not_ready(own_fleet: Rig) -> None:
    """Its own reason is told: exit code 1."""
    own_fleet.redis.stop()
    url = own_fleet.nodes["host1-8001"]

    def told() -> bool:
        outcome = wsfleet("check", "node", url, "--timeout", 2, "--json")
        return outcome.code == 1 and "redis" in outcome.document["problems"][0]

    until(told, "the node is not ready, because of Redis")


async def test_a_node_that_only_looks_well_is_found(serve_websocket: Serve) -> None:
    """It says that it is ready, but no message is answered."""
    url = await serve_websocket(mute, process_request=says({"ready": True}))
    found = await probe(parse_url(url, PATH), parse_url(url), 5)
    assert found.ready
    assert not found.exchanged
    assert found.problem == "WebSocket: no answer within 3 s"
