"""Rules that all task files follow, of which no linter knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CREATING = ("file", "copy", "template", "unarchive", "get_url", "assemble", "blockinfile")
EARLY = {"systemd-journald", "systemd-sysctl", "wsfleet-firewall"}
"""Units that are there before the network."""
CONTROL_MACHINE = re.compile(r"playbooks/local/certificate|fleet/tasks/make_")
"""Tasks that plays on the control machine include."""

Node = dict[str, Any]


class Task(NamedTuple):
    """A task, with what it has from the blocks and the play around it."""

    path: str
    body: Node
    inherited: Node

    def module(self, *names: str) -> Node | None:
        """The arguments of a module, if the task has one of these."""
        for key, value in self.body.items():
            if key.rpartition(".")[2] in names:
                return value if isinstance(value, dict) else {"_": value}
        return None

    def get(self, key: str) -> Any:
        """Return the value of a keyword here."""
        return self.body.get(key, self.inherited.get(key))

    @property
    def is_local(self) -> bool:
        """Whether it works on the control machine."""
        variables = self.inherited.get("vars", {}) | self.body.get("vars", {})
        return (
            self.get("delegate_to") == "localhost"
            or variables.get("ansible_connection") == "local"
            or bool(CONTROL_MACHINE.search(self.path))
        )

    def __str__(self) -> str:
        """Where it is."""
        return f"{self.path}: {self.body.get('name')}"


def walk(path: str, nodes: list[Node], inherited: Node) -> Iterator[Task]:
    """Every task of a file, those in blocks as well."""
    for node in nodes:
        here = inherited | {"delegate_to": node.get("delegate_to", inherited.get("delegate_to"))}
        here["vars"] = inherited.get("vars", {}) | node.get("vars", {})
        if "vars_files" in node:
            here["vars"] |= yaml.safe_load((ROOT / path).with_name(node["vars_files"]).read_text())
        here["when"] = [inherited.get("when"), node.get("when")]
        keys = ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always")
        parts = [key for key in keys if key in node]
        for key in parts:
            yield from walk(path, node[key], here | {"rescue": key == "rescue"})
        if not parts:
            yield Task(path, node, here)


def tasks() -> list[Task]:
    """Every task of all roles and playbooks."""
    files = [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/**/*.yml")]
    found: list[Task] = []
    for file in sorted(files):
        nodes = yaml.safe_load(file.read_text())
        if isinstance(nodes, list):
            found += walk(str(file.relative_to(ROOT)), nodes, {})
    return found


TASKS = tasks()


def test_all_tasks_are_found() -> None:
    """A rule that is asked of nothing is always kept."""
    assert len(TASKS) > 200
    assert sum(task.module(*CREATING) is not None for task in TASKS) > 20
    assert sum(task.module("fleet_files") is not None for task in TASKS) > 15


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task.module(*CREATING) is not None], ids=str
)
def test_files_have_an_owner_and_a_mode(task: Task) -> None:
    """A umask, which hardened machines have, decides nothing."""
    arguments = task.module(*CREATING)
    assert arguments is not None
    if arguments.get("state") != "absent":
        wanted = {"mode"} if task.is_local else {"mode", "owner", "group"}
        assert wanted <= arguments.keys()


def test_units_are_started_in_one_way() -> None:
    """By fleet_unit, which sees whether it was a success, and says why not."""
    for task in TASKS:
        systemd = task.module("systemd_service", "systemd", "service")
        assert systemd is None or systemd.get("state") == "stopped", task


def mappings(node: Any) -> Iterator[Node]:
    """Every mapping in a document."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(part)


def test_services_wait_for_the_network_and_are_restarted_for_ever() -> None:
    """Each service that a role starts, unless it is there before the network."""
    files = [*ROOT.glob("roles/*/vars/main/main.yml"), *ROOT.glob("roles/*/tasks/*.yml")]
    found = [each for file in files for each in mappings(yaml.safe_load(file.read_text()))]
    drop_ins = [
        value
        for each in found
        for key, value in each.items()
        if key.endswith("drop_ins") and isinstance(value, dict)
    ]
    booting = {unit.removesuffix(".service") for mapping in drop_ins for unit in mapping}
    assert {"redis-server", "redis-sentinel", "haproxy", "keepalived", "wsnode@"} <= booting
    assert {"prometheus", "systemd-journal-upload", "wsnode-redis"} <= booting
    names = {each["name"] for each in found if str(each.get("name")).endswith(".service")}
    started = {
        name.removesuffix(".service") for name in names if "{{" not in name and " " not in name
    }
    assert {"redis-server", "prometheus", "systemd-journald"} <= started
    assert started - booting - EARLY <= {"grafana-server"}


