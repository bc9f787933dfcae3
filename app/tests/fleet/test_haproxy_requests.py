"""HAProxy with the role's configuration: routes, retries, limits and refusals."""

import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from lab.ports import free_port
from lab.waiting import until
from tests.support.balancer import EMPTY, Balancer, Server, balancer, servers

WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
NODES = ("node1-8001", "node2-8001")
Start = Callable[..., Balancer]


@pytest.fixture
def nodes() -> Iterator[list[Server]]:
    """Return two nodes."""
    with servers(*NODES) as running:
        yield running


@pytest.fixture
def start(processes: None, tmp_path: Path, nodes: list[Server]) -> Iterator[Start]:
    """Return a function that starts HAProxy before the nodes with the role's variables."""
    with ExitStack() as stack:

        def started(**variables: object) -> Balancer:
            return stack.enter_context(balancer(tmp_path, nodes, **variables))

        yield started


def sticky(response: httpx.Response) -> dict[str, str]:
    """Return the headers that bring a client back to the node of this response."""
    return {"Cookie": response.headers["Set-Cookie"].partition(";")[0]}


@pytest.mark.parametrize("failure", [HTTPStatus.SERVICE_UNAVAILABLE, EMPTY])
@pytest.mark.parametrize(
    ("method", "headers"), [("GET", {}), ("HEAD", {}), ("GET", WEBSOCKET)], ids=str
)
def test_safe_requests_are_sent_to_another_node(
    start: Start, nodes: list[Server], failure: int, method: str, headers: dict[str, str]
) -> None:
    """The other node serves a GET, HEAD or handshake that one refuses or drops."""
    front = start()
    cookie = sticky(front.request())
    name = cookie["Cookie"].partition("=")[2].partition("|")[0]
    home, other = sorted(nodes, key=lambda node: node.name != name)
    home.status = failure
    nodes[0].requests.clear()
    nodes[1].requests.clear()
    response = front.request(method, "/page", headers=headers | cookie)
    assert response.status_code == HTTPStatus.OK
    assert set(home.requests) == {f"{method} /page"}
    assert other.requests == [f"{method} /page"]


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE),
        (EMPTY, HTTPStatus.BAD_GATEWAY),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"order", b"o" * 100_000], ids=len)
