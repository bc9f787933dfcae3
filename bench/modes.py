"""What is measured: each mode takes one number of a running peer, and says how it came about."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from bench import machine
from bench.catalog import Peer
from bench.rig import BenchError, Rig, Shape
from lab.processes import tree

Result = dict[str, Any]
MANY = 2000
FLYING = 16
SLOW = 100
#: Bytes of a message as it is delivered, at least, and what is held at most for one who does not
#: read: up to 4 MB by the kernel on a loopback, 8 MiB by the node, unless 10 seconds pass before.
MESSAGE, HELD = 160, 13_000_000


class Measure(Protocol):
    """Measures a peer with so many clients for so many seconds."""

    def __call__(self, rig: Rig, size: int, seconds: float) -> Result:
        """`value` is the mode's number."""


@dataclass(frozen=True)
class Mode:
    """How it is taken, and how it is shown; `sizes` are numbers of clients."""

    title: str
    unit: str
    measure: Measure
    sizes: tuple[int, ...] = (MANY,)
    more_is_better: bool = True
    #: Whether it makes sense only where there are rooms, where publishes are acknowledged, where
    #: clients that do not read are closed.
    rooms: bool = False
    acks: bool = False
    closes: bool = False

    def suits(self, peer: Peer) -> bool:
        """Whether the peer has what it is about."""
        wanted = ((self.rooms, peer.rooms), (self.acks, peer.ack), (self.closes, peer.closes))
        return all(there for needed, there in wanted if needed)


def per_cpu_second(result: Result, count: str) -> Result:
    """Add the mode's number: what was counted for each CPU second of the server.

    Raises:
        BenchError: it used none that could be measured.

    """
    if not result["server"]:
        raise BenchError("too short: the server used no measurable CPU time")
    return result | {"value": result[count] / result["server"]}


def cpu_microseconds(result: Result) -> Result:
    """Add what a delivery cost the server."""
    return result | {"value": result["server"] / result["deliveries"] * 1e6}


def _window(flying: int, rooms: int = 1) -> Measure:
    def measure(rig: Rig, size: int, seconds: float) -> Result:
        with rig.clients(Shape.of(rig.peer, size, flying, rooms)) as clients:
            return per_cpu_second(
                clients.measure("window", flying, seconds, rig.pids), "deliveries"
            )

    return measure


def _publish(rig: Rig, size: int, seconds: float) -> Result:
    """Each publisher has a room of its own, in which nobody listens."""
    with rig.clients(Shape(0, size, size)) as clients:
        return per_cpu_second(clients.measure("publish", size, seconds, rig.pids), "acks")


def _until_quiet(pids: list[int]) -> None:
    """Let the processes end what they were doing: closing connections is work as well."""
    deadline = time.monotonic() + 10
    used = machine.cpu_seconds(pids)
    while time.monotonic() < deadline:
        time.sleep(0.3)
        before, used = used, machine.cpu_seconds(pids)
        if used - before < 0.02:
            return


def _setup(rig: Rig, size: int, seconds: float) -> Result:
    """As many times as the seconds allow; what is left to do when they close does not count."""
    pids = rig.pids
    connected, used = 0, 0.0
    end = time.monotonic() + seconds
    while not connected or time.monotonic() < end:
        _until_quiet(pids)
        before = machine.cpu_seconds(pids)
        with rig.clients(Shape(size, 0)):
            used += machine.cpu_seconds(pids) - before
        connected += size
    return per_cpu_second({"connected": connected, "server": used}, "connected")


def kilobytes(rig: Rig, size: int, pids: list[int], ports: list[int]) -> Result:
    """What a connection adds once some were served: the first use of things is over."""
    with rig.clients(Shape(100, 0), ports):
        pass
    _until_quiet(pids)
    before = machine.memory(pids)
    with rig.clients(Shape(size, 0), ports):
        _until_quiet(pids)
        after = machine.memory(pids)
    return {"value": (after - before) / size / 1024}


