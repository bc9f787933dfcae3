"""HAProxy as the role configures it, before servers that record what reaches them."""

import contextlib
import csv
import http.client
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.certificates import make_certificate

EMPTY = 0
"""In place of a status: the server closes the connection without an answer."""


class _HTTPServer(http.server.ThreadingHTTPServer):
    """A server that reports no error of a connection: a health check may reset it."""

    def handle_error(self, *_: object) -> None:
        """Report nothing."""


@dataclass
class Server:
    """A server with a public port, where it records requests, and a private one with `/ready`.

    Its answer is JSON: its name, its port, and method, path, headers and size of the request.
    While it is not `ready`, `/ready` is 503.
    """

    name: str
    status: int = HTTPStatus.OK
    ready: bool = True
    requests: list[str] = field(default_factory=list)
    url: str = ""
    internal_port: int = 0

    @contextmanager
    def running(self, address: str) -> Iterator["Server"]:
        """Run the server on free ports of an address until the block ends."""
        with ExitStack() as stack:
            port = stack.enter_context(_listening(address, self._handler("public")))
            self.url = f"http://{address}:{port}"
            self.internal_port = stack.enter_context(_listening(address, self._handler("private")))
            yield self

    def _handler(self, port: str) -> type[http.server.BaseHTTPRequestHandler]:
        config = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = config.status
                if port == "public":
                    config.requests.append(f"{self.command} {self.path}")
                elif self.path == "/ready":
                    status = HTTPStatus.OK if config.ready else HTTPStatus.SERVICE_UNAVAILABLE
                if status == EMPTY:
                    self.close_connection = True
                    return
                seen = {
                    "server": config.name,
                    "port": port,
                    "method": self.command,
                    "path": self.path,
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "body": len(body),
                }
                text = json.dumps(seen).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a health check reads the status alone
                    if self.command != "HEAD":
                        self.wfile.write(text)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler


@contextmanager
def _listening(address: str, handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve on a free port of an address until the block ends."""
    with _HTTPServer((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Answer:
    """A response; its body is the server's view of the request as JSON, or HAProxy's text."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def seen(self) -> dict[str, Any]:
        """The server's view of the request."""
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy."""

    url: str
    tls_url: str
    stats_url: str
    admin_socket: Path
    ca: Path

    def status(self, node: Server) -> str:
        """Return a node's status at HAProxy, by a check: UP, DOWN, or one on its way there."""
        rows = csv.DictReader(self.admin("show stat").removeprefix("# ").splitlines())
        (row,) = [row for row in rows if (row["pxname"], row["svname"]) == ("nodes", node.name)]
        return row["status"] if row["check_status"].startswith(("L4", "L7")) else "unchecked"

    def admin(self, command: str) -> str:
        """Send a command to the admin socket; return the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.admin_socket))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        """Send a GET on a connection of its own."""
        address = urlsplit(self.url).netloc
        with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def request(self, method: str = "GET", path: str = "/", **options: Any) -> httpx.Response:
        """Send a request on a connection of its own."""
        return httpx.request(method, self.url + path, timeout=10, trust_env=False, **options)


@contextmanager
def balancer(folder: Path, nodes: list[Server], **variables: Any) -> Iterator[Balancer]:
    """Run HAProxy with variables of the role before nodes."""
    folder.mkdir(exist_ok=True)
    port, tls_port, stats = free_port(), free_port(), free_port()
    certificate = folder / "host.pem"
    make_certificate(folder / "ca.pem", certificate)
    urls = {node.name: node.url for node in nodes}
    internal_ports = {node.name: node.internal_port for node in nodes}
    text = haproxy_config(
        urls, port, stats, tls_port, certificate, internal_ports=internal_ports, **variables
    )
    config, admin = folder / "haproxy.cfg", folder / "admin.sock"
    config.write_text(f"global\n    stats socket {admin} level admin\n\n{text}")
    running = Balancer(
        f"http://127.0.0.1:{port}",
        f"https://127.0.0.1:{tls_port}",
        f"http://127.0.0.1:{stats}",
        admin,
        folder / "ca.pem",
    )
    with process([HAPROXY_PROGRAM, "-db", "-f", str(config)], folder / "haproxy.log"):
        until(lambda: running.request(path="/balancer").is_success, "HAProxy has started")
        yield running


@contextmanager
def servers(*names: str) -> Iterator[list[Server]]:
    """Run servers on addresses of their own."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(Server(name).running(f"127.0.1.{number}"))
            for number, name in enumerate(names, 1)
        ]
