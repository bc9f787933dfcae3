"""Clusters and clients without machines, and a run with them."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsfleet.cli.measure.report import Report

from chaos.clients import Clients
from chaos.cluster import Cluster, CommandError
from chaos.report import TOTALS, report_of
from chaos.run import run
from chaos.schedule import Step

GROUPS = {
    "loadbalancers": ["lb1", "lb2"],
    "wsnodes": ["node1", "node2"],
    "redis": ["redis1", "redis2", "redis3"],
}


class Recorder:
    """A cluster that only records the calls, and can fail once."""

    groups = GROUPS

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = False

    def address(self, host: str) -> str:
        """Return the name in place of an address."""
        return host

    def __getattr__(self, name: str) -> Any:
        """Return a function that records its call."""

        def do(*arguments: str | int) -> None:
            self.done.append(" ".join(map(str, (name, *arguments))))
            if self.fails:
                self.fails = False
                raise CommandError(name)

        return do


def as_cluster(recorder: Recorder) -> Cluster:
    """Return it as the type that chaos expects."""
    return recorder  # type: ignore[return-value]


class Balanced(Recorder):
    """A cluster whose clients go to the node with the fewest when their connections are closed."""

    def __init__(self, counts: dict[str, int], *, stuck: bool = False) -> None:
        super().__init__()
        self.counts = counts
        self.stuck = stuck

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the clients of each host's only node."""
        return {host: {f"{host}-8001": count} for host, count in self.counts.items()}

    def close_connections(self, node: str) -> None:
        """Assign the node's clients again, unless the balancer is stuck."""
        self.done.append(f"close {node}")
        if self.fails:
            self.fails = False
            raise CommandError(node)
        if self.stuck:
            return
        moved, self.counts[node.rpartition("-")[0]] = self.counts[node.rpartition("-")[0]], 0
        for _ in range(moved):
            self.counts[min(self.counts, key=self.counts.__getitem__)] += 1

    def find_problem(self) -> None:
        """Find no problem."""

    def primary(self) -> str:
        """Return the host of the primary."""
        return "redis1"


class Quiet:
    """Clients that publish nothing; the test gives their events."""

    running = True

    def __init__(self, events: Path, channel: str, *said: dict[str, Any]) -> None:
        self.events = events
        self.channel = channel
        lines = ({"event": "began", "time": 0.0}, *said)
        events.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def __enter__(self) -> None:
        """Start nothing."""

    def __exit__(self, *_: object) -> None:
        """End nothing."""

    def wait_for_messages(self) -> None:
        """Wait for nothing."""

    def finish(self) -> dict[str, Any]:
        """Return a report without a problem."""
        counts = dict.fromkeys((*TOTALS, "unacknowledged", "absent"), 0)
        return counts | {"acknowledged": 3, "problems": []}


def run_steps(
    cluster: Recorder,
    steps: list[Step],
    *clients: Quiet,
    even: float | None = None,
    application: bool = False,
) -> Report:
    """Run the steps, and return the report."""
    channels: Sequence[Clients] = clients  # type: ignore[assignment]
    stop = threading.Event()
    outcome = run(
        *(as_cluster(cluster), steps, channels, 1, stop), even=even, application=application
    )
    return report_of(outcome)


def quiet(folder: Path, *said: dict[str, Any]) -> Quiet:
    """Return the clients of one channel, with these events."""
    return Quiet(folder / "events.jsonl", "replicated:chaos", *said)
