"""HAProxy as the role configures it: which requests are sent again, and which ones are counted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from lab.ports import free_port
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
    """Start HAProxy before the two nodes, or others, with variables of the role."""
    with ExitStack() as stack:

        def started(urls: dict[str, str] | None = None, **variables: object) -> Balancer:
            urls = urls or {node.name: node.url for node in nodes}
            return stack.enter_context(balancer(tmp_path, urls, **variables))

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
    front = start(
        {NODES[0]: nodes[0].url, NODES[1]: f"http://127.0.0.1:{free_port()}"},
        haproxy_check_fall=1000,  # it is not taken out
    )
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
