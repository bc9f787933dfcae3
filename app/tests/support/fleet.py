"""A whole fleet on free ports of this machine: Redis, nodes, HAProxy."""

import csv
import json
import selectors
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.certificates import make_certificate
from tests.support.command import COMMAND
from tests.support.redis import RedisServer


class Link(threading.Thread):
    """The network between one node and Redis: while it is `silent` not a byte passes.

    Nothing is refused and nothing is closed then, as where packets are dropped: what is sent waits.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.silent = False
        self._to = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://node:any@127.0.0.1:{self._server.getsockname()[1]}/0"
        self._peers: dict[socket.socket, socket.socket] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        """Pass on what comes, until `stop`."""
        with self._server, selectors.DefaultSelector() as self._selector:
            self._selector.register(self._server, selectors.EVENT_READ)
            while not self._ended.is_set():
                if self.silent:
                    self._ended.wait(0.05)
                    continue
                for key, _ in self._selector.select(0.1):
                    if key.fileobj is self._server:
                        self._accept()
                    elif key.fileobj in self._peers:  # not closed a moment ago
                        self._pass_on(key.fileobj)
            for connection in list(self._peers):
                connection.close()

    def stop(self) -> None:
        """Close all connections."""
        self._ended.set()
        self.join()

    def _accept(self) -> None:
        near, _ = self._server.accept()
        try:
            far = socket.create_connection(self._to)
        except OSError:  # Redis is down
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
            self._peers[source].sendall(data)
        except OSError:  # reset
            data = b""
        if not data:
            for end in (source, self._peers[source]):
                self._selector.unregister(end)
                del self._peers[end]
                end.close()


@dataclass
class Rig:
    """A running fleet."""

    folder: Path
    redis: RedisServer
    base_url: str
    tls_url: str
    stats_url: str
    stack: ExitStack
    environment: dict[str, str]
    standby: set[str] = field(default_factory=set)
    nodes: dict[str, str] = field(default_factory=dict)
    internal_ports: dict[str, int] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def certificate(self) -> Path:
        """Of all who speak TLS here, with its key."""
        return self.folder / "host.pem"

    @property
    def ca(self) -> Path:
        """The CA that one must trust to connect by TLS: the certificate signed itself."""
        return self.folder / "ca.pem"

    @property
    def fleet_file(self) -> Path:
        """Its fleet file."""
        return self.folder / "fleet.json"

    def operator_url(self, name: str) -> str:
        """Where operators ask a node: with an application at a port of its own."""
        url, _, port = self.nodes[name].rpartition(":")
        return f"{url}:{self.internal_ports.get(name, port)}"

    @property
    def redis_url(self) -> str:
        """Where its Redis is."""
        return self.redis.url

    def start(self, name: str) -> None:
        """Start a node process, for the first time or again."""
        environment = {
            "WSFLEET_PORT": self.nodes[name].rpartition(":")[2],
            "WSFLEET_NODE_NAME": name,
            "WSFLEET_REDIS_URL": self.links[name].url,
            "WSFLEET_HOSTS": str(self.fleet_file),
            "WSFLEET_DRAIN_DELAY": "1",  # HAProxy looks often
            "WSFLEET_STANDBY": str(name in self.standby),
        }
        if name in self.internal_ports:
            environment["WSFLEET_INTERNAL_PORT"] = str(self.internal_ports[name])
        node = process(
            [*COMMAND, "serve"], self.folder / f"{name}.log", environment | self.environment
        )
        self.processes[name] = self.stack.enter_context(node)

    def ready(self, name: str) -> int:
        """The status of a node's `/ready`."""
        return self._get(name, "/ready").status_code

    def connections(self, name: str) -> int:
        """How many WebSockets a node has."""
        number: int = self._get(name, "/health").json()["connections"]
        return number

    def _get(self, name: str, path: str) -> httpx.Response:
        trusted = ssl.create_default_context(cafile=self.ca)
        return httpx.get(self.operator_url(name) + path, timeout=2, trust_env=False, verify=trusted)

    def freeze(self) -> None:
        """Stop all nodes from answering: their sockets stay open."""
        for node in self.processes.values():
            node.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for node in self.processes.values():
            node.send_signal(signal.SIGCONT)

    def kill(self, name: str) -> None:
        """Let a process vanish without a word, as after kill -9."""
        self.processes[name].kill()
        self.processes[name].wait()


@contextmanager
def running_fleet(
    folder: Path,
    nodes: int = 2,
    standby: int = 0,
    *,
    tls: bool = False,
    haproxy: Mapping[str, Any] | None = None,
    **environment: str,
) -> Iterator[Rig]:
    """Run Redis, nodes and HAProxy, and yield once all nodes serve through it.

    The last `standby` of the nodes do not; with `tls` the nodes speak it, as they do behind
    `fleet_tls`; `haproxy` is variables of the role, `environment` settings of all nodes.
    """
    assert HAPROXY_PROGRAM, "haproxy is not installed; scripts/test installs it"
    server = RedisServer(folder)
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop)
        public, public_tls, stats = free_port(), free_port(), free_port()
        base_url, stats_url = f"http://127.0.0.1:{public}", f"http://127.0.0.1:{stats}"
        tls_url = f"https://127.0.0.1:{public_tls}"
        rig = Rig(folder, server, base_url, tls_url, stats_url, stack, environment)
        hosts = [f"host{number}" for number in range(1, nodes + 1)]
        make_certificate(rig.ca, rig.certificate, *hosts)
        if tls:
            environment["WSFLEET_TLS_CERTIFICATE"] = str(rig.certificate)
        for number, host in enumerate(hosts, 1):
            name, port = f"{host}-8001", free_port()
            rig.nodes[name] = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            if "WSFLEET_APP" in environment:
                rig.internal_ports[name] = free_port()
            if number > nodes - standby:
                rig.standby.add(name)
            rig.links[name] = Link(server.port)
            rig.links[name].start()
            stack.callback(rig.links[name].stop)
            rig.start(name)
        config = folder / "haproxy.cfg"
        text = haproxy_config(
            rig.nodes,
            public,
            stats,
            public_tls,
            rig.certificate,
            internal_ports=rig.internal_ports,
            haproxy_console=True,
            _haproxy_ca=rig.ca,
            **(haproxy or {}),
        )
        config.write_text(text)
        command = [HAPROXY_PROGRAM, "-db", "-f", str(config)]
        stack.enter_context(process(command, folder / "haproxy.log"))
        document = {
            "redis_url": server.url_of("cli"),
            "base_url": rig.base_url,
            "nodes": {name: rig.operator_url(name) for name in rig.nodes},
            "loadbalancers": {"lb1": rig.stats_url},
            "ca": str(rig.ca) if tls else None,
        }
        rig.fleet_file.write_text(json.dumps(document))
        serving = nodes - standby
        until(lambda: servers_up(rig) == serving, "all nodes are up behind HAProxy")
        yield rig


def server_statuses(rig: Rig) -> dict[str, str]:
    """HAProxy's status of each node by its checks; "" for one that it has not checked yet."""
    text = httpx.get(f"{rig.stats_url}/stats;csv", timeout=2, trust_env=False).text
    rows = csv.DictReader(text.removeprefix("# ").splitlines())
    return {
        row["svname"]: row["status"] if "L" in row["check_status"] else ""  # L4..., L7...; INI
        for row in rows
        if row["pxname"] == "nodes" and row["svname"] in rig.nodes
    }


def servers_up(rig: Rig) -> int:
    """How many nodes HAProxy finds well."""
    return list(server_statuses(rig).values()).count("UP")