def test_drop_in_files_are_written_in_one_way() -> None:
    """A role gives the unit and its text; the folder and the boot settings come with them."""
    for task in TASKS:
        assert ".d/wsfleet" not in str(task.module(*CREATING) or {}), task


def test_packages_are_installed_in_one_way() -> None:
    """So that none of the machine's own is removed for them, and no service starts by itself."""
    for task in TASKS:
        assert task.module("apt") is None or task.path.endswith("missing_packages.yml"), task


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task.module("command", "shell") is not None], ids=str
)
def test_a_check_reads_what_later_tasks_ask_for(task: Task) -> None:
    """`--check` leaves a command out, unless the task says otherwise: nothing is registered."""
    conditions = str((task.get("when"), task.inherited.get("when")))
    if task.body.get("changed_when") is False and not task.path.startswith("playbooks/local/"):
        assert task.body.get("check_mode") is False or "not ansible_check_mode" in conditions


def test_a_script_that_changes_something_stops_at_the_first_error() -> None:
    """Otherwise the status is that of its last command, and the task counts as done."""
    found = 0
    for task in TASKS:
        shell = task.module("shell") or {}
        script = str(shell.get("cmd", shell.get("_", ""))).replace("\\\n", "").strip()
        if "\n" in script and task.body.get("changed_when") is not False:
            assert re.match(r"set -(e|eu|euo pipefail)\n", script), task
            found += 1
    assert found >= 8


@pytest.mark.parametrize(
    "task", [task for task in TASKS if task.path.startswith("roles/")], ids=str
)
def test_a_check_needs_no_folder(task: Task) -> None:
    """A fresh machine has none; these modules look for it before they leave the work out."""
    command = task.module("command", "shell") or {}
    assert command.get("chdir", "/") == "/"
    assert task.module("unarchive") is None


def test_a_diff_shows_no_secret() -> None:
    """A diff also hides a secret of the old file, even if the new file has none."""
    for task in TASKS:
        assert "no_log" not in task.body or task.body.get("diff") is False, task


def test_a_retried_task_may_have_no_result() -> None:
    """`changed_when` and `failed_when` are decided before `until` is asked."""
    for task in TASKS:
        condition = str(task.body.get("until", ""))
        assert not re.search(r"\bis (not )?(changed|failed|succe\w+)", condition), task
        assert not condition or task.body.get("failed_when") is not False, task


def test_a_machine_that_may_be_unreachable_ends_no_play() -> None:
    """`any_errors_fatal` and `run_once` end a play for it, and do not know `ignore_unreachable`."""
    for task in TASKS:
        if task.path.startswith("roles/") and task.body.get("ignore_unreachable"):
            is_fatal = task.body.get("any_errors_fatal", True) or "run_once" in task.body
            assert not is_fatal or task.body.get("ignore_errors"), task


def test_a_host_reports_only_its_own_failure() -> None:
    """With `any_errors_fatal` a rescue also runs on the hosts that did not fail."""
    reports = [
        task
        for task in TASKS
        if task.path.startswith("roles/")
        and task.inherited.get("rescue")
        and (task.module("fail") or "wrong" in (task.module("fleet_unit") or {}))
    ]
    assert len(reports) >= 3
    for task in reports:
        assert "ansible_failed_task is defined" in str(task.body), task


@pytest.mark.parametrize("task", [task for task in TASKS if task.is_local], ids=str)
def test_the_control_machine_is_not_roots(task: Task) -> None:
    """A variable of the inventory, ansible_become, beats the keyword: the task's own beats both."""
    assert "become" not in task.body
    if not CONTROL_MACHINE.search(task.path):
        variables = task.inherited.get("vars", {}) | task.body.get("vars", {})
        assert variables["ansible_become"] in (False, "{{ vm_become }}")
