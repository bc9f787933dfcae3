#!/usr/bin/python
"""Make a systemd unit run with its configuration, or fail with the errors in its journal."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wsfleet.wsfleet.plugins.module_utils.written_files import (
    FILES_SPEC,
    write_files,
)

DOCUMENTATION = r"""
module: fleet_unit
short_description: Make a systemd unit run with its configuration
description:
  - First writes O(files) and O(drop_ins), as M(wsfleet.wsfleet.fleet_files) does.
  - Starts and enables a unit. Restarts or reloads it if its process is older than its files, so
    that an interrupted run loses nothing.
  - A service may fail after systemd has started it. The module waits until the unit is active, its
    process stays, and its page answers; otherwise it fails with the errors in the unit's journal.
options:
  name:
    description: The unit, with its type.
    type: str
  units:
    description:
      - Several units, one after the other, in place of O(name). Each has these options.
    type: list
    elements: dict
  state:
    description:
      - V(current) restarts or reloads a process that is older than its files. V(started) only
        starts a stopped unit. V(restarted) and V(reloaded) act in any case.
    type: str
    choices: [current, started, restarted, reloaded]
    default: current
  restart_files:
    description:
      - Files that only a start reads. The unit file and the C(wsfleet.conf) of its drop-in folder
        are always among them.
    type: list
    elements: path
    default: []
  reload_files:
    description: Files that a reload reads, too.
    type: list
    elements: path
    default: []
  url:
    description: A page of the service, which must answer with 200.
    type: str
    default: ""
  expect:
    description:
      - Regular expression that the page must match. If it does not, the unit is reloaded.
    type: str
    default: ""
  wrong:
    description: An error of another check of the service. The module fails with it.
    type: str
    default: ""
  since:
    description:
      - Begin of the shown part of the journal, in seconds since 1970. 0 is the unit's last change.
    type: float
    default: 0
  must_stay:
    description:
      - Whether the end of the process is a failure. Use V(false) for a unit that retries because it
        cannot reach another machine.
    type: bool
    default: true
  timeout:
    description: Seconds to wait until the service works.
    type: int
    default: 30
extends_documentation_fragment: wsfleet.wsfleet.files
author: wsfleet
"""

EXAMPLES = r"""
- name: Start or reload Prometheus
  wsfleet.wsfleet.fleet_unit:
    name: prometheus.service
    restart_files: [/etc/default/prometheus]
    reload_files: [/etc/prometheus/prometheus.yml]
    url: http://10.0.0.1:9090/metrics
    expect: (?m)^prometheus_config_last_reload_successful 1$
"""

RETURN = r"""
changed_paths:
  description: The paths that were changed.
  type: list
  elements: str
  returned: always
reason:
  description: Why the unit was started, restarted or reloaded; empty if it was not.
  type: str
  returned: with O(name)
since:
  description: Time of that, in seconds since 1970.
  type: float
  returned: with O(name)
units:
  description: The name, the change and these values of each unit.
  type: list
  elements: dict
  returned: with O(units)
"""

PROPERTIES = (
    "LoadState",
    "ActiveState",
    "MainPID",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "UnitFileState",
    "ConditionResult",
    "ConditionTimestamp",
    "InactiveExitTimestamp",
    "ExecMainStartTimestamp",
    "StateChangeTimestamp",
)
STATES = ["current", "started", "restarted", "reloaded"]
FOLDER = Path("/etc/systemd/system")
SETTLED = 2.0
"""Seconds that a process must live: most configuration errors end one sooner."""
TELLING = re.compile(
    r"alert|emerg|error|fatal|fail|cannot|can't|could not|unable|denied|refused|invalid|unknown"
    r"|in use|no such",
    re.IGNORECASE,
)
"""Pattern of journal lines that report an error."""
MOST_LINES = 12

Run = Callable[[Sequence[str]], tuple[int, str, str]]


class FailedError(Exception):
    """The unit does not run with its configuration."""


@dataclass(frozen=True)
class State:
    """A unit's state, times in seconds since 1970; 0 is never."""

    load: str
    active: str
    pid: int
    files_changed: bool
    files: tuple[str, ...]
    enabled: str
    condition: bool
    condition_time: float
    started: float
    loaded: float

    @classmethod
    def parse(cls, text: str) -> State:
        """Read the output of `systemctl show --timestamp=us+utc`."""
        said = dict(line.partition("=")[::2] for line in text.splitlines())
        pid = said.get("MainPID", "")
        started = timestamp(said.get("ExecMainStartTimestamp", ""))
        return cls(
            load=said.get("LoadState", ""),
            active=said.get("ActiveState", ""),
            pid=int(pid) if pid.isdecimal() else 0,
            files_changed=said.get("NeedDaemonReload") == "yes",
            files=(said.get("FragmentPath", ""), *said.get("DropInPaths", "").split()),
            enabled=said.get("UnitFileState", ""),
            condition=said.get("ConditionResult") != "no",
            condition_time=timestamp(said.get("ConditionTimestamp", "")),
            started=started or timestamp(said.get("InactiveExitTimestamp", "")),
            loaded=timestamp(said.get("StateChangeTimestamp", "")),
        )

    @property
    def is_skipped(self) -> bool:
        """Whether a condition of the unit prevents its start, as in a container."""
        return self.active == "inactive" and not self.condition and self.condition_time > 0


