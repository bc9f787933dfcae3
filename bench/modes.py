"""The modes: each measures one value of a running peer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from bench import machine
from bench.catalog import ClientScript, Peer
from bench.rig import BenchError, Rig, Shape
from lab.processes import tree

Result = dict[str, Any]
DEFAULT_CLIENTS = 2000
IN_FLIGHT = 16
ECHOED = "@@"
"""A part of each message of client.c."""
SLOW_CLIENTS = 100
#: The fewest bytes of a delivered message, and the most bytes that wait for a client that does not
#: read: up to 4 MB in the kernel on a loopback, and 8 MiB in the node, which waits at most 10 s.
MESSAGE_BYTES, BACKLOG_BYTES = 160, 13_000_000


class Measure(Protocol):
    """A measurement of a peer with `size` clients for `seconds` seconds."""

    def __call__(self, rig: Rig, size: int, seconds: float) -> Result:
        """Measure the peer; the result is in `value`."""


@dataclass(frozen=True)
class Mode:
    """A kind of measurement, its title and unit; `sizes` are numbers of clients."""

    title: str
    unit: str
    measure: Measure
    sizes: tuple[int, ...] = (DEFAULT_CLIENTS,)
    more_is_better: bool = True
    #: Whether the peer must have rooms, acknowledge publishes, close clients that do not read, or
    #: have a route that sends messages back; the kind of handler that it must have.
    rooms: bool = False
    acks: bool = False
    closes: bool = False
    echoes: bool = False
    calls: str = ""

    def suits(self, peer: Peer) -> bool:
        """Return whether the peer has everything that the mode needs."""
        needs = (
            (self.rooms, peer.rooms),
            (self.acks, peer.ack),
            (self.closes, peer.closes),
            (self.echoes, peer.echo),
            (self.calls, self.calls in peer.calls),
        )
        return all(there for needed, there in needs if needed)


def per_cpu_second(result: Result, count: str) -> Result:
    """Add `value`: the count divided by the server's CPU seconds.

    Raises:
        BenchError: the CPU time was too short to measure.

    """
    if not result["server"]:
        raise BenchError("too short: the server used no measurable CPU time")
    return result | {"value": result[count] / result["server"]}


def cpu_microseconds(result: Result) -> Result:
    """Add `value`: the server's CPU microseconds for a delivery."""
    return result | {"value": result["server"] / result["deliveries"] * 1e6}


def _window(in_flight: int, rooms: int = 1) -> Measure:
    def measure(rig: Rig, size: int, seconds: float) -> Result:
        with rig.clients(Shape.of(rig.peer, size, in_flight, rooms)) as clients:
            return per_cpu_second(
                clients.measure("window", in_flight, seconds, rig.pids), "deliveries"
            )

    return measure


def _publish(rig: Rig, size: int, seconds: float) -> Result:
    """Measure publishers with a room each and without subscribers."""
    with rig.clients(Shape(0, size, size)) as clients:
        return per_cpu_second(clients.measure("publish", size, seconds, rig.pids), "acks")


def _echo(rig: Rig, size: int, seconds: float) -> Result:
    """Measure messages that are sent back to their sender, one in flight for each client."""
    with rig.clients(Shape(0, size), publisher=ClientScript(rig.peer.echo), ack=ECHOED) as clients:
        return per_cpu_second(clients.measure("publish", size, seconds, rig.pids), "acks")


def _call(kind: str) -> Measure:
    def measure(rig: Rig, size: int, seconds: float) -> Result:
        """Measure calls of a handler that answers with their text, one in flight a client."""
        publish = rig.peer.calls[kind]
        with rig.clients(Shape(0, size), publish=publish, ack=ECHOED) as clients:
            return per_cpu_second(clients.measure("publish", size, seconds, rig.pids), "acks")

    return measure


def _wait_until_idle(pids: list[int]) -> None:
    """Wait until the processes are idle, since closing connections takes CPU time too."""
    deadline = time.monotonic() + 10
    used = machine.cpu_seconds(pids)
    while time.monotonic() < deadline:
        time.sleep(0.3)
        before, used = used, machine.cpu_seconds(pids)
        if used - before < 0.02:
            return


def _setup(rig: Rig, size: int, seconds: float) -> Result:
    """Connect clients repeatedly until the time is over; closing them does not count."""
    pids = rig.pids
    connected, used = 0, 0.0
    end = time.monotonic() + seconds
    while not connected or time.monotonic() < end:
        _wait_until_idle(pids)
        before = machine.cpu_seconds(pids)
        with rig.clients(Shape(size, 0)):
            used += machine.cpu_seconds(pids) - before
        connected += size
    return per_cpu_second({"connected": connected, "server": used}, "connected")


