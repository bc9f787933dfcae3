"""How long deploying takes: a clean clone makes its cluster, again, and grows by a node."""

from __future__ import annotations

import os
import re
import subprocess
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
#: Seconds that a step may take at most.
LONGEST = 1800
INVENTORY = "inventory/local/hosts.yml"


def run(clone: Path, *command: str) -> str:
    """Run it in the clone, with the clone's own programs.

    Raises:
        BenchError: it failed; the message is the end of what it said.

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
        timeout=LONGEST,
    )
    if result.returncode:
        raise BenchError(f"{' '.join(command)}: {result.stdout[-2000:]}")
    return result.stdout


def changed(recap: str) -> int:
    """How many changes Ansible counted, on all hosts."""
    return sum(map(int, re.findall(r"\bchanged=(\d+)", recap)))


def with_another_node(inventory: str) -> str:
    """The inventory with the node that it holds ready as a comment.

    Raises:
        BenchError: there is none.

    """
    text, count = re.subn(r"(?m)^( +)# (node\d+: )", r"\1\2", inventory)
    if not count:
        raise BenchError(f"{INVENTORY} has no node in a comment")
    return text


def _up(clone: Path) -> None:
    run(clone, "scripts/up")


def _again(clone: Path) -> None:
    if count := changed(run(clone, "ansible-playbook", "site.yml")):
        raise BenchError(f"the second site.yml changed {count} things")


def _add(clone: Path) -> None:
    run(clone, "ansible-playbook", "site.yml")


def _prepare_node(clone: Path) -> None:
    """Not part of adding it: a real VM is there before it is in the inventory."""
    file = clone / INVENTORY
    file.write_text(with_another_node(file.read_text()))
    run(clone, "ansible-playbook", "playbooks/local/create.yml")


def _remove_vms(clone: Path) -> None:
    run(clone, "scripts/down", "local")


@dataclass(frozen=True)
class Step:
    """What is timed, what is done before it without being timed, and the goal in seconds."""

    title: str
    timed: Callable[[Path], None]
    before: Callable[[Path], None] | None = None
    goal: float | None = None


STEPS = (
    Step("`scripts/up` in a clean clone", _up, goal=360),
    Step("`site.yml` again: nothing changes", _again, goal=45),
    Step("`site.yml` with one node more", _add, _prepare_node, goal=60),
    Step("`scripts/up` after `scripts/down local`", _up, _remove_vms),
)


@contextmanager
def cloned() -> Iterator[Path]:
    """A clean clone of what is committed; with it goes all that it made."""
    with tempfile.TemporaryDirectory(prefix="bench-deploy-") as directory:
        clone = Path(directory) / "wsfleet"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        try:
            yield clone
        finally:
            run(clone, "scripts/down")


def steps() -> Iterator[dict[str, Any]]:
    """Take each step's seconds, one after the other: each needs what the one before left."""
    with cloned() as clone:
        for step in STEPS:
            if step.before is not None:
                step.before(clone)
            began = time.monotonic()
            step.timed(clone)
            yield {"step": step.title, "value": time.monotonic() - began, "goal": step.goal}
