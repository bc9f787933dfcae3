"""Ports of health checks: a real HAProxy is told, and says which servers were up by others."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).resolve().parents[1] / "modules" / "haproxy_check_ports.py"
CONFIG = """\
global
    stats socket {admin} level admin
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
backend nodes
    option httpchk GET /ready
    server n1 127.0.0.1:{port} check inter 100ms rise 1 fall 1
    server n2 127.0.0.1:9 check port 9 inter 100ms rise 1 fall 1
backend console
    option httpchk GET /ready
    server n1 127.0.0.1:{port} check inter 100ms rise 1 fall 1
"""


class Ready(BaseHTTPRequestHandler):
    """Answers 200."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a node that is ready."""
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def admin(tmp_path: Path, port: int) -> Iterator[Path]:
    """The admin socket of a HAProxy that has found n1 up and n2 down."""
    path, config = tmp_path / "admin.sock", tmp_path / "haproxy.cfg"
    config.write_text(CONFIG.format(admin=path, port=port))
    with subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", config]) as process:
        deadline = time.monotonic() + 20
        while not path.exists() or ",DOWN," not in ask(path, "show stat nodes 4 -1"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield path
        process.terminate()


def ask(path: Path, command: str) -> str:
    """Send one command to HAProxy."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def run(path: Path, ports: dict[str, int], *, check: bool = False) -> dict[str, Any]:
    """Run the module as Ansible does."""
    arguments = {"ports": ports, "socket": str(path), "_ansible_check_mode": check}
    done = subprocess.run(
        [sys.executable, MODULE],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    assert not result.get("failed"), result
    return {name: result[name] for name in ("changed", "up")}


def test_ports_are_set_in_all_backends(admin: Path, port: int) -> None:
    """Servers that were up by another port are reported; a second time none is left."""
    ports = {"n1": port + 1, "n2": 9, "n3": 9003}
    expected = {"changed": True, "up": ["n1"]}
    assert run(admin, ports, check=True) == expected
    assert run(admin, ports) == expected
    state = [line.split() for line in ask(admin, "show servers state").splitlines()]
    assert {(row[1], row[3]): row[-4] for row in state[2:] if row} == {
        ("nodes", "n1"): str(port + 1),
        ("nodes", "n2"): "9",
        ("console", "n1"): str(port + 1),
    }
    assert run(admin, ports) == {"changed": False, "up": []}


def test_the_servers_own_port_is_no_other_one(admin: Path, port: int) -> None:
    """A server without a port for checks is checked on its own."""
    assert run(admin, {"n1": port}) == {"changed": False, "up": []}


def test_a_server_that_is_down_is_not_up(admin: Path) -> None:
    """Nobody would miss it; its port is set all the same."""
    assert run(admin, {"n2": 9002}) == {"changed": True, "up": []}


def test_a_haproxy_that_does_not_run_is_no_error(tmp_path: Path) -> None:
    """It learns the ports from its file."""
    assert run(tmp_path / "none.sock", {"n1": 9001}) == {"changed": False, "up": []}
