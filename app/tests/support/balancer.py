"""HAProxy as the role configures it, before servers that record what reaches them."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

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
    """A server that records requests, and answers them as it was told to; `/ready` is not recorded.

    Its answer is JSON: the server's name, method, path and headers of the request.
    """

    name: str
    status: int = HTTPStatus.OK
    ready: bool = True
    requests: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self, address: str) -> Iterator["Server"]:
        """Run the server on a free port of an address until the block ends."""
        with _HTTPServer((address, 0), self._handler()) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            self.url = f"http://{address}:{server.server_address[1]}"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        config = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = config.status
                if self.path == "/ready":
                    status = HTTPStatus.OK if config.ready else HTTPStatus.SERVICE_UNAVAILABLE
                else:
                    config.requests.append(f"{self.command} {self.path}")
                if status == EMPTY:
                    self.close_connection = True
                    return
                seen = {
                    "server": config.name,
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


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy."""

    url: str
    tls_url: str
    stats_url: str
    admin_socket: Path
    ca: Path

    def request(self, method: str = "GET", path: str = "/", **options: Any) -> httpx.Response:
        """Send a request on a connection of its own."""
        return httpx.request(method, self.url + path, timeout=10, trust_env=False, **options)


@contextmanager
def balancer(folder: Path, nodes: dict[str, str], **variables: Any) -> Iterator[Balancer]:
    """Run HAProxy with variables of the role before nodes, given by name and URL."""
    folder.mkdir(exist_ok=True)
    port, tls_port, stats = free_port(), free_port(), free_port()
    certificate = folder / "host.pem"
    make_certificate(folder / "ca.pem", certificate)
    text = haproxy_config(nodes, port, stats, tls_port, certificate, **variables)
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
