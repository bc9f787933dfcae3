"""Measure a deployment: a clean clone starts its cluster, runs again, and adds two nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.catalog import HERE
from bench.rig import BenchError

ROOT = HERE.parent
#: Seconds.
STEP_TIMEOUT = 1800
INVENTORY = "inventory/local/hosts.yml"
STARTS = 50


def run(clone: Path, *command: str) -> str:
    """Run a command in the clone, with the clone's own programs, and return its output.

    Raises:
        BenchError: it failed; the message has the end of its output.

    """
    environment = os.environ | {"PATH": f"{clone}/.venv/bin:{os.environ['PATH']}"}
    environment |= {"ANSIBLE_HOME": str(clone / ".cache/ansible"), "ANSIBLE_NOCOLOR": "1"}
    result = subprocess.run(
        command,
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=STEP_TIMEOUT,
    )
    if result.returncode:
        raise BenchError(f"{' '.join(command)}: {result.stdout[-2000:]}")
    return result.stdout


def changed(recap: str) -> int:
    """Return the number of changes on all hosts, from Ansible's recap."""
    return sum(map(int, re.findall(r"\bchanged=(\d+)", recap)))


def host_tasks(output: str) -> int:
    """Return the number of tasks in Ansible's output, each counted once for each host and item.

    It depends on the roles alone, where the seconds depend on the load of the machine as well.
    """
    return len(re.findall(r"(?m)^(?:ok|changed): \[", output))


def with_another_node(inventory: str) -> str:
    """Return the inventory with its commented node as a host, and the next one in a comment.

    Raises:
        BenchError: no node is in a comment.

    """
    found = re.search(r'(?m)^( +)# node(\d+)(: .*\.)(\d+)(" }\n)', inventory)
    if found is None:
        raise BenchError(f"{INVENTORY} has no node in a comment")
    indent, number, middle, address, end = found.groups()
    node = f"{indent}node{number}{middle}{address}{end}"
    following = f"{indent}# node{int(number) + 1}{middle}{int(address) + 1}{end}"
    return inventory[: found.start()] + node + following + inventory[found.end() :]


def _start_python(clone: Path) -> str:
    """Do what each host-task does at least once: it shows how fast the machine is."""
    load = "import ansible.module_utils.basic"
    return "".join(run(clone, sys.executable, "-c", load) for _ in range(STARTS))


def _up(clone: Path) -> str:
    return run(clone, "scripts/up")


def _again(clone: Path) -> str:
    output = run(clone, "ansible-playbook", "site.yml")
    if count := changed(output):
        raise BenchError(f"the second site.yml changed {count} things")
    return output


def _up_again(clone: Path) -> str:
    output = run(clone, "scripts/up")
    if count := changed(output):
        raise BenchError(f"the second scripts/up changed {count} things")
    return output


def _scale_out(clone: Path) -> str:
    return run(clone, "ansible-playbook", "playbooks/scale_out.yml", "-e", "node=node3")


def _site(clone: Path) -> str:
    return run(clone, "ansible-playbook", "site.yml")


def _prepare_node(clone: Path) -> None:
    """Create the VM, which is not timed: a real VM exists before it is in the inventory."""
    file = clone / INVENTORY
    file.write_text(with_another_node(file.read_text()))
    run(clone, "ansible-playbook", "playbooks/local/create.yml")


def _remove_vms(clone: Path) -> None:
    run(clone, "scripts/down", "local")


@dataclass(frozen=True)
class Step:
    """A timed step that returns its output, an untimed preparation, and the goal in seconds."""

    title: str
    timed: Callable[[Path], str]
    before: Callable[[Path], None] | None = None
    goal: float | None = None


STEPS = (
    Step(f"{STARTS} times: Python starts and loads Ansible's module library", _start_python),
    Step("`scripts/up` in a clean clone", _up, goal=360),
    Step("`site.yml` again: nothing changes", _again, goal=45),
    Step("`scripts/up` again: nothing changes", _up_again, goal=60),
    Step("`scale_out.yml`: one node more", _scale_out, _prepare_node, goal=60),
    Step("`site.yml` with one node more", _site, _prepare_node),
    Step("`scripts/up` after `scripts/down local`", _up, _remove_vms),
)


@contextmanager
def cloned() -> Iterator[Path]:
    """Make a clean clone of the last commit; at the end remove it and everything that it made."""
    with tempfile.TemporaryDirectory(prefix="bench-deploy-") as directory:
        clone = Path(directory) / "wsfleet"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        try:
            yield clone
        finally:
            run(clone, "scripts/down")


def steps() -> Iterator[dict[str, Any]]:
    """Time the steps and count their host-tasks, in order: each needs the one before."""
    with cloned() as clone:
        for step in STEPS:
            if step.before is not None:
                step.before(clone)
            began = time.monotonic()
            output = step.timed(clone)
            seconds = time.monotonic() - began
            counted = {"value": seconds, "goal": step.goal, "host_tasks": host_tasks(output)}
            yield {"step": step.title} | counted
