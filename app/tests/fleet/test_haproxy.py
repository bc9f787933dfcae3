"""HAProxy with the role's configuration behind a proxy: PROXY protocol, cookie, challenges."""

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.balancer import Answer
from tests.support.certificates import make_certificate

PROXY, STRANGER = "127.0.0.2", "127.0.0.3"
CHALLENGE = "/.well-known/acme-challenge/token"


@dataclass(frozen=True)
class Front:
    """A running HAProxy, its ports, and its log."""

    port: int
    tls_port: int
    log: Path

    def get(
        self,
        path: str = "/",
        *,
        first: bytes = b"",
        source: str = "127.0.0.1",
        proto: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """Send a GET; `first` are bytes before it, `proto` is the proxy's X-Forwarded-Proto."""
        port = self.tls_port if tls else self.port
        with ExitStack() as stack:
            connection = socket.create_connection(("127.0.0.1", port), 10, (source, 0))
            stack.callback(connection.close)
            if tls:
                connection.sendall(first)
                first = b""
                connection = tls.wrap_socket(connection, server_hostname="127.0.0.1")
                stack.callback(connection.close)
            header = f"X-Forwarded-Proto: {proto}\r\n" if proto else ""
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n"
            connection.sendall(first + head.encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            return Answer(response.status, response.headers, response.read())

    def cookie(self, proto: str = "") -> str:
        """Return the cookie that the first answer sets."""
        value = self.get(proto=proto).headers["Set-Cookie"]
        assert value.startswith("WSNODE=")
        return str(value)


@contextmanager
def server(address: str, port: int, status: int = 200) -> Iterator[str]:
    """Run a server that answers each request with a status and its view; yield its URL.

    With status 0 it closes instead, as certbot does for an unknown token.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not status:
                return
            forwarded = self.headers.get_all("X-Forwarded-For", [])
            seen = {"server": address, "path": self.path, "for": forwarded}
            body = json.dumps(seen).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a health check has what it wants
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Discard the message, which would go to standard error."""

    with http.server.ThreadingHTTPServer((address, port), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://{address}:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()


Start = Callable[..., Front]


@pytest.fixture
def start(processes: None, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts HAProxy with variables of the role before two nodes."""
    with ExitStack() as stack:
        nodes = {
            f"node{number}-8001": stack.enter_context(server(f"127.0.1.{number}", 0))
            for number in (1, 2)
        }

        def started(*, tls: bool = False, **variables: Any) -> Front:
            port, tls_port, stats = free_port(), free_port(), free_port()
            certificate = tmp_path / "both.pem"
            if tls:
                make_certificate(tmp_path / "ca.pem", certificate)
            text = haproxy_config(
                nodes, port, stats, tls_port, certificate if tls else None, **variables
            )
            config, log = tmp_path / f"{port}.cfg", tmp_path / f"{port}.log"
            config.write_text(f"global\n    log stdout format raw local0\n\n{text}")
            command = [HAPROXY_PROGRAM, "-db", "-f", str(config)]
            stack.enter_context(process(command, log))
            front = Front(port, tls_port, log)
            until(lambda: front.get("/balancer").status == 200, "it has started")
            return front

        yield started


def version_1(client: str) -> bytes:
    """Return the PROXY protocol's text header for a client's address."""
    family = "TCP6" if ":" in client else "TCP4"
    return f"PROXY {family} {client} {client} 40000 80\r\n".encode()


def version_2(client: str) -> bytes:
    """Return the PROXY protocol's binary header for a client's address."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    address = socket.inet_pton(family, client)
    addresses = address + address + struct.pack("!HH", 40000, 80)
    kind = 0x21 if family == socket.AF_INET6 else 0x11
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, kind, len(addresses)) + addresses


@pytest.mark.parametrize("client", ["203.0.113.9", "2001:db8::9"])
@pytest.mark.parametrize("header", [version_1, version_2])
def test_the_clients_address_is_the_proxys_word(
    start: Start, header: Callable[[str], bytes], client: str
) -> None:
    """Nodes and log get the header's address, in both versions and families."""
    front = start(haproxy_accept_proxy=[f"{PROXY}/32"])
    answer = front.get("/of-a-client", first=header(client), source=PROXY)
    assert (answer.status, answer.seen["for"]) == (200, [client])

    def logged() -> bool:
        lines = [line for line in front.log.read_text().splitlines() if "/of-a-client" in line]
        return len(lines) == 1 and lines[0].startswith(f"{client}:40000 ")

    until(logged, "it is in the log")


def test_the_header_is_before_tls(start: Start, tmp_path: Path) -> None:
    """The header may precede TLS, as a proxy in TCP mode sends it."""
    front = start(tls=True, haproxy_accept_proxy=[PROXY])
    trusted = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    answer = front.get(first=version_2("203.0.113.9"), source=PROXY, tls=trusted)
    assert answer.seen["for"] == ["203.0.113.9"]
    assert "Secure" in answer.headers["Set-Cookie"]


def test_only_the_proxy_sends_the_proxy_header(start: Start) -> None:
    """Only the proxy may send the header; other clients are served without it."""
    front = start(haproxy_accept_proxy=[PROXY, "2001:db8::/32"])
    for header in (version_1("203.0.113.9"), version_2("203.0.113.9")):
        assert front.get(first=header, source=STRANGER).status == 400
        assert front.get(first=header).status == 400
    assert front.get(source=STRANGER).seen["for"] == [STRANGER]
    assert front.get("/balancer").status == 200  # as keepalived asks
    without = start()
    assert without.get(first=version_1("203.0.113.9"), source=PROXY).status == 400


def test_the_proxys_own_checks_are_its_own(start: Start) -> None:
    """The command LOCAL of version 2 keeps the proxy's own address."""
    front = start(haproxy_accept_proxy=[PROXY])
    local = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20, 0, 0)
    assert front.get("/balancer", first=local, source=PROXY).status == 200
    assert front.get(first=local, source=PROXY).seen["for"] == [PROXY]


def test_the_proxy_must_send_the_proxy_header(start: Start) -> None:
    """A request of the proxy without the header is refused."""
    front = start(haproxy_accept_proxy=[PROXY])
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        front.get(source=PROXY)


def test_limits_are_of_the_client_behind_the_proxy(start: Start) -> None:
    """The handshake limit holds for each client behind the proxy."""
    front = start(haproxy_accept_proxy=["127.0.0.0/8"], haproxy_source_rate=5)

    def status(client: str) -> int:
        return front.get("/connection/sse", first=version_2(client), source=PROXY).status

    assert [status("203.0.113.9") for _ in range(7)] == [200] * 5 + [429] * 2
    assert status("203.0.113.10") == 200


def test_nodes_get_clients_by_their_weight(start: Start) -> None:
    """A node of weight 3 gets three of four new clients."""
    front = start(weights={"node1-8001": 3}, haproxy_balance="roundrobin", haproxy_slowstart=0)
    seen = [front.get().seen["server"] for _ in range(40)]
    assert 28 <= seen.count("127.0.1.1") <= 32, seen


def test_stickiness_by_source_is_of_the_client_behind_the_proxy(start: Start) -> None:
    """Each client behind the proxy keeps its node, and both nodes have clients."""
    front = start(haproxy_accept_proxy=[PROXY], haproxy_stickiness="source")

    def node(client: str) -> str:
        return str(front.get(first=version_1(client), source=PROXY).seen["server"])

    clients = [f"203.0.113.{number}" for number in range(1, 33)]
    nodes = {client: node(client) for client in clients}
    assert set(nodes.values()) == {"127.0.1.1", "127.0.1.2"}
    assert {client: node(client) for client in clients} == nodes


@pytest.mark.parametrize(
    ("variables", "plain", "forwarded"),
    [
        ({}, "SameSite=Lax", "SameSite=Lax; Secure"),
        ({"haproxy_cookie_samesite": "strict"}, "SameSite=Strict", "SameSite=Strict; Secure"),
        (
            {"haproxy_cookie_samesite": "none", "haproxy_cookie_secure": "true"},
            "SameSite=None; Secure",
            "SameSite=None; Secure",
        ),
        ({"haproxy_cookie_secure": "false"}, "SameSite=Lax", "SameSite=Lax"),
    ],
)
def test_the_cookie_behind_a_proxy_that_ends_tls(
    start: Start, variables: dict[str, str], plain: str, forwarded: str
) -> None:
    """The cookie is Secure as the proxy's header or the variable says; SameSite too."""
    front = start(**variables)

    def attributes(proto: str = "") -> set[str]:
        words = front.cookie(proto).split("; ")
        return {word for word in words if word.startswith(("SameSite", "Secure"))}

    assert attributes() == set(plain.split("; "))
    assert attributes("http") == set(plain.split("; "))
    assert attributes("HTTPS") == set(forwarded.split("; "))


def test_a_client_cannot_claim_tls_where_haproxy_knows_better(start: Start) -> None:
    """With a certificate, HAProxy ignores a plain client's X-Forwarded-Proto."""
    front = start(tls=True)
    assert "Secure" not in front.cookie("https")


def test_an_acme_challenge_reaches_its_client(start: Start) -> None:
    """A challenge reaches the ACME client that expects it, with and without TLS."""
    port = free_port()
    balancers = ("127.0.2.1", "127.0.2.2")
    redirect = {"haproxy_tls_redirect": True, "_haproxy_tls_redirection": "scheme https"}
    front = start(tls=True, haproxy_acme_port=port, balancers=balancers, **redirect)
    assert front.get().status == 308
    for asks, other in (balancers, balancers[::-1]):
        with server(asks, port):
            for _ in range(4):
                assert front.get(CHALLENGE).seen["server"] == asks
            for status in (404, 0):
                with server(other, port, status):
                    for _ in range(4):
                        answer = front.get(CHALLENGE)
                        assert (answer.status, answer.seen["server"]) == (200, asks)
                        assert answer.seen["path"] == CHALLENGE


def test_an_acme_challenge_without_a_client_is_503(start: Start) -> None:
    """Without an ACME client a challenge is 503; other paths go to the nodes."""
    front = start(haproxy_acme_port=free_port(), balancers=("127.0.2.1",))
    answer = front.get(CHALLENGE)
    assert (answer.status, answer.body) == (503, b"No ACME client listens.")
    for path in ("/.well-known/other", "/x/.well-known/acme-challenge/token"):
        assert front.get(path).seen["path"] == path
    assert start().get(CHALLENGE).seen["server"] in ("127.0.1.1", "127.0.1.2")
