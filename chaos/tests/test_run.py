"""A run: clients are spread, and the report has faults, channels and disconnects."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from wsfleet.cli.measure.report import Report, emit

from chaos.faults import CONTROL, FAULTS
from chaos.report import DELAYS, ChannelResult, FaultResult, Outcome, report_of
from chaos.run import clients_hit, spread
from chaos.schedule import Step
from chaos.tests.support import Balanced, Quiet, as_cluster, quiet, run_steps


def test_clients_are_spread_before_a_fault() -> None:
    """A host without clients gets its share; an even cluster is left alone."""
    cluster = Balanced({"node1": 24, "node2": 0, "node3": 24})
    assert spread(as_cluster(cluster), pause=0.01) == {"node1": 12, "node2": 12, "node3": 24}
    assert cluster.done == ["close node1-8001"]
    cluster = Balanced({"node1": 24, "node2": 0})
    cluster.fails = True
    assert spread(as_cluster(cluster), pause=0.01) == {"node1": 12, "node2": 12}
    cluster = Balanced({"node1": 14, "node2": 10})
    assert spread(as_cluster(cluster)) == {"node1": 14, "node2": 10}
    assert cluster.done == []
    standby = Balanced({"node1": 12, "node2": 12})
    standby.connections = lambda: {  # type: ignore[method-assign]
        **Balanced.connections(standby),
        "node3": {},
    }
    assert spread(as_cluster(standby)) == {"node1": 12, "node2": 12, "node3": 0}
    assert standby.done == []


def test_a_fault_hits_the_clients_of_its_target() -> None:
    """A node's fault hits the clients of the node, every other fault hits all."""
    counts = {"node1": 5, "node2": 7}
    assert clients_hit(Step("node_isolated", "node2", 0, 0), counts) == 7
    assert clients_hit(Step("nodes_updated", "all", 0, 0), counts) == 12
    assert clients_hit(Step("primary_isolated", "primary", 0, 0), counts) == 12


def test_the_report_has_the_clients_that_a_fault_hit(tmp_path: Path) -> None:
    """Clients are spread first, and each fault has their number in the line and the document."""
    cluster = Balanced({"node1": 24, "node2": 0})
    steps = [
        Step("node_process_killed", "node2", 0, 0),
        Step("primary_process_killed", "primary", 0, 0),
    ]
    report = run_steps(cluster, steps, quiet(tmp_path))
    assert report.ok, report.problems
    assert [fault["hit"] for fault in report.data["faults"]] == [12, 24]
    assert report.data["not_counted"] == []


