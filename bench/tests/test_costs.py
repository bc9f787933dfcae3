"""Unit costs computed from the CPU time of mixed loads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench import costs, machine
from bench.costs import Counts
from bench.rig import BenchError

COUNTS = (Counts(3000, 90_000, 30), Counts(500, 150_000, 300), Counts(1, 1_000, 1000))
LISTING = """\
node1 | CHANGED | rc=0 >>
1 (systemd) S 0 1 1 0 -1 4194560 1 1 1 1 900 900 0 0
77 (wsfleet) S 1 77 77 0 -1 4194560 1 1 1 1 100 50 0 0
redis1 | CHANGED | rc=0 >>
5 (redis-server) S 1 5 5 0 -1 4194560 1 1 1 1 300 100 0 0
redis2 | CHANGED | rc=0 >>
5 (redis-server) S 1 5 5 0 -1 4194560 1 1 1 1 100 100 0 0
lb1 | CHANGED | rc=0 >>
8 (haproxy) S 1 8 8 0 -1 4194560 1 1 1 1 7 3 0 0
9 (haproxy) S 8 8 8 0 -1 4194560 1 1 1 1 60 30 0 0
"""


def test_the_fit_returns_the_costs_behind_the_cpu_time() -> None:
    """The fit finds the costs of each part."""
    used = [
        {
            "node": 2 * c.publications * 200e-6 + c.deliveries * 15e-6 + c.connects * 900e-6,
            "balancer": (c.publications + c.deliveries) * 18e-6 + c.connects * 400e-6,
            "redis": c.publications * (150 + 2 * 5) * 1e-6 + 2 * c.connects * 90e-6,
        }
        for c in COUNTS
    ]
    found = costs.costs(COUNTS, used, nodes=2, receiver=5)
    assert found == pytest.approx(
        {
            "node-publication": 200,
            "node-delivery": 15,
            "node-connect": 900,
            "balancer-delivery": 18,
            "balancer-connect": 400,
            "redis-publication": 150,
            "redis-receiver": 5,
            "redis-connect": 90,
        }
    )


def test_cpu_time_is_summed_over_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balancers and nodes are summed; for Redis the busiest server counts, the primary."""
    monkeypatch.setattr(machine, "TICKS", 100)
    assert costs.used_by(LISTING) == {"node": 1.5, "balancer": 1.0, "redis": 4.0}
    with pytest.raises(BenchError, match="no process of node is running"):
        costs.used_by(LISTING.replace("(wsfleet)", "(python3)"))


def test_idle_cpu_time_is_subtracted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The idle rate, measured before, is subtracted for the duration of the load."""
    fleet = tmp_path / "inventory/local/.fleet.json"
    fleet.parent.mkdir(parents=True)
    fleet.write_text('{"base_url": "http://lb", "nodes": {"node1-8001": "", "node2-8001": ""}}')
    report = '{"sent": 3, "deliveries": 6, "acknowledged": 3, "connected": 4}'
    monkeypatch.setattr(
        costs, "run", lambda clone, *command: report if "wsfleet" in command else "listing"
    )
    seconds = iter([100.0, 110.0, 200.0, 205.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(time, "sleep", lambda duration: None)
    used = iter([1.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(costs, "used_by", lambda listing: dict.fromkeys(costs.PARTS, next(used)))
    cluster = costs.Cluster(tmp_path)
    assert cluster.nodes == 2
    counts, spent = cluster.load(4, 1, 1)
    assert counts == Counts(3, 9, 4)
    assert spent == pytest.approx(dict.fromkeys(costs.PARTS, 2.5))  # 3 s less 5 s at 0.1


def test_an_acknowledgement_counts_as_a_delivery() -> None:
    """An acknowledgement is a message to a client."""
    report = {"sent": 10, "acknowledged": 9, "deliveries": 90, "connected": 11}
    assert Counts.of(report) == Counts(10, 99, 11)
