"""Measure the unit costs for scripts/capacity.py: CPU time of each part of a cluster."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench import machine
from bench.deploy import cloned, run
from bench.rig import BenchError, redis_server
from lab.ports import free_port
from lab.processes import process

#: The name of each part's process, the same on all machines.
PARTS = {"node": "wsfleet", "balancer": "haproxy", "redis": "redis-server"}
#: Three different loads: clients, messages a second of all together, seconds.
LOADS = ((30, 300, 10), (300, 50, 10), (1000, 1, 1))
ROUNDS = 5
#: Seconds until the clients of a load have disconnected, and for measuring the idle cluster.
DISCONNECT_SECONDS, IDLE = 3.0, 20.0
#: Receivers and publications, and bytes of each, for the cost of one receiver at Redis.
RECEIVERS, PUBLICATIONS, SIZE = 20, 5_000, 150


@dataclass(frozen=True)
class Counts:
    """The number of publications, deliveries and connects of a load."""

    publications: int
    deliveries: int
    connects: int

    @classmethod
    def of(cls, report: dict[str, Any]) -> Counts:
        """Read a report of `wsfleet load`; an acknowledgement counts as a delivery."""
        return cls(
            report["sent"], report["deliveries"] + report["acknowledged"], report["connected"]
        )


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Return the costs that fit counts to values best: least squares, by normal equations."""
    width = len(rows[0])
    table = [
        [sum(row[i] * row[j] for row in rows) for j in range(width)]
        + [sum(row[i] * value for row, value in zip(rows, values, strict=True))]
        for i in range(width)
    ]
    for i in range(width):
        table[i] = [cell / table[i][i] for cell in table[i]]
        for other in range(width):
            if other != i:
                factor = table[other][i]
                table[other] = [a - factor * b for a, b in zip(table[other], table[i], strict=True)]
    return [row[-1] for row in table]


def costs(
    counts: Sequence[Counts], used: Sequence[dict[str, float]], nodes: int, receiver: float
) -> dict[str, float]:
    """Return CPU microseconds by the names in scripts/capacity.py.

    `used` has the CPU seconds by part of each load. All `nodes` receive each publication;
    `receiver` is the cost, in microseconds, of sending it to one of them.
    """

    def fitted(part: str, rows: Sequence[Sequence[float]]) -> list[float]:
        return [cost * 1e6 for cost in fit(rows, [load[part] for load in used])]

    publication, delivery, connect = fitted(
        "node", [(nodes * c.publications, c.deliveries, c.connects) for c in counts]
    )
    # A balancer passes a client's own messages on like the others.
    passed, passed_connect = fitted(
        "balancer", [(c.deliveries + c.publications, c.connects) for c in counts]
    )
    # A client costs Redis CPU time when it connects and when it disconnects.
    added, moved = fitted("redis", [(c.publications, 2 * c.connects) for c in counts])
    return {
        "node-delivery": delivery,
        "node-publication": publication,
        "node-connect": connect,
        "balancer-delivery": passed,
        "balancer-connect": passed_connect,
        "redis-publication": added - nodes * receiver,
        "redis-receiver": receiver,
        "redis-connect": moved,
    }


def used_by(listing: str) -> dict[str, float]:
    """Return the CPU seconds so far by part, from `ansible`'s listing of each /proc/PID/stat."""
    found: dict[str, dict[str, float]] = {part: {} for part in PARTS}
    host = ""
    for line in listing.splitlines():
        if head := re.match(r"(\S+) \| ", line):
            host = head[1]
        for part, name in PARTS.items():
            if re.match(rf"\d+ \({name}\) ", line):
                found[part][host] = found[part].get(host, 0.0) + machine.used(line)
    if missing := [part for part, hosts in found.items() if not hosts]:
        raise BenchError(f"no process of {', '.join(missing)} is running")
    # The busiest Redis server is the primary; the others only replicate.
    most = max(found["redis"].values())
    return {part: sum(hosts.values()) for part, hosts in found.items()} | {"redis": most}


class Cluster:
    """The cluster of `inventory/local` in a clone."""

    def __init__(self, clone: Path) -> None:
        self._clone = clone
        self._fleet_file = clone / "inventory/local/.fleet.json"
        fleet = json.loads(self._fleet_file.read_text())
        self._url: str = fleet["base_url"]
        self.nodes = len(fleet["nodes"])
        before = self._used()
        time.sleep(IDLE)
        idle = self._since(before)
        self._idle = {part: idle[part] / idle["seconds"] for part in PARTS}

    def _used(self) -> dict[str, float]:
        """Return the CPU seconds by part, and `seconds` of the clock."""
        show = ("-m", "ansible.builtin.shell", "-a", "cat /proc/[0-9]*/stat 2>/dev/null; true")
        listing = run(self._clone, "ansible", "all", "--become", *show)
        return used_by(listing) | {"seconds": time.monotonic()}

    def _since(self, before: dict[str, float]) -> dict[str, float]:
        now = self._used()
        return {name: now[name] - before[name] for name in now}

    def load(self, clients: int, rate: int, seconds: int) -> tuple[Counts, dict[str, float]]:
        """Run a load; return its counts and its CPU seconds by part."""
        command = ["env", f"WSFLEET_FLEET={self._fleet_file}", "wsfleet", "load", self._url]
        command += [f"--clients={clients}", f"--rate={rate}", f"--duration={seconds}", "--json"]
        before = self._used()
        output = run(self._clone, *command)
        time.sleep(DISCONNECT_SECONDS)
        spent = self._since(before)
        used = {part: spent[part] - spent["seconds"] * self._idle[part] for part in PARTS}
        return Counts.of(json.loads(output)), used


def _listen(port: int, stop: threading.Event) -> None:
    """Subscribe to a channel with RECEIVERS connections, and discard what arrives."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(RECEIVERS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"SUBSCRIBE channel\r\n")
            selector.register(sock, selectors.EVENT_READ)
        while not stop.is_set():
            for key, _ in selector.select(0.1):
                key.fileobj.recv(65536)  # type: ignore[union-attr]


def receiver_cost() -> float:
    """Measure the CPU seconds of Redis for each further receiver of a publication."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        command = redis_server(port, Path(directory))
        log = Path(directory) / "log"
        pid = stack.enter_context(process(machine.pinned(0, command), log, port=port)).pid
        client = stack.enter_context(redis.Redis(port=port))

        def publish() -> float:
            before = machine.cpu_seconds([pid])
            for _ in range(PUBLICATIONS):
                client.publish("channel", b"x" * SIZE)
            return machine.cpu_seconds([pid]) - before

        alone = publish()
        stop = threading.Event()
        listener = threading.Thread(target=_listen, args=(port, stop))
        listener.start()
        stack.callback(listener.join)
        stack.callback(stop.set)
        deadline = time.monotonic() + 10
        while client.pubsub_numsub("channel")[0][1] < RECEIVERS:
            if time.monotonic() > deadline:
                raise BenchError("the receivers did not subscribe within 10 s")
        return (publish() - alone) / PUBLICATIONS / RECEIVERS


def rounds() -> Iterator[dict[str, Any]]:
    """Measure all costs of one cluster, ROUNDS times."""
    with cloned() as clone:
        run(clone, "scripts/up")
        cluster = Cluster(clone)
        for turn in range(ROUNDS):
            receiver = receiver_cost() * 1e6
            counts, used = zip(*(cluster.load(*load) for load in LOADS), strict=True)
            for name, microseconds in costs(counts, used, cluster.nodes, receiver).items():
                yield {"round": turn, "cost": name, "value": microseconds}