def test_other_requests_are_sent_once(
    start: Start, nodes: list[Server], failure: int, answer: int, method: str, body: bytes
) -> None:
    """A failed POST, PUT or DELETE is not repeated, since a node may have acted on it."""
    front = start()
    for node in nodes:
        node.status = failure
    response = front.request(method, "/orders", content=body)
    assert response.status_code == answer
    assert nodes[0].requests + nodes[1].requests == [f"{method} /orders"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_node_that_cannot_be_reached_costs_no_request(
    start: Start, nodes: list[Server], method: str
) -> None:
    """After a refused connection, every request goes to the other node."""
    nodes[1].url = f"http://127.0.0.1:{free_port()}"  # its checks go to the private port
    front = start()
    cookie = {"Cookie": f"WSNODE={NODES[1]}"}
    for _ in range(5):
        response = front.request(method, "/orders", headers=cookie, content=b"order")
        assert (response.status_code, response.json()["server"]) == (HTTPStatus.OK, NODES[0])
    assert nodes[0].requests == [f"{method} /orders"] * 5


HANDSHAKES = [
    ("GET", "/rooms/42", WEBSOCKET),
    ("GET", "/connection/sse", {}),
    ("POST", "/connection/http_stream", {}),
    ("GET", "/%63onnection/sse", {}),
]


@pytest.mark.parametrize("limit", ["haproxy_source_rate", "haproxy_websocket_rate"])
@pytest.mark.parametrize(("method", "path", "headers"), HANDSHAKES)
def test_limits_count_handshakes(
    start: Start, limit: str, method: str, path: str, headers: dict[str, str]
) -> None:
    """Many ordinary requests leave the limit of handshakes unchanged."""
    front = start(**{"haproxy_websocket_rate": 0, limit: 3})
    files = [front.request(path=f"/static/{number}.js").status_code for number in range(20)]
    assert files == [HTTPStatus.OK] * 20
    statuses = [front.request(method, path, headers=headers).status_code for _ in range(5)]
    refused = {
        "haproxy_source_rate": HTTPStatus.TOO_MANY_REQUESTS,
        "haproxy_websocket_rate": HTTPStatus.SERVICE_UNAVAILABLE,
    }[limit]
    assert statuses == [HTTPStatus.OK] * 3 + [refused] * 2
    assert front.request(path="/static/20.js").status_code == HTTPStatus.OK


def test_the_private_port_is_checked(start: Start, nodes: list[Server]) -> None:
    """A node that is not ready at its private port gets no clients."""
    front = start(haproxy_check_inter=1)
    until(lambda: {front.status(node) for node in nodes} == {"UP"}, "both nodes are up")
    nodes[0].ready = False
    until(lambda: front.status(nodes[0]) == "DOWN", "one node is out")
    assert {front.request().json()["server"] for _ in range(4)} == {NODES[1]}
    assert "GET /ready" not in nodes[0].requests + nodes[1].requests


PUBLIC = ["/ready", "/health", "/metrics", "/api/info", "/docs", "/console/", "/%6detrics", "/%zz"]


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_are_the_applications(start: Start, path: str) -> None:
    """Every path, in any spelling, reaches the public port unchanged."""
    seen = start().request(path=path).json()
    assert (seen["port"], seen["path"]) == ("public", path)


def test_the_console_is_public_by_a_variable(start: Start) -> None:
    """A variable opens the console of the client's own node, and no other path."""
    front = start(haproxy_console=True)
    first = front.request(path="/room")
    cookie = sticky(first)
    for path in ("/console", "/console/", "/console/api/cluster"):
        seen = front.request(path=path, headers=cookie).json()
        assert (seen["port"], seen["path"]) == ("private", path)
        assert seen["server"] == first.json()["server"]
        assert seen["headers"]["x-sticky-cookie"] == cookie["Cookie"]
    for path in ("/", "/consoles", "/c%6fnsole/", "/x/console/", "/metrics", "/ready"):
        seen = front.request(path=path, headers=cookie).json()
        assert (seen["port"], seen["path"]) == ("public", path)
        assert "x-sticky-cookie" not in seen["headers"]


def test_static_paths_have_no_cookie(start: Start) -> None:
    """Responses of static paths set no cookie, so that caches may store them."""
    front = start(haproxy_static_paths=["/static/", "/favicon.ico"])
    for path in ("/static/app.js", "/favicon.ico"):
        answers = [front.request(path=path) for _ in range(4)]
        assert {answer.json()["server"] for answer in answers} == set(NODES)
        for answer in answers:
            assert "Set-Cookie" not in answer.headers
            assert "Cache-Control" not in answer.headers
    assert "Set-Cookie" in front.request(path="/rooms/static/").headers


def test_large_bodies_are_refused(start: Start, nodes: list[Server]) -> None:
    """A body above the variable's size is 413, and reaches no node."""
    front = start(haproxy_max_body_size=100_000)
    assert front.request("POST", content=b"x" * 100_001).status_code == 413
    assert nodes[0].requests + nodes[1].requests == []
    assert front.request("POST", content=b"x" * 100_000).json()["body"] == 100_000


@pytest.mark.parametrize("http2", [True, False])
def test_http2_is_for_ordinary_requests(start: Start, nodes: list[Server], http2: bool) -> None:
    """A variable enables HTTP/2 with cookie and limits; the default is HTTP/1.1."""
    front = start(haproxy_http2=http2)
    command = ["curl", "--silent", "--show-error", "--http2", "--cacert", str(front.ca), "--data"]
    command += ["x" * 100_000, "--write-out", "\n%{http_version}", f"{front.tls_url}/orders"]
    for node in nodes:
        node.status = HTTPStatus.SERVICE_UNAVAILABLE
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    body, _, version = done.stdout.rpartition("\n")
    assert version == ("2" if http2 else "1.1")
    assert json.loads(body)["body"] == 100_000
    assert nodes[0].requests + nodes[1].requests == ["POST /orders"]


async def test_websockets_stay_on_http1(processes: None, tmp_path: Path) -> None:
    """A port with HTTP/2 serves WebSockets over HTTP/1.1, and does not offer them in HTTP/2."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.1.1", 0) as node:
        (port,) = {listening.getsockname()[1] for listening in node.sockets}
        with Server(NODES[0]).running("127.0.1.1") as checked, ExitStack() as stack:
            checked.url = f"http://127.0.1.1:{port}"
            front = stack.enter_context(balancer(tmp_path, [checked], haproxy_http2=True))
            trusted = ssl.create_default_context(cafile=front.ca)
            url = front.tls_url.replace("https", "wss")
            async with connect(f"{url}/ws", ssl=trusted, proxy=None) as client:
                await client.send("hello")
                assert await client.recv() == "hello"
            assert b"\x00\x08\x00\x00\x00\x01" not in http2_settings(front)


def http2_settings(front: Balancer) -> bytes:
    """Return the settings that an HTTP/2 client is told first (RFC 9113, section 6.5).

    ENABLE_CONNECT_PROTOCOL, which offers WebSockets, is setting 8 (RFC 8441, section 3).
    """
    context = ssl.create_default_context(cafile=front.ca)
    context.set_alpn_protocols(["h2"])
    address = urlsplit(front.tls_url)
    with (
        socket.create_connection((address.hostname, address.port)) as connection,
        context.wrap_socket(connection, server_hostname=address.hostname) as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        head = tls.recv(9)
        assert head[3] == 4  # SETTINGS
        return tls.recv(int.from_bytes(head[:3], "big"))