def _memory(rig: Rig, size: int, seconds: float) -> Result:
    return kilobytes(rig, size, rig.pids, rig.ports)


def _half(rig: Rig, size: int, seconds: float) -> Result:
    """Messages come at half the rate that the peer managed with 16 in flight."""
    with rig.clients(Shape.of(rig.peer, size, FLYING)) as clients:
        most = clients.measure("window", FLYING, seconds, rig.pids)
        rate = most["messages"] / most["seconds"] / 2
        result = clients.measure("rate", rate, seconds, rig.pids)
    return result | {"value": result["p99_ms"], "rate": rate}


def _idle(rig: Rig, size: int, seconds: float) -> Result:
    with rig.clients(Shape(size)) as clients:
        result = clients.measure("rate", 50, seconds, rig.pids)
    return result | {"value": result["p50_ms"]}


def _beside(rig: Rig, size: int, seconds: float) -> Result:
    """How many times as late they hear beside some who do not read, until those are closed.

    Messages come at an eighth of the rate that the peer managed with 16 in flight.
    """
    with rig.clients(Shape.of(rig.peer, size, FLYING)) as clients:
        most = clients.measure("window", FLYING, seconds, rig.pids)
        rate = most["messages"] / most["seconds"] / 8
        alone = clients.measure("rate", rate, 5 * seconds, rig.pids)
        with rig.clients(Shape(SLOW, 0)) as slow:
            with slow.stopped():
                result = clients.measure("rate", rate, HELD / MESSAGE / rate, rig.pids)
            if (closed := slow.closed()) < SLOW:
                raise BenchError(f"only {closed} of those who do not read are closed")
    ratio = result["p99_ms"] / alone["p99_ms"]
    return result | {"value": ratio, "rate": rate, "alone_p99_ms": alone["p99_ms"]}


def _haproxy(rig: Rig, size: int, seconds: float) -> Result:
    with (
        rig.haproxy() as (pid, port),
        rig.clients(Shape.of(rig.peer, size, FLYING), [port]) as clients,
    ):
        return per_cpu_second(clients.measure("window", FLYING, seconds, tree(pid)), "deliveries")


def _haproxy_memory(rig: Rig, size: int, seconds: float) -> Result:
    with rig.haproxy() as (pid, port):
        return kilobytes(rig, size, tree(pid), [port])


_DELIVERIES = "deliveries per CPU second"
MODES = {
    # The first: what a process has once taken for connections, it does not give back.
    "memory": Mode("memory of an idle connection", "KB", _memory, more_is_better=False),
    "setup": Mode("connections set up", "connections per CPU second", _setup),
    "one": Mode("one message in flight", _DELIVERIES, _window(1), (500, MANY)),
    "sixteen": Mode("16 in flight", _DELIVERIES, _window(FLYING), (500, MANY)),
    "rooms": Mode("200 rooms of 10, 16 in flight", _DELIVERIES, _window(FLYING, 200), rooms=True),
    "publish": Mode(
        "acknowledged publishes, 64 in flight",
        "publishes per CPU second",
        _publish,
        (64,),
        acks=True,
    ),
    "half": Mode("p99 at half of the maximum", "ms", _half, more_is_better=False),
    "idle": Mode("p50 at 50 messages a second", "ms", _idle, (1,), more_is_better=False),
    "beside": Mode(
        f"200 clients' p99 beside {SLOW} who do not read",
        "times the p99 without them",
        _beside,
        (200,),
        more_is_better=False,
        closes=True,
    ),
    "haproxy": Mode(
        "through HAProxy, 16 in flight", "deliveries per CPU second of HAProxy", _haproxy, (500,)
    ),
    "haproxy-memory": Mode(
        "HAProxy's memory of an idle connection", "KB", _haproxy_memory, more_is_better=False
    ),
}
