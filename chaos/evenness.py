"""Watch how the clients spread over the nodes again after each fault, by the cluster's own work."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chaos.cluster import Cluster, CommandError, by_node

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
        self._even_at = -math.inf  # when the last count began, if it was even; monotonic
        self._end = threading.Event()
        self._counted = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="client-counts")

    def __enter__(self) -> ClientCounts:
        """Start to count."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def wait_until_even(self, seconds: float, stop: threading.Event) -> bool:
        """Wait until all hosts serve and are even; return whether they were within `seconds`.

        It ends early when `stop` is set.
        """
        began = time.monotonic()
        with self._counted:
            while self._even_at < began:  # a count under way may be an earlier one
                if time.monotonic() >= began + seconds or stop.is_set():
                    return False
                # A timeout, because nobody can count while Redis or the balancer is down.
                self._counted.wait(INTERVAL)
        return True

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            with suppress(CommandError):
                self._count()

    def _count(self) -> None:
        began = time.monotonic()
        hosts = self._cluster.connections()
        counts, now = by_node(hosts), time.time()
        with self._counted:
            for name in self.lines.keys() | counts.keys():
                self.lines.setdefault(name, []).append((now, counts.get(name, 0)))
            self._even_at = began if all(hosts.values()) and is_even(counts) else -math.inf
            self._counted.notify()


def moves(cluster: Cluster, began: float, ended: float) -> Moves:
    """Return the rounds of rebalancing between two Unix times."""
    report: dict[str, Any] = json.loads(cluster.wsfleet("rebalance", "--log", "--json"))
    rounds = [
        each["shed"]
        for each in report["rounds"]
        if began <= datetime.fromisoformat(each["time"]).timestamp() < ended
    ]
    return Moves(len(rounds), sum(sum(shed.values()) for shed in rounds))