def timestamp(text: str) -> float:
    """Read a time as systemd writes it with `us+utc`; return 0 for an empty one."""
    match = re.search(r"(\d+-\d+-\d+ \d+:\d+:\d+(?:\.\d+)?) UTC$", text)
    if not match:
        return 0.0
    pattern = "%Y-%m-%d %H:%M:%S" + (".%f" if "." in match[1] else "")
    return datetime.strptime(match[1], pattern).replace(tzinfo=UTC).timestamp()


def newer(files: Iterable[str], moment: float) -> str:
    """Return the first file that was written after a moment, or an empty text."""
    for name in files:
        path = Path(name)
        if path.exists() and path.stat().st_mtime > moment:
            return name
    return ""


def telling(lines: Sequence[str]) -> list[str]:
    """Return the lines of a journal that report errors, or else its last lines."""
    found = [line for line in lines if TELLING.search(line)]
    return list(dict.fromkeys(found or lines))[-MOST_LINES:]


class Unit:
    """A unit of systemd."""

    def __init__(self, name: str, run: Run) -> None:
        self._name = name
        self._run = run

    @property
    def own_files(self) -> list[str]:
        """Files of the unit, written by the roles, whose changes need a restart."""
        names = {self._name, re.sub(r"@.*\.", "@.", self._name)}  # of an instance, the template too
        paths = [path for name in sorted(names) for path in (name, f"{name}.d/wsfleet.conf")]
        return [str(FOLDER / path) for path in paths]

    @property
    def _settings(self) -> set[str]:
        """All files in its drop-in folders."""
        folders = {Path(path) for path in self.own_files if not path.endswith(".conf")}
        return {str(file) for folder in folders for file in FOLDER.glob(f"{folder.name}.d/*.conf")}

    def needs_daemon_reload(self, state: State) -> bool:
        """Whether systemd has read an older version of its files.

        systemd itself does not notice a new drop-in folder.
        """
        return (
            state.load == "not-found" or state.files_changed or not self._settings <= {*state.files}
        )

    @property
    def state(self) -> State:
        """Its state now."""
        properties = [f"--property={name}" for name in PROPERTIES]
        command = ["systemctl", "show", "--timestamp=us+utc", *properties, self._name]
        return State.parse(self._run(command)[1])

    def command(self, verb: str, since: float) -> None:
        """Start, restart, reload or enable the unit.

        Raises:
            FailedError: systemctl failed.
        """
        code, output, error = self._run(["systemctl", verb, self._name])
        if code != 0:
            text = (error or output).strip().splitlines()
            raise FailedError(self.explain(f"systemctl {verb}: {text[0] if text else code}", since))

    def daemon_reload(self) -> None:
        """Make systemd read its files again."""
        self._run(["systemctl", "daemon-reload"])

    def explain(self, wrong: str, since: float) -> str:
        """Return an error message, with the errors in the unit's journal since then."""
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=200"]
        output = self._run([*command, f"--since=@{int(since)}", f"--unit={self._name}"])[1]
        lines = telling([line for line in output.splitlines() if line])
        said = "\n".join(["", "Its journal says:", *lines]) if lines else ""
        return f"{self._name} does not run with what is configured: {wrong}.{said}"


class Page:
    """A page of a service that shows whether the service works."""

    def __init__(self, url: str, expect: str) -> None:
        self._url = url
        self._expect = expect

    def wrong(self) -> str:
        """Return the mistake in the page, or an empty text."""
        if not self._url:
            return ""
        try:
            with urllib.request.urlopen(self._url, timeout=5) as answer:  # noqa: S310 - the role's own URL
                text = answer.read().decode(errors="replace")
        except (OSError, ValueError) as error:
            return f"{self._url} does not answer: {error}"
        if not re.search(self._expect, text):
            return f"{self._url} does not have {self._expect}"
        return ""


