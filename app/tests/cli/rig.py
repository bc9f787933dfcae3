"""A whole fleet on free ports of this machine (Redis, nodes, HAProxy), and the command."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import RedisServer, free_port

HAPROXY_PROGRAM = shutil.which("haproxy", path="/usr/sbin:/usr/bin") or ""
COMMAND = [sys.executable, "-m", "wsfleet.cli"]
_START_TIMEOUT = 20.0  # seconds

HAPROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
    timeout check 2s
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response 503
frontend public
    bind 127.0.0.1:{public}
    default_backend nodes
backend nodes
    balance leastconn
    cookie WSNODE insert indirect nocache httponly maxlife 24h
    option httpchk
    http-check send meth GET uri /ready ver HTTP/1.1 hdr Host fleet
    default-server check inter 200ms rise 1 fall 2
{servers}
frontend stats
    bind 127.0.0.1:{stats}
    stats enable
    stats uri /stats
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON object on stdout; anything else fails."""
        document = json.loads(self.stdout)
        assert isinstance(document, dict)
        return document


def wsfleet(*args: object, **environment: str) -> Outcome:
    """Run the command line as an operator does: in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name != "WSFLEET_FLEET"}
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env=env | environment,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass
class Rig:
    """A running fleet."""

    folder: Path
    redis: RedisServer
    base_url: str
    stats_url: str
    stack: ExitStack
    environment: dict[str, str]
    nodes: dict[str, str] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def fleet_file(self) -> Path:
        """Its fleet file."""
        return self.folder / "fleet.json"

    @property
    def redis_url(self) -> str:
        """Where its Redis is."""
        return self.redis.url

    def start(self, name: str) -> None:
        """Start a node process, for the first time or again."""
        self.processes[name] = self.stack.enter_context(
            process(
                [*COMMAND, "serve"],
                self.folder / f"{name}.log",
                WSFLEET_PORT=self.nodes[name].rpartition(":")[2],
                WSFLEET_NODE_NAME=name,
                WSFLEET_REDIS_URL=self.redis_url,
                WSFLEET_DRAIN_DELAY="1",  # HAProxy looks often
                **self.environment,
            )
        )

    def kill(self, name: str) -> None:
        """Let a process vanish without a word, as after kill -9."""
        self.processes[name].kill()
        self.processes[name].wait()


@contextmanager
def process(
    command: list[str], log: Path, **environment: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server until the block ends."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def running_fleet(folder: Path, nodes: int = 2, **environment: str) -> Iterator[Rig]:
    """Run Redis, nodes and HAProxy, and yield once all nodes serve through it.

    `environment` is settings of the nodes.
    """
    assert HAPROXY_PROGRAM, "haproxy is not installed; scripts/test installs it"
    server = RedisServer(folder)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        public, stats = free_port(), free_port()
        base_url, stats_url = f"http://127.0.0.1:{public}", f"http://127.0.0.1:{stats}"
        rig = Rig(folder, server, base_url, stats_url, stack, environment)
        for number in range(1, nodes + 1):
            name, port = f"host{number}-8001", free_port()
            rig.nodes[name] = f"http://127.0.0.1:{port}"
            rig.start(name)
        servers = "\n".join(
            f"    server {name} {url.removeprefix('http://')} cookie {name}"
            for name, url in rig.nodes.items()
        )
        config = folder / "haproxy.cfg"
        config.write_text(HAPROXY.format(public=public, stats=stats, servers=servers))
        command = [HAPROXY_PROGRAM, "-db", "-f", str(config)]
        stack.enter_context(process(command, folder / "haproxy.log"))
        document = {
            "redis_url": server.url,
            "base_url": rig.base_url,
            "nodes": rig.nodes,
            "loadbalancers": {"lb1": rig.stats_url},
        }
        rig.fleet_file.write_text(json.dumps(document))
        until(lambda: _servers_up(rig) == len(rig.nodes), "all nodes are up behind HAProxy")
        yield rig


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds; fail after a while."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, httpx.TransportError):
            pass  # not up yet
        time.sleep(0.05)
    pytest.fail(f"not within {_START_TIMEOUT} s: {what}")


def _servers_up(rig: Rig) -> int:
    text = httpx.get(f"{rig.stats_url}/stats;csv", timeout=2, trust_env=False).text
    checked = [line for line in text.splitlines() if "L7OK" in line]
    return sum(",UP," in line for line in checked)
