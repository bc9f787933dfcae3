#!/usr/bin/env python3
"""Compute the node processes, balancers and Redis primaries for a number of connections.

scripts/capacity.py                                   # 10 k to 10 M connections, a modest load
scripts/capacity.py --connections 300000 --received 2 --published 500

docs/capacity.md describes the unit costs and how they are measured.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

#: Ports that one balancer has for its connections to one node process (ip_local_port_range).
PORTS = 54_000
#: The results of `scripts/bench costs`, in CPU microseconds.
MEASURED = Path(__file__).resolve().parents[1] / "bench/results/costs.json"
#: The unit costs, in CPU microseconds, and their descriptions.
COSTS = {
    "node-delivery": "a message to one client, at a node",
    "node-publication": "a publication, at each process with subscribers",
    "node-connect": "a client that connects and disconnects, at a node",
    "balancer-delivery": "a message to one client, at a balancer",
    "balancer-connect": "a client that connects and disconnects, at a balancer",
    "redis-publication": "a publication, at its Redis primary",
    "redis-receiver": "a publication, at its Redis primary, for each process with subscribers",
    "redis-connect": "a connect or a disconnect, at Redis",
}
#: Bytes of memory: estimates. docs/performance.md has the memory of the processes alone.
BYTES = {
    "node-bytes": (30_000.0, "bytes of a connection at a node, including the kernel's"),
    "balancer-bytes": (30_000.0, "bytes of a connection at a balancer, including the kernel's"),
}


@dataclass(frozen=True, slots=True)
class Load:
    """A load: `received` is messages a second of each client, `published` of all together.

    After all clients have lost their connections, all are back within `storm` seconds.
    """

    connections: int
    received: float
    published: float
    storm: float


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of use: a share of each core, and a number of connections."""

    share: float
    process_connections: int
    balancer_cores: int
    balancer_connections: int


@dataclass(frozen=True, slots=True)
class Need:
    """The number of each part, and the reason for it: no spares, except a second balancer."""

    processes: int
    processes_for: str
    balancers: int
    balancers_for: str
    primaries: int
    primaries_for: str
    node_gigabytes: float
    balancer_gigabytes: float


def need(load: Load, limits: Limits, cost: dict[str, float]) -> Need:
    """Return the largest number that any of the reasons requires, for each part."""
    deliveries = load.connections * load.received
    # A publication reaches as many processes as it has receivers, or all of them.
    audience = deliveries / load.published if load.published else 0.0
    returning = load.connections / load.storm

    def cores(microseconds: float) -> float:
        return microseconds / 1e6 / limits.share

    by_connections = load.connections / limits.process_connections
    by_storm = cores(returning * cost["node-connect"])
    processes = max(by_connections, by_storm, 1.0)
    # A process's cost for publications grows with the number of processes: if all of them receive
    # every publication, adding processes does not reduce it.
    for _ in range(50):
        reached = min(processes, audience)
        each = load.published * reached / processes * cost["node-publication"]
        if cores(each) >= 0.9:
            raise SystemExit(
                "Receiving all publications takes more than a process has: lower --published."
            )
        by_messages = cores(deliveries * cost["node-delivery"]) / (1 - cores(each))
        processes = max(by_connections, by_storm, by_messages, 1.0)
    reached = min(processes, audience)
    reasons = {"connections": by_connections, "storms": by_storm, "messages": by_messages}

    machine = limits.balancer_cores
    balancer_reasons = {
        "connections": load.connections / limits.balancer_connections,
        "ports": load.connections / (PORTS * processes),
        "storms": cores(returning * cost["balancer-connect"]) / machine,
        "messages": cores(deliveries * cost["balancer-delivery"]) / machine,
    }
    # One spare, because any of them may die.
    balancers = math.ceil(max(balancer_reasons.values())) + 1

    redis_reasons = {
        "publications": cores(
            load.published * (cost["redis-publication"] + reached * cost["redis-receiver"])
        ),
        "storms": cores(returning * 2 * cost["redis-connect"]),
    }
    primaries = max(1, math.ceil(max(redis_reasons.values())))
    return Need(
        math.ceil(processes),
        _most(reasons),
        balancers,
        _most(balancer_reasons),
        primaries,
        _most(redis_reasons),
        load.connections / processes * cost["node-bytes"] / 2**30,
        load.connections / (balancers - 1) * cost["balancer-bytes"] / 2**30,
    )


def measured() -> dict[str, float]:
    """Return the median of each cost, rounded to two digits."""
    found: dict[str, list[float]] = {}
    for point in json.loads(MEASURED.read_text())["measurements"]:
        if "value" in point:
            found.setdefault(point["cost"], []).append(point["value"])
    return {name: float(f"{statistics.median(found[name]):.2g}") for name in COSTS}


def _most(reasons: dict[str, float]) -> str:
    return max(reasons, key=lambda name: reasons[name])


def main() -> None:
    """Print the table, or the costs."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--connections", type=int, nargs="*", default=[10**4, 10**5, 10**6, 10**7], help="at once")
    add("--received", type=float, default=0.1, help="messages a second that each client gets")
    add("--published", type=float, default=100, help="messages a second of all clients together")
    add("--storm", type=float, default=120, help="seconds until all clients are back after a cut")
    add("--share", type=float, default=0.5, help="largest share of each core to use")
    add("--process-connections", type=int, default=10_000, help="wsnode_max_connections")
    add("--balancer-cores", type=int, default=4, help="cores of a balancer")
    add("--balancer-connections", type=int, default=250_000, help="connections of a balancer")
    cost = measured()
    for name, what in COSTS.items():
        add(f"--{name}", type=float, default=cost[name], help=f"CPU microseconds of {what}")
    for name, (default, what) in BYTES.items():
        add(f"--{name}", type=float, default=default, help=what)
    add("--costs", action="store_true", help="print the CPU costs instead")
    options = parser.parse_args()
    if options.costs:
        print("| CPU time of | µs |\n|---|--:|")
        for name, what in COSTS.items():
            print(f"| {what} | {cost[name]:g} |")
        return
    limits = Limits(
        options.share,
        options.process_connections,
        options.balancer_cores,
        options.balancer_connections,
    )
    cost = {name: getattr(options, name.replace("-", "_")) for name in COSTS | BYTES}
    columns = ("connections", "node processes", "balancers", "Redis primaries")
    print(f"| {' | '.join(columns)} | GB a process | GB a balancer |")
    print("|---|---|---|---|---|---|")
    for connections in options.connections:
        load = Load(connections, options.received, options.published, options.storm)
        n = need(load, limits, cost)
        print(
            f"| {connections:,} | {n.processes:,} ({n.processes_for}) "
            f"| {n.balancers} ({n.balancers_for}) | {n.primaries} ({n.primaries_for}) "
            f"| {n.node_gigabytes:.1f} | {n.balancer_gigabytes:.1f} |"
        )


if __name__ == "__main__":
    main()