def why(
    state: State, wanted: str, restart_files: Iterable[str], reload_files: Iterable[str]
) -> tuple[str, str]:
    """Return the verb of systemctl that the unit needs, and the reason; both empty for none."""
    if state.is_skipped:
        file = newer([*restart_files, *reload_files], state.condition_time)
        return ("start", f"{file} is new") if file else ("", "")
    if state.active not in ("active", "reloading"):
        return "restart" if state.active == "activating" else "start", "it does not run"
    if wanted in ("restarted", "reloaded"):
        return wanted.removesuffix("ed"), "it was asked for"
    if wanted == "started":
        return "", ""
    if file := newer(restart_files, state.started):
        return "restart", f"{file} is newer than the process"
    if file := newer(reload_files, max(state.loaded, state.started)):
        return "reload", f"{file} is newer than the last reload"
    return "", ""


def wait(unit: Unit, page: Page, since: float, acted: float, timeout: float) -> None:
    """Wait until the unit is active, its process stays, and its page is right.

    `acted` is the time of its start or reload; 0 for none.

    Raises:
        FailedError: it did not happen in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        state = unit.state
        if state.is_skipped:
            return
        young = time.time() - max(acted, state.started if state.pid else 0) < SETTLED
        wrong = "its process does not stay" if young else page.wrong()
        if state.active != "active":
            wrong = f"it is {state.active}"
        if not wrong:
            return
        if time.monotonic() > deadline or state.active == "failed":
            raise FailedError(unit.explain(wrong, since))
        time.sleep(0.25)


OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": STATES, "default": STATES[0]},
    "restart_files": {"type": "list", "elements": "path", "default": []},
    "reload_files": {"type": "list", "elements": "path", "default": []},
    "url": {"type": "str", "default": ""},
    "expect": {"type": "str", "default": ""},
    "wrong": {"type": "str", "default": ""},
    "since": {"type": "float", "default": 0.0},
    "must_stay": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 30},
}


def make_current(module: AnsibleModule, params: Mapping[str, Any]) -> dict[str, Any]:
    """Make one unit run with its configuration, and return its result."""
    unit = Unit(params["name"], module.run_command)
    page = Page(params["url"], params["expect"])
    now = time.time()
    state = unit.state
    since = params["since"] or max(state.loaded, state.started) or now
    if params["wrong"]:
        module.fail_json(msg=unit.explain(params["wrong"], since))
    if unit.needs_daemon_reload(state):
        if not module.check_mode:
            unit.daemon_reload()
            state = unit.state
        elif state.load == "not-found":
            return {"changed": True, "reason": "it is not installed yet", "since": now}
    if state.active == "activating" and not params["must_stay"]:
        state = replace(state, active="active")
    restart_files = [*unit.own_files, *params["restart_files"]]
    verb, reason = why(state, params["state"], restart_files, params["reload_files"])
    if not verb and (wrong := page.wrong()):
        verb, reason = "reload" if params["reload_files"] else "", wrong
    disabled = state.enabled == "disabled"
    if not module.check_mode:
        try:
            if disabled:
                unit.command("enable", now)
            if verb:
                since = now
                unit.command(verb, since)
            if params["must_stay"]:
                wait(unit, page, since, now if verb else 0, params["timeout"])
        except FailedError as error:
            module.fail_json(msg=str(error), reason=reason, since=since)
    changed = bool(verb) or disabled
    return {"changed": changed, "reason": reason if verb else "", "since": since}


def main() -> None:
    """Run as Ansible does."""
    one = {**OPTIONS, "name": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            **FILES_SPEC,
            "units": {"type": "list", "elements": "dict", "options": one},
        },
        required_one_of=[("name", "units")],
        mutually_exclusive=[("name", "units")],
        supports_check_mode=True,
    )
    written = write_files(module)
    units = module.params["units"]
    if units is None:
        result = make_current(module, module.params)
    else:
        results = [{"name": unit["name"], **make_current(module, unit)} for unit in units]
        result = {"changed": any(each["changed"] for each in results), "units": results}
    module.exit_json(**written | result | {"changed": written["changed"] or result["changed"]})


if __name__ == "__main__":
    main()
