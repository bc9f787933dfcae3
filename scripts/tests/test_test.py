"""How scripts/test runs scenarios side by side."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from lab.paths import ROOT
from lab.waiting import until

REPLACED = """
packages() { :; }
podman_works() { :; }
venv() { :; }
remove_vms() { echo "the VMs of $1 are removed"; }
"""
"""Functions of lib.sh that would change this machine."""
SCENARIOS = ("role-base", "role-redis", "default")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with scripts/test and three scenarios, without VMs."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    with (tmp_path / "scripts/lib.sh").open("a") as functions:
        functions.write(REPLACED)
    for scenario in SCENARIOS:
        (tmp_path / "molecule" / scenario / "inventory").mkdir(parents=True)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    program(tmp_path, "ansible-playbook", "echo keys are made")
    return tmp_path


def program(checkout: Path, name: str, text: str) -> None:
    """Write a shell script that replaces a program of .venv."""
    file = checkout / ".venv/bin" / name
    file.write_text(f"#!/bin/bash\nset -e\n{text}\n")
    file.chmod(0o755)


def run(checkout: Path, *parts: str) -> subprocess.Popen[str]:
    """Start scripts/test; its output comes together with its errors."""
    command = [str(checkout / "scripts/test"), *parts]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=checkout
    )


def test_two_scenarios_run_at_a_time(checkout: Path) -> None:
    """A third one waits; the output of each is printed in one piece, and one that fails is told."""
    # Each waits for a second one; `role-redis` fails.
    program(
        checkout,
        "molecule",
        """mkdir -p running started; echo $3 begins
        touch running/$3 started/$3; ls running | wc -w >> at-a-time
        until [ $(ls started | wc -w) -ge 2 ]; do sleep 0.02; done
        echo $3 ends; rm running/$3; [ $3 != role-redis ]""",
    )
    with run(checkout, *SCENARIOS) as tests:
        output, _ = tests.communicate(timeout=60)
    assert tests.returncode == 1, output
    assert max(map(int, (checkout / "at-a-time").read_text().split())) == 2
    for scenario in SCENARIOS:
        result = "failed" if scenario == "role-redis" else "passed"
        assert f"{scenario} begins\n{scenario} ends\n== {scenario} {result} in " in output, output
        assert re.search(rf"^{scenario} +{result} +\d+ s$", output, re.MULTILINE)
        assert f"the VMs of {scenario} are removed" in output


def test_a_killed_run_leaves_neither_lane(checkout: Path) -> None:
    """Both scenarios end, what they printed is shown, and the VMs of all are removed."""
    program(checkout, "molecule", "echo $3 begins; echo $$ > $3.pid; exec sleep 600")
    pids = [checkout / f"{scenario}.pid" for scenario in SCENARIOS[:2]]
    with run(checkout, *SCENARIOS) as tests:
        until(lambda: all(pid.is_file() and pid.read_text() for pid in pids), "both run")
        tests.send_signal(signal.SIGTERM)
        output, _ = tests.communicate(timeout=60)
    assert tests.returncode == 143, output
    for scenario, pid in zip(SCENARIOS, pids, strict=False):
        assert f"{scenario} begins\n== {scenario} was interrupted\n" in output, output
        assert not Path("/proc", pid.read_text().strip()).exists()
    for scenario in SCENARIOS:
        assert f"the VMs of {scenario} are removed" in output


def test_one_scenario_prints_at_once(checkout: Path) -> None:
    """Its output needs no file: it goes where that of scripts/test goes."""
    program(checkout, "molecule", "echo $3 begins")
    with run(checkout, "role-base") as tests:
        output, _ = tests.communicate(timeout=60)
    assert tests.returncode == 0, output
    assert "role-base begins\n== role-base passed in" in output
    assert not list((checkout / ".cache/test").iterdir())
