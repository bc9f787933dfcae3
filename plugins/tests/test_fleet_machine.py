"""The state of a machine: the module runs here, with real programs and with others instead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).resolve().parents[1] / "modules" / "fleet_machine.py"
EVERY_MACHINE = ("ip", "ss", "dpkg-query")


def run(folder: Path, programs: dict[str, str], *, only: bool = True) -> dict[str, Any]:
    """Run the module with shell scripts as its programs, and return its result."""
    for name, script in programs.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    path = str(folder) if only else f"{folder}:{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        [sys.executable, str(MODULE)],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {}}),
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_this_machine_is_read(tmp_path: Path) -> None:
    """With its own programs: addresses, a socket of this test, packages, and Debian's Python."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        found = run(tmp_path, {}, only=False)
        port = listener.getsockname()[1]
    assert found["changed"] is False
    assert found["distribution"] == "debian"
    assert found["version"] in ("12", "13")
    assert found["hostname"] == os.uname().nodename
    assert found["init"] == Path("/proc/1/comm").read_text().strip()
    local = [has for each in found["addresses"] for has in each["addr_info"]]
    assert "127.0.0.1" in [has["local"] for has in local]
    [line] = [line for line in found["sockets"].splitlines() if f"127.0.0.1:{port} " in line]
    assert f"pid={os.getpid()}," in line
    assert "\ninstalled dpkg " in "\n" + found["packages"]
    assert found["python"].split() == [*found["python"].split()[:1], os.uname().machine]


def test_ssh_and_the_firewall_are_read(tmp_path: Path) -> None:
    """All ports of sshd, and the chain that names the rules, not one of another table."""
    programs = dict.fromkeys(EVERY_MACHINE, "echo '[]'") | {
        "sshd": "[ $1 = -T ] && printf 'port 22\\nport 2222\\nmaxsessions 10\\nportx 5\\n'",
        "nft": "[ \"$*\" = '--terse list table inet wsfleet' ] && echo 'chain mark_0a1b {'",
    }
    found = run(tmp_path, programs)
    assert found["ssh_ports"] == [22, 2222]
    assert found["firewall_mark"] == "mark_0a1b"


@pytest.mark.parametrize("broken", [{}, {"sshd": "exit 255", "nft": "echo mark_aa; exit 1"}])
def test_a_machine_may_have_no_sshd_and_no_rules(tmp_path: Path, broken: dict[str, str]) -> None:
    """They are missing, or fail: another ssh server is in use, or there is no such table."""
    found = run(tmp_path, dict.fromkeys(EVERY_MACHINE, "echo '[]'") | broken)
    assert found["ssh_ports"] == []
    assert found["firewall_mark"] == ""


def test_another_system_is_read_as_well(tmp_path: Path) -> None:
    """One without dpkg, so that the check of the machine can name it."""
    found = run(tmp_path, dict.fromkeys(("ip", "ss"), "echo '[]'"))
    assert found["packages"] == ""
    assert found["addresses"] == []


@pytest.mark.parametrize("program", ["ip", "ss"])
def test_a_program_that_fails_is_an_error(tmp_path: Path, program: str) -> None:
    """With the program's own words."""
    programs = dict.fromkeys(EVERY_MACHINE, "echo '[]'") | {program: "echo no netlink >&2; exit 1"}
    found = run(tmp_path, programs)
    assert found["failed"] is True
    assert found["msg"].startswith(f"{program} -")
    assert found["msg"].endswith(": no netlink")