def kilobytes(rig: Rig, size: int, pids: list[int], ports: list[int]) -> Result:
    """Measure the memory of a connection, after some were served: first use allocates more."""
    with rig.clients(Shape(100, 0), ports):
        pass
    _wait_until_idle(pids)
    before = machine.memory(pids)
    with rig.clients(Shape(size, 0), ports):
        _wait_until_idle(pids)
        after = machine.memory(pids)
    return {"value": (after - before) / size / 1024}


def _memory(rig: Rig, size: int, seconds: float) -> Result:
    return kilobytes(rig, size, rig.pids, rig.ports)


def _half(rig: Rig, size: int, seconds: float) -> Result:
    """Measure latency at half the rate that the peer reached with 16 in flight."""
    with rig.clients(Shape.of(rig.peer, size, IN_FLIGHT)) as clients:
        most = clients.measure("window", IN_FLIGHT, seconds, rig.pids)
        rate = most["messages"] / most["seconds"] / 2
        result = clients.measure("rate", rate, seconds, rig.pids)
    return result | {"value": result["p99_ms"], "rate": rate}


def _idle(rig: Rig, size: int, seconds: float) -> Result:
    with rig.clients(Shape(size)) as clients:
        result = clients.measure("rate", 50, seconds, rig.pids)
    return result | {"value": result["p50_ms"]}


def _with_slow_clients(rig: Rig, size: int, seconds: float) -> Result:
    """Measure the p99 beside clients that do not read, divided by the p99 without them.

    The rate is an eighth of the one that the peer reached with 16 in flight.
    """
    with rig.clients(Shape.of(rig.peer, size, IN_FLIGHT)) as clients:
        most = clients.measure("window", IN_FLIGHT, seconds, rig.pids)
        rate = most["messages"] / most["seconds"] / 8
        alone = clients.measure("rate", rate, 5 * seconds, rig.pids)
        with rig.clients(Shape(SLOW_CLIENTS, 0)) as slow:
            with slow.stopped():
                result = clients.measure(
                    "rate", rate, BACKLOG_BYTES / MESSAGE_BYTES / rate, rig.pids
                )
            if (closed := slow.closed()) < SLOW_CLIENTS:
                raise BenchError(
                    f"the server closed only {closed} of {SLOW_CLIENTS} clients that do not read"
                )
    ratio = result["p99_ms"] / alone["p99_ms"]
    return result | {"value": ratio, "rate": rate, "alone_p99_ms": alone["p99_ms"]}


def _haproxy(rig: Rig, size: int, seconds: float) -> Result:
    with (
        rig.haproxy() as (pid, port),
        rig.clients(Shape.of(rig.peer, size, IN_FLIGHT), [port]) as clients,
    ):
        return per_cpu_second(
            clients.measure("window", IN_FLIGHT, seconds, tree(pid)), "deliveries"
        )


def _haproxy_memory(rig: Rig, size: int, seconds: float) -> Result:
    with rig.haproxy() as (pid, port):
        return kilobytes(rig, size, tree(pid), [port])


_DELIVERIES = "deliveries per CPU second"
MODES = {
    # Memory is first, because a process does not return the memory of closed connections.
    "memory": Mode("memory of an idle connection", "KB", _memory, more_is_better=False),
    "setup": Mode("connections set up", "connections per CPU second", _setup),
    "one": Mode("one message in flight", _DELIVERIES, _window(1), (500, DEFAULT_CLIENTS)),
    "sixteen": Mode("16 in flight", _DELIVERIES, _window(IN_FLIGHT), (500, DEFAULT_CLIENTS)),
    "rooms": Mode(
        "200 rooms of 10, 16 in flight", _DELIVERIES, _window(IN_FLIGHT, 200), rooms=True
    ),
    "publish": Mode(
        "acknowledged publishes, 64 in flight",
        "publishes per CPU second",
        _publish,
        (64,),
        acks=True,
    ),
    "echo": Mode(
        "messages sent back, one in flight a client",
        "messages per CPU second",
        _echo,
        (500, DEFAULT_CLIENTS),
        echoes=True,
    ),
    "rpc": Mode(
        "calls of an `async` handler, 64 in flight",
        "calls per CPU second",
        _call("async"),
        (64,),
        calls="async",
    ),
    "rpc-thread": Mode(
        "calls of a handler in a thread, 64 in flight",
        "calls per CPU second",
        _call("thread"),
        (64,),
        calls="thread",
    ),
    "half": Mode("p99 at half of the maximum", "ms", _half, more_is_better=False),
    "idle": Mode("p50 at 50 messages a second", "ms", _idle, (1,), more_is_better=False),
    "slow-clients": Mode(
        f"p99 of 200 clients beside {SLOW_CLIENTS} that do not read",
        "times the p99 without them",
        _with_slow_clients,
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
