"""Faults in the order of a seed, and clients that account for every message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
INVENTORY = ROOT / "molecule" / "cluster-chaos" / "inventory"
#: One of each sort; the playbooks among the faults have scenarios of their own.
SHORT = [
    "node_machine_killed",
    "node_without_redis",
    "node_process_frozen",
    "primary_without_replicas",
    "primary_machine_killed",
    "balancer_machine_killed",
]
#: With handlers: clients leave in every way, and the node that must tell of it may be dead.
WITH_HANDLERS = [
    "node_process_killed",
    "node_machine_killed",
    "node_isolated",
    "node_drained",
    "primary_machine_killed",
]
CONTROL = "no_fault"
TOTALS = ("lost", "duplicated", "reordered", "recovered_wrongly")


def chaos(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    """Start scripts/chaos on the scenario's cluster."""
    command = [str(ROOT / "scripts" / "chaos"), f"--inventory={INVENTORY}", "--json", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)


def test_nothing_acknowledged_is_lost() -> None:
    """Under every fault each message comes once, in order, to every subscriber."""
    arguments = ("--seed=7", f"--faults={len(SHORT)}", "--clients=20", f"--only={','.join(SHORT)}")
    with chaos(*arguments) as process:
        output, _ = process.communicate(timeout=600)
    report = json.loads(output)
    assert process.returncode == 0, json.dumps(report)
    names = [fault["name"] for fault in report["faults"]]
    assert (names[0], sorted(names[1:])) == (CONTROL, sorted(SHORT))
    assert report["not_counted"] == []
    assert all(fault["hit"] > 0 for fault in report["faults"]), report["faults"]
    assert [report[total] for total in TOTALS] == [0, 0, 0, 0]
    assert report["acknowledged"] > 0
    assert report["reconnects"] >= 20
    assert report["dropped_without_a_fault"] == 0


def test_ctrl_c_leaves_nothing_broken() -> None:
    """The current fault is healed, and the published messages are accounted for."""
    with chaos(
        "--faults=3", "--clients=2", "--only=node_isolated", stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert any(CONTROL in line for line in process.stderr)
        time.sleep(8)
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=200)
    report = json.loads(output)
    assert process.returncode == 1
    assert 1 <= len(report["faults"]) < 4
    assert [fault["problem"] for fault in report["faults"]] == [None] * len(report["faults"])
    assert report["lost"] == 0


def test_bad_handlers_harm_nobody_else() -> None:
    """Handlers sleep, block and raise: acknowledged messages come once, and each end is told."""
    arguments = ("--seed=7", f"--faults={len(WITH_HANDLERS)}", "--clients=20", "--application")
    with chaos(*arguments, f"--only={','.join(WITH_HANDLERS)}") as process:
        output, _ = process.communicate(timeout=900)
    report = json.loads(output)
    assert process.returncode == 0, json.dumps(report)
    assert len(report["faults"]) == 1 + len(WITH_HANDLERS)
    assert report["dropped_without_a_fault"] == 0
    assert set(report["channels"]) == {"replicated:chaos", "handled:chaos"}
    for channel in report["channels"].values():
        assert [channel[total] for total in TOTALS] == [0, 0, 0, 0]
        assert channel["acknowledged"] > 0
    errors = report["channels"]["handled:chaos"]["errors"]
    assert any(error.startswith("100 ") for error in errors), errors
    disconnects = report["disconnects"]
    assert disconnects["untold"] == []
    assert disconnects["of_dead_nodes"] > 0
    assert disconnects["connections"] > 2 * (20 + 4)
