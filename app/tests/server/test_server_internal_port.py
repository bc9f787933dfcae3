"""A node with a port for clients and an internal one for balancers, monitoring and operators."""

import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from lab.ports import free_port
from lab.waiting import settled
from tests.support.certificates import make_certificate
from tests.support.clients import close_code
from tests.support.metrics import value
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import Peer
from wsfleet.cluster.node_state import NodeState
from wsfleet.config.settings import Settings
from wsfleet.redis import key_names
from wsfleet.server.server import create_server

INTERNAL = ["/ready", "/health", "/metrics", "/docs", "/openapi.json", "/console/"]
INTERNAL += ["/console/api/cluster", "/api", "/api/info"]


@pytest.fixture
async def node(start_node: StartNode) -> RunningNode:
    """A node with two ports."""
    return await start_node(internal_port=free_port(), drain_delay=0.5)


async def status(base: str, path: str, **options: Any) -> int:
    """Ask for a path; return the answer's status."""
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        return (await client.get(path, **options)).status_code


async def test_operators_paths_are_on_the_internal_port_alone(node: RunningNode) -> None:
    """Clients get 404 for all of them but /health, which is the built-in application's own."""
    for path in INTERNAL:
        assert await status(node.url, path) in (200, 403, 405), path
        assert await status(node.client_url, path) == (200 if path == "/health" else 404), path


async def test_websockets_are_on_the_port_for_clients_alone(node: RunningNode) -> None:
    """Both protocols are served there; a handshake at the internal port is told where to go."""
    async with node.connect(), Peer(node):
        assert value(node, "connections", protocol="plain") == 1
        assert value(node, "connections", protocol="centrifuge") == 1
    for path in ("/ws", "/connection/websocket"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(node.url.replace("http", "ws") + path, proxy=None)
        response = refused.value.response
        assert response.status_code == 404
        assert str(node.settings.port) in response.body.decode()


async def test_a_key_raises_the_bound_of_a_body_on_the_internal_port_alone(
    start_node: StartNode, tmp_path: Path
) -> None:
    """Nothing on the port for clients has a use for the key."""
    (tmp_path / "config.yml").write_text("http_api: {key: secret}\n")
    node = await start_node(internal_port=free_port(), config=tmp_path / "config.yml")
    headers = {"X-API-Key": "secret"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        for base, expected in ((node.url, 400), (node.client_url, 413)):
            answer = await client.post(f"{base}/api/publish", content=b"[" * 100_000)
            assert answer.status_code == expected


async def test_the_internal_port_answers_during_the_drain(node: RunningNode) -> None:
    """Balancers hear 503 and monitoring is answered, until the last client is gone."""
    async with node.connect() as client:
        node.server.should_exit = True
        await settled(lambda: node.node.drain.state is NodeState.DRAINING, "it drains")
        assert await status(node.url, "/ready") == 503
        assert await status(node.url, "/metrics") == 200
        with pytest.raises(InvalidStatus) as refused:
            await node.connect()
        assert refused.value.response.status_code == 503
        assert await close_code(client) == 1012
    await node.stop()
    with pytest.raises(httpx.ConnectError):
        await status(node.url, "/ready")


async def test_the_internal_port_outlives_the_port_for_clients(start_node: StartNode) -> None:
    """An answer that is still due on the latter holds the process, and operators can see it."""
    node = await start_node(app="tests.support.guest:app")
    with socket.create_connection(("127.0.0.1", node.settings.port)) as slow:
        slow.sendall(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        await settled(lambda: node.server.server_state.connections, "it has begun")
        node.server.should_exit = True
        await settled(lambda: not node.server.servers[0].is_serving(), "it is closed")
        assert await status(node.url, "/ready") == 503


async def test_the_registry_has_the_internal_port(node: RunningNode, store: Any) -> None:
    """The registry has its URL, which is what the command line and the console use."""
    entry = await store.hgetall(key_names.node(node.settings.name))
    assert entry["url"] == f"http://127.0.0.1:{node.settings.internal_port}"


async def test_both_ports_speak_tls(start_node: StartNode, tmp_path: Path) -> None:
    """With one certificate."""
    make_certificate(tmp_path / "ca.pem", tmp_path / "host.pem")
    node = await start_node(internal_port=free_port(), tls_certificate=tmp_path / "host.pem")
    trusted = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
        assert (await client.get(f"{node.url}/ready")).status_code == 200
        assert (await client.get(f"{node.client_url}/health")).status_code == 200
    async with node.connect(ssl=trusted):
        pass


@pytest.mark.parametrize("taken", ["port", "internal_port"])
async def test_a_port_that_is_taken_ends_the_start(
    redis_server: str, store: Any, taken: str
) -> None:
    """Exit code 3, no entry in the registry, and the other port is free again."""
    ports: dict[str, Any] = {"port": free_port(), "internal_port": free_port()}
    with socket.create_server(("127.0.0.1", ports[taken])):
        settings = Settings(node_name="node1", redis_url=redis_server, **ports)
        with pytest.raises(SystemExit) as ended:
            await create_server(settings)._serve()
    assert ended.value.code == 3
    assert await store.keys(key_names.node("*")) == []
    for port in ports.values():
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_one_port_for_both_is_an_error() -> None:
    """The message names both variables."""
    with pytest.raises(ValueError, match=r"WSFLEET_INTERNAL_PORT .* is WSFLEET_PORT as well"):
        Settings(port=8001, internal_port=8001)
