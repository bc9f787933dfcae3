"""Run one peer with its Redis and HAProxy, and the load generator against it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from bench import machine
from bench.catalog import BUILT, HERE, PROGRAMS, Peer
from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process, tree
from lab.waiting import attempts

ROOT = HERE.parent
SERVER_CORE, GENERATOR_CORE = 0, 1
#: Seconds that a generator may run, and that a peer may take until its first delivery.
GENERATOR_TIMEOUT, START_TIMEOUT = 240, 20
#: Seconds that clients have to read their backlog after a pause.
CATCH_UP_SECONDS = 5
#: Connections that are opened at the same time.
CONCURRENT_CONNECTS = 64


class BenchError(Exception):
    """A measurement failed; the message has the reason."""


@dataclass(frozen=True)
class Shape:
    """The connections of a generator, spread evenly over rooms; publishers are additional."""

    subscribers: int
    publishers: int = 1
    rooms: int = 1

    @classmethod
    def of(cls, peer: Peer, subscribers: int, in_flight: int, rooms: int = 1) -> Shape:
        """Return a shape with as many publishers as the peer needs for the messages in flight."""
        needed = 1 if peer.pipelines else in_flight  # some read one publisher's messages in turn
        return cls(subscribers, math.ceil(needed / rooms) * rooms, rooms)


class Clients:
    """The connections of one generator."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process = process
        self._errors = errors
        self.connected = self._event()

    def measure(self, kind: str, n: float, seconds: float, pids: list[int]) -> dict[str, float]:
        """Take one measurement of client.c; `server` is the CPU seconds of the processes.

        Raises:
            BenchError: a message is missing, or a client was closed.

        """
        result = self._measure(kind, n, seconds, pids)
        if result["missing"] or result["closed"]:
            raise BenchError(f"{result['missing']} missing, {result['closed']} closed")
        return result

    def closed(self) -> int:
        """Return how many clients the server has closed, after they have read their backlog."""
        return int(self._measure("publish", 0, CATCH_UP_SECONDS, [])["closed"])

    def _measure(self, kind: str, n: float, seconds: float, pids: list[int]) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {n} {seconds}\n")
        self._process.stdin.flush()
        self._event()
        before = machine.cpu_seconds(pids)
        result = self._event()
        result["server"] = machine.cpu_seconds(pids) - before
        return result | self._event()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the generator: its clients stay connected and read nothing."""
        pids = tree(self._process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _event(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise BenchError(self._errors.read().strip() or "the generator was killed")
        event: dict[str, Any] = json.loads(line)
        del event["event"]
        return event


def redis_server(port: int, directory: Path) -> list[str]:
    """Return a command with the role's persistence: an append-only file, synced every second."""
    command = [str(PROGRAMS / "redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    return [*command, "--dir", str(directory), "--appendonly", "yes", "--save", ""]


class Rig:
    """A running peer, as one process or several nodes, with its Redis."""

    def __init__(self, peer: Peer, stack: ExitStack, nodes: int = 1) -> None:
        self.peer = peer
        self._stack = stack
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self._roots: list[int] = []
        redis = self._redis() if "{redis}" in " ".join(_texts(peer)) else 0
        self.ports = [self._node(redis) for _ in range(nodes)]
        _wait_for_delivery(self)

    @property
    def pids(self) -> list[int]:
        """All processes of the nodes, including those started later."""
        return [pid for root in self._roots for pid in tree(root)]

    @contextlib.contextmanager
    def clients(
        self, shape: Shape, ports: list[int] | None = None, **other: Any
    ) -> Iterator[Clients]:
        """Connect clients, and close them at the end; `other` replaces attributes of the peer.

        Raises:
            BenchError: a client could not connect.

        """
        command = _client_command(replace(self.peer, **other), shape, ports or self.ports)
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                machine.pinned(GENERATOR_CORE, command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                yield Clients(process, errors)
            finally:
                process.terminate()

    @contextlib.contextmanager
    def haproxy(self, section: str = "global", line: str = "") -> Iterator[tuple[int, int]]:
        """Run HAProxy with the role's configuration in front of the node; yield its PID and port.

        `line` is added to a section of the configuration, or replaces a line with another number.
        """
        port = free_port()
        file = self._directory / "haproxy.cfg"
        text = haproxy_config(
            {"node1": f"http://127.0.0.1:{self.ports[0]}"},
            port,
            free_port(),
            haproxy_websocket_rate=0,  # all clients come at once
        )
        # No health checks: only the product has /ready.
        text = re.sub(r"(?m)^( *server .*) check .*", r"\1", text)
        text = re.sub(rf"(?m)^ *{re.escape(line.rpartition(' ')[0])} \d.*\n", "", text)
        file.write_text(re.sub(rf"(?m)^{section}$", rf"\g<0>\n    {line}", text, count=1))
        command = machine.pinned(SERVER_CORE, [HAPROXY_PROGRAM, "-db", "-f", str(file)])
        with process(command, self._directory / "haproxy.log", port=port) as haproxy:
            yield haproxy.pid, port

    def _start(self, command: list[str], core: int, port: int, environment: dict[str, str]) -> int:
        log = self._directory / f"{port}.log"
        child = process(machine.pinned(core, command), log, environment, port=port)
        return self._stack.enter_context(child).pid

    def _redis(self) -> int:
        port = free_port()
        # On the generator's core, since Redis is not measured.
        self._start(redis_server(port, self._directory), GENERATOR_CORE, port, {})
        return port

    def _node(self, redis: int) -> int:
        port = free_port()
        words = {
            "port": port,
            "redis": redis,
            "other_port": free_port(),
            "directory": self._directory,
            "config": self._directory / "config",
        }

        if self.peer.config:
            text = (HERE / "peers" / self.peer.config).read_text()
            (self._directory / "config").write_text(fill(text, words))
        environment = {name: fill(value, words) for name, value in self.peer.environment.items()}
        command = [fill(word, words) for word in self.peer.command]
        self._roots.append(self._start(command, SERVER_CORE, port, environment))
        return port


def _texts(peer: Peer) -> list[str]:
    return [*peer.command, *peer.environment.values()]


def _client_command(peer: Peer, shape: Shape, ports: list[int]) -> list[str]:
    publisher = peer.publisher or peer.subscriber
    numbers = (shape.subscribers, shape.publishers, shape.rooms, CONCURRENT_CONNECTS)
    return [
        *("timeout", "--foreground", str(GENERATOR_TIMEOUT), str(BUILT / "client")),
        ",".join(map(str, ports)),
        *map(str, numbers),
        *(peer.subprotocol, peer.publish, peer.ack),
        *(*peer.subscriber.arguments, "--", *publisher.arguments),
    ]


def _wait_for_delivery(rig: Rig) -> None:
    """Wait until a message is delivered: a server that listens may not be ready yet.

    Raises:
        BenchError: no message was delivered in time.

    """
    problem: BenchError | None = None
    for _ in attempts(START_TIMEOUT, 0.2):
        try:
            with rig.clients(Shape(1)) as clients:
                clients.measure("rate", 50, 0.2, rig.pids)
                return
        except BenchError as error:
            problem = error
    assert problem is not None
    raise problem


def fill(text: str, words: Mapping[str, object]) -> str:
    """Replace each name in braces by its value."""
    return re.sub(r"\{(\w+)\}", lambda match: str(words[match[1]]), text)
