"""Work that goes on while other machines are dead, or after an interrupted run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
HERE = {
    "ansible_connection": "local",
    "ansible_become": False,
    "ansible_python_interpreter": sys.executable,
}
DEAD = {
    "ansible_host": "127.0.0.2",
    "ansible_port": 1,
    "ansible_ssh_common_args": "-o ConnectTimeout=1 -o BatchMode=yes",
}
#: The first host is the one that the play is about; it is dead where it may be.
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "loadbalancers": {"lb1": DEAD},
    "wsnodes": {"node1": DEAD, "node2": DEAD, "node3": HERE, "node4": HERE},
    "redis": {"redis1": HERE, "redis2": DEAD, "redis3": DEAD},
}
COMMAND = """#!/bin/sh
[ "$1" != --version ] || exit 0
echo "$@" >> "$0.calls"
[ ! -e "$0.error" ] || { cat "$0.error" >&2; exit 2; }
"""


@pytest.fixture
def play(tmp_path: Path) -> Any:
    """Return a function that runs tasks of a role on one host, and a task after them."""
    (tmp_path / "wsfleet").write_text(COMMAND)
    (tmp_path / "wsfleet").chmod(0o755)

    def run(host: str, role: str, tasks_from: str, **variables: Any) -> str:
        role_of = {"name": f"wsfleet.wsfleet.{role}", "tasks_from": tasks_from}
        written = {
            "hosts.yml": {group: {"hosts": hosts} for group, hosts in GROUPS.items()},
            "play.yml": [
                {
                    "hosts": host,
                    "gather_facts": False,
                    "any_errors_fatal": True,
                    "environment": {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
                    "tasks": [
                        {"ansible.builtin.import_role": role_of, "vars": variables},
                        {"ansible.builtin.debug": {"msg": "it went on, {{ redis_primary }}"}},
                    ],
                    "vars": {"redis_primary": ""},
                }
            ],
        }
        for name, document in written.items():
            (tmp_path / name).write_text(yaml.safe_dump(document))
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *(f"-i{tmp_path}/hosts.yml", str(tmp_path / "play.yml")),
            ],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return f"{done.stdout}\nexit code {done.returncode}\n{done.stderr}"

    return run


def test_the_primary_is_found_without_dead_servers(play: Any) -> None:
    """For a backup, or for site.yml with --limit, while a server is replaced."""
    output = play("redis1", "redis", "primary")
    assert "it went on, redis1" in output
    assert "exit code 0" in output


def test_a_dead_balancer_ends_no_roll(play: Any) -> None:
    """It reads the ports of health checks from its file later."""
    ports = {"node3-8001": 9001}
    output = play("node3", "haproxy", "check_ports", haproxy_check_ports=ports)
    assert "it went on" in output
    assert "exit code 0" in output


@pytest.mark.parametrize(
    ("tasks", "command"), [("drain", "drain node1-8001 --timeout 63 --json"), ("forget", "forget")]
)
def test_a_dead_node_is_removed_while_another_one_is_dead(
    play: Any, tmp_path: Path, tasks: str, command: str
) -> None:
    """The first node that answers runs the command, and no other."""
    output = play("node1", "wsnode", tasks)
    assert "it went on" in output
    assert "exit code 0" in output
    (call,) = (tmp_path / "wsfleet.calls").read_text().splitlines()
    assert call.startswith(command)


@pytest.mark.parametrize("tasks", ["drain", "forget"])
@pytest.mark.parametrize(
    ("error", "goes_on"), [("wsfleet: unknown node node1-8001: name one of", True), ("no", False)]
)
def test_an_interrupted_scale_in_can_be_repeated(
    play: Any, tmp_path: Path, tasks: str, error: str, goes_on: bool
) -> None:
    """The nodes may be removed already; any other error ends the play."""
    (tmp_path / "wsfleet.error").write_text(error)
    output = play("node1", "wsnode", tasks)
    assert ("it went on" in output) == goes_on
    assert ("exit code 0" in output) == goes_on
