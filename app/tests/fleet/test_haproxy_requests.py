"""HAProxy as the role configures it: where requests go, what is repeated, counted and refused."""

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
    """Two nodes."""
    with servers(*NODES) as running:
        yield running


@pytest.fixture
def start(processes: None, tmp_path: Path, nodes: list[Server]) -> Iterator[Start]:
    """Start HAProxy before the two nodes, with variables of the role."""
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
    """GET, HEAD and handshakes that a node refuses or does not answer are served by the other."""
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
    """A node may have acted on a POST, PUT or DELETE before it failed: nobody gets it again."""
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
    """Where the connection is refused nothing was sent: every request gets to the other node."""
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
    """The files of a page are not counted: after many of them there is room for all handshakes."""
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
    """A node whose private port says that it is not ready gets no clients, its public one none."""
    front = start(haproxy_check_inter=1)
    until(lambda: {front.status(node) for node in nodes} == {"UP"}, "both nodes are up")
    nodes[0].ready = False
    until(lambda: front.status(nodes[0]) == "DOWN", "one node is out")
    assert {front.request().json()["server"] for _ in range(4)} == {NODES[1]}
    assert "GET /ready" not in nodes[0].requests + nodes[1].requests


PUBLIC = ["/ready", "/health", "/metrics", "/api/info", "/docs", "/console/", "/%6detrics", "/%zz"]


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_are_the_applications(start: Start, path: str) -> None:
    """Whatever a client asks for, and however it is spelt, goes to the public port, unchanged."""
    seen = start().request(path=path).json()
    assert (seen["port"], seen["path"]) == ("public", path)


def test_the_console_is_public_by_a_variable(start: Start) -> None:
    """It is at the private port of the client's own node, with the cookie; nothing else is."""
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
    """Their answers may be kept by caches, and any node gives them; others set the cookie."""
    front = start(haproxy_static_paths=["/static/", "/favicon.ico"])
    for path in ("/static/app.js", "/favicon.ico"):
        answers = [front.request(path=path) for _ in range(4)]
        assert {answer.json()["server"] for answer in answers} == set(NODES)
        for answer in answers:
            assert "Set-Cookie" not in answer.headers
            assert "Cache-Control" not in answer.headers
    assert "Set-Cookie" in front.request(path="/rooms/static/").headers


def test_large_bodies_are_refused(start: Start, nodes: list[Server]) -> None:
    """A body of more bytes than the variable says is 413, and no node gets it."""
    front = start(haproxy_max_body_size=100_000)
    assert front.request("POST", content=b"x" * 100_001).status_code == 413
    assert nodes[0].requests + nodes[1].requests == []
    assert front.request("POST", content=b"x" * 100_000).json()["body"] == 100_000


@pytest.mark.parametrize("http2", [True, False])
def test_http2_is_for_ordinary_requests(start: Start, nodes: list[Server], http2: bool) -> None:
    """By a variable curl gets HTTP/2, its cookie and its limits; by default it gets HTTP/1.1."""
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


async def test_websockets_stay_on_http1(tmp_path: Path) -> None:
    """On the port that speaks HTTP/2 they are served, and HTTP/2 clients are not offered them."""

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
