"""After a fault, the cluster spreads the clients by its own work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from wsfleet.cli.measure.charts import Counts

from chaos.cluster import Cluster
from chaos.evenness import ClientCounts, Moves, is_even, moves
from chaos.faults import FAULTS, Fault
from chaos.schedule import Step
from chaos.tests.support import Balanced, as_cluster, quiet, run_steps


class Rebalanced(Balanced):
    """A cluster of two nodes that moves one client each time it is asked for its connections."""

    def connections(self) -> dict[str, dict[str, int]]:
        """Return the counts, and move a client from node1 to node2 unless the cluster is stuck."""
        found = super().connections()
        if not self.stuck and self.counts["node1"] > self.counts["node2"]:
            self.counts["node1"] -= 1
            self.counts["node2"] += 1
        return found

    def wsfleet(self, *_: str, check: bool = True) -> str:
        """Print a round that began before all faults, and one of now."""
        now = datetime.now(UTC)
        rounds = [
            {"time": at.isoformat(timespec="milliseconds"), "shed": {"node1-8001": 3}}
            for at in (now - timedelta(hours=1), now)
        ]
        return json.dumps({"rounds": rounds})


def test_even_is_ten_per_cent_from_the_mean() -> None:
    """Or one client, where 10 % are less; no node is not even."""
    assert is_even({"node1": 450, "node2": 550})
    assert not is_even({"node1": 449, "node2": 551})
    assert is_even({"node1": 2, "node2": 4})
    assert not is_even({"node1": 0, "node2": 3})
    assert not is_even({})


def test_the_cluster_spreads_the_clients_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --even the report has the time, the rounds of the fault, and the counts over time."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    cluster = Rebalanced({"node1": 15, "node2": 9})
    steps = [Step("node_process_killed", "node1", 0, 0)]
    report = run_steps(cluster, steps, quiet(tmp_path), even=30)
    assert report.ok, report.problems
    fault = report.data["faults"][0]
    assert fault["even_after"] is not None
    assert fault["rebalancing"] == {"rounds": 1, "clients": 3}
    assert [call for call in cluster.done if call.startswith("close")] == []
    figure = report.figures[-1]
    assert isinstance(figure, Counts)
    lines = figure.lines
    assert lines["node1-8001"][0][0] == 0
    assert lines["node1-8001"][-1][1] == lines["node2-8001"][-1][1] + 1 or cluster.counts == {
        "node1": 12,
        "node2": 12,
    }


def test_clients_that_stay_uneven_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run fails, and says after how many seconds."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    cluster = Rebalanced({"node1": 15, "node2": 9}, stuck=True)
    steps = [Step("node_process_killed", "node1", 0, 0)]
    report = run_steps(cluster, steps, quiet(tmp_path), even=0.2)
    assert not report.ok
    assert any("not even after 0.2 s" in problem for problem in report.problems)


def test_the_time_until_even_begins_after_the_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair by a playbook takes minutes."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)

    @contextmanager
    def repaired_slowly(cluster: Cluster, host: str) -> Iterator[None]:
        yield
        time.sleep(0.5)

    monkeypatch.setitem(FAULTS, "repaired_slowly", Fault(repaired_slowly, "wsnodes"))
    cluster = Rebalanced({"node1": 13, "node2": 11})
    report = run_steps(cluster, [Step("repaired_slowly", "node1", 0, 0)], quiet(tmp_path), even=0.4)
    assert report.ok, report.problems


def test_a_run_that_is_stopped_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the wait: nobody knows whether the clients would have been even."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    monkeypatch.setattr(ClientCounts, "wait_until_even", lambda _, __, stop: stop.set())
    cluster = Rebalanced({"node1": 15, "node2": 9}, stuck=True)
    steps = [Step("node_process_killed", "node1", 0, 0)]
    report = run_steps(cluster, steps, quiet(tmp_path), even=30)
    assert report.ok, report.problems
    assert all(criterion.met for criterion in report.criteria)


def test_a_host_that_does_not_serve_is_not_even(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clients of the others may be even: the host that was killed is still missing."""
    monkeypatch.setattr("chaos.evenness.INTERVAL", 0.01)
    cluster = Balanced({"node1": 12, "node2": 12})
    cluster.connections = lambda: {  # type: ignore[method-assign]
        **Balanced.connections(cluster),
        "node3": {},
    }
    with ClientCounts(as_cluster(cluster)) as counts:
        assert not counts.wait_until_even(0.1, threading.Event())
    assert {name: n for name, [(_, n), *_] in counts.lines.items()} == {
        "node1-8001": 12,
        "node2-8001": 12,
    }


def test_rounds_of_another_time_are_not_counted() -> None:
    """A round counts for the span in which it began."""
    cluster = as_cluster(Rebalanced({"node1": 1, "node2": 1}))
    now = time.time()
    assert moves(cluster, now - 7200, now + 60) == Moves(2, 6)
    assert moves(cluster, now - 60, now + 60) == Moves(1, 3)
    assert moves(cluster, now + 60, now + 120) == Moves(0, 0)
