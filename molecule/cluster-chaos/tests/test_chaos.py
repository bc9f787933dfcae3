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


def chaos(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    """Start scripts/chaos on the scenario's cluster."""
    command = [str(ROOT / "scripts" / "chaos"), f"--inventory={INVENTORY}", "--json", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how)


def test_nothing_acknowledged_is_lost() -> None:
    """Whatever dies, hangs or is cut off: each message comes once, in order, to everybody."""
    arguments = ("--seed=7", f"--faults={len(SHORT)}", "--clients=20", f"--only={','.join(SHORT)}")
    with chaos(*arguments) as process:
        output, _ = process.communicate(timeout=600)
    report = json.loads(output)
    assert process.returncode == 0, report
    assert sorted(fault["name"] for fault in report["faults"]) == sorted(SHORT)
    assert report["not_counted"] == []
    assert all(fault["hit"] > 0 for fault in report["faults"]), report["faults"]
    totals = ("lost", "duplicated", "reordered", "recovered_wrongly")
    assert [report[total] for total in totals] == [0, 0, 0, 0]
    assert report["acknowledged"] > 0
    assert report["reconnects"] >= 20


def test_ctrl_c_leaves_nothing_broken() -> None:
    """The fault in hand is healed, and what was published is accounted for."""
    with chaos(
        "--faults=3", "--clients=2", "--only=node_isolated", stderr=subprocess.PIPE
    ) as process:
        time.sleep(12)
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=200)
    report = json.loads(output)
    assert process.returncode == 1
    assert len(report["faults"]) < 3
    assert [fault["problem"] for fault in report["faults"]] == [None] * len(report["faults"])
    assert report["lost"] == 0
