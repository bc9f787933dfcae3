"""Watch how the clients spread over the nodes again after each fault, by the cluster's own work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from chaos.cluster import Cluster, CommandError

#: Seconds between two counts of the clients.
INTERVAL = 2.0
#: How far a node may be from the mean, as a part of it.
TOLERANCE = 0.1


def is_even(counts: Mapping[str, int]) -> bool:
    """Return whether each node has the mean number of clients, give or take 10 % or one client."""
    if not counts:
        return False
    mean = sum(counts.values()) / len(counts)
    return all(abs(count - mean) <= max(1.0, TOLERANCE * mean) for count in counts.values())


@dataclass(frozen=True, slots=True)
class Moves:
    """The rounds of rebalancing in a span of time, and the clients that they moved.

    A client is moved at most once in a round, so in one round nobody is moved twice.
    """

    rounds: int
    clients: int


class ClientCounts:
    """The clients of each node over time, counted by a thread within the `with` block.

    `lines` has, by node, when clients were counted (Unix time) and how many it had; a node that is
    down has none.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.lines: dict[str, list[tuple[float, int]]] = {}
        self._cluster = cluster
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="client-counts")

    def __enter__(self) -> ClientCounts:
        """Start to count."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def wait_until_even(self, seconds: float, stop: threading.Event) -> bool:
        """Wait until all hosts serve and are even; return whether they were within `seconds`.

        It ends early when `stop` is set.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not stop.is_set():
            with suppress(CommandError):
                hosts = self._count()
                counts = {name: n for nodes in hosts.values() for name, n in nodes.items()}
                if all(hosts.values()) and is_even(counts):
                    return True
            stop.wait(INTERVAL)
        return False

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            # While Redis or the balancer is down, nobody can say how many there are.
            with suppress(CommandError):
                self._count()

    def _count(self) -> dict[str, dict[str, int]]:
        hosts = self._cluster.connections()
        counts = {name: n for nodes in hosts.values() for name, n in nodes.items()}
        with self._lock:
            now = time.time()
            for name in self.lines.keys() | counts.keys():
                self.lines.setdefault(name, []).append((now, counts.get(name, 0)))
        return hosts


def moves(cluster: Cluster, began: float, ended: float) -> Moves:
    """Return what rebalancing did between two Unix times."""
    report: dict[str, Any] = json.loads(cluster.wsfleet("rebalance", "--log", "--json"))
    rounds = [
        each["shed"]
        for each in report["rounds"]
        if began <= datetime.fromisoformat(each["time"]).timestamp() < ended
    ]
    return Moves(len(rounds), sum(sum(shed.values()) for shed in rounds))
