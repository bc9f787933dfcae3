"""The account of disconnects: the application is told of the end of every connection."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from chaos.cluster import ROOT, Cluster
from lab.waiting import attempts

SOURCE = ROOT / "chaos" / "application"
#: Arguments of the playbook that deploys the application.
VARIABLES = (f"-e@{SOURCE / 'deploy.yml'}", f"-ewsnode_app_source={SOURCE}")
#: The channel with handlers.
CHANNEL = "handled:chaos"
#: The file of each node's host with the disconnects that the application handled: see deploy.yml.
RECORDS = "/var/lib/wsfleet-chaos/disconnects.jsonl"
#: Seconds in which the application must be told after the last client has left: docs/protocol.md.
TOLD_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Disconnects:
    """The disconnects of a run.

    `untold` has the connections whose end no handler was told, `repeated` the number of those that
    were told more than once, `of_dead_nodes` the number that were told by another process than
    that of their node, with code 0.
    """

    connections: int
    untold: list[str]
    repeated: int
    of_dead_nodes: int


def account(connected: Collection[str], records: Iterable[dict[str, Any]]) -> Disconnects:
    """Return the account of the connections with these client ids, and of a handler's records.

    Records of other connections do not count: the answer to their connect did not arrive, or they
    are of another run.
    """
    ours = set(connected)
    codes = [(each["client"], each["code"]) for each in records if each["client"] in ours]
    told = Counter(client for client, _ in codes)
    return Disconnects(
        connections=len(ours),
        untold=sorted(ours - told.keys()),
        repeated=sum(count > 1 for count in told.values()),
        of_dead_nodes=len({client for client, code in codes if code == 0}),
    )


def read_connections(events: Iterable[dict[str, Any]]) -> set[str]:
    """Return the client ids of all connections in the events of verify-delivery."""
    return {event["client"] for event in events if event["event"] == "connected"}


def wait_for_disconnects(cluster: Cluster, connected: Collection[str]) -> Disconnects:
    """Return the account when every end was told, or the time is over; all clients have left."""
    for _ in attempts(TOLD_TIMEOUT, 2.0):
        found = account(connected, _records(cluster))
        if not found.untold:
            break
    return found


def _records(cluster: Cluster) -> list[dict[str, Any]]:
    show = f"cat {RECORDS} 2>/dev/null || true"
    hosts = cluster.groups["wsnodes"]
    return [json.loads(line) for host in hosts for line in cluster.shell(host, show).splitlines()]