def test_a_fault_without_clients_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not injected, but tried again after all others; the run fails if it stays so."""
    monkeypatch.setattr("chaos.run.spread", lambda _: {"node1": 24, "node2": 0})
    cluster = Balanced({"node1": 24, "node2": 0}, stuck=True)
    steps = [Step("node_process_killed", host, 0, 0) for host in ("node2", "node1")]
    report = run_steps(cluster, steps, quiet(tmp_path))
    assert [fault["host"] for fault in report.data["faults"]] == ["node1"]
    assert report.data["not_counted"] == [{"name": "node_process_killed", "target": "node2"}]
    assert any("had no clients" in problem for problem in report.problems)
    assert [call for call in cluster.done if call.startswith("shell")] == [
        "shell node1 systemctl kill -s KILL 'wsnode@*'"
    ]
    lines = capsys.readouterr().err.splitlines()
    assert ["not counted" in line for line in lines] == [True, False, True]
    assert "24 clients" in lines[1]


def test_a_connection_dropped_without_a_fault_is_a_problem(tmp_path: Path) -> None:
    """A drop in the control step is a problem; a drop in a fault is not."""

    def report(name: str, at: float) -> Report:
        steps = [Step(name, "all", 0, 0)]
        dropped = {"event": "disconnected", "at": at, "subscriber": 0}
        return run_steps(Balanced({"node1": 1, "node2": 1}), steps, quiet(tmp_path, dropped))

    later = time.time() + 600  # the last step has no end
    assert report("primary_process_killed", later).ok
    assert report(CONTROL, 1.0).ok  # before it
    found = report(CONTROL, later)
    assert found.problems == ["1 connections were dropped without a fault"]
    assert found.data["dropped_without_a_fault"] == 1


def test_the_printed_figures_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns, which is also the width in a file, each figure is in one line."""
    monkeypatch.setenv("COLUMNS", "80")
    step = Step(max(FAULTS, key=len), "primary", 0, 0)
    fault = FaultResult(step, "redis1", 12_345, began=10, ended=math.inf, held=1234.5)
    fault.healthy_after = 6789.1
    events: list[dict[str, Any]] = [
        {"event": "disconnected", "at": 11, "subscriber": 0},
        {"event": "subscribed", "at": 8022, "subscriber": 0, "recovering": True, "recovered": True},
        {"event": "sent", "at": 12, "publisher": 0, "sequence": 0},
        {"event": "received", "at": 9021, "subscriber": 0, "publisher": 0, "sequence": 0},
    ]
    channel = ChannelResult("replicated:chaos", {}, tmp_path / "events", events)
    emit(report_of(Outcome(3, 1, [fault], channels=[channel])), as_json=False)
    printed = capsys.readouterr().out
    for figure in ("12,345", "1,234.5", "6,789.1"):
        assert figure in printed
    assert printed.count("4,294,967.3") == len(DELAYS)  # the greatest that is measured


def test_the_report_has_all_channels(tmp_path: Path) -> None:
    """Counts are sums, problems name their channel, and each has its events."""
    one = Quiet(tmp_path / "one.jsonl", "one")
    two = Quiet(tmp_path / "two.jsonl", "two")
    two.finish = lambda: Quiet.finish(two) | {"lost": 2, "problems": ["2 lost"]}  # type: ignore[method-assign]
    report = run_steps(Balanced({"node1": 1, "node2": 1}), [], one, two)
    assert report.problems == ["two: 2 lost"]
    assert (report.data["acknowledged"], report.data["lost"]) == (6, 2)
    channels = report.data["channels"]
    assert {name: each["lost"] for name, each in channels.items()} == {"one": 0, "two": 2}
    assert channels["two"]["events"] == str(tmp_path / "two.jsonl")
    two.finish = lambda: {"error": "refused"}  # type: ignore[method-assign]
    report = run_steps(Balanced({"node1": 1, "node2": 1}), [], one, two)
    assert report.problems == ["two: verify-delivery: refused"]
    assert report.data["lost"] is None


class Told(Balanced):
    """A cluster whose nodes have the records of an application."""

    def __init__(self, records: dict[str, str]) -> None:
        super().__init__({"node1": 1, "node2": 1})
        self.records = records

    def shell(self, host: str, text: str, *, check: bool = True) -> str:
        """Return the records of a host."""
        assert text.startswith("cat ")
        return self.records.get(host, "")


def test_an_untold_disconnect_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is deployed, and records of all nodes count; one end is missing in them."""
    monkeypatch.setattr("chaos.disconnects.TOLD_TIMEOUT", 0)
    said = [{"event": "connected", "at": 0.0, "client": client} for client in ("a", "b")]
    cluster = Told({"node2": '{"client": "a", "code": 3001}\n{"client": "x", "code": 0}\n'})
    report = run_steps(cluster, [], quiet(tmp_path, *said), application=True)
    assert "playbook playbooks/rolling_update.yml" in cluster.done
    assert report.problems == ["1 connections whose end the application was not told"]
    assert report.data["disconnects"] == {
        "connections": 2,
        "untold": ["b"],
        "repeated": 0,
        "of_dead_nodes": 0,
    }
    cluster.records["node1"] = '{"client": "b", "code": 0}\n'
    report = run_steps(cluster, [], quiet(tmp_path, *said), application=True)
    assert report.ok, report.problems
    assert report.data["disconnects"]["of_dead_nodes"] == 1
