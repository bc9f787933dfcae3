#!/usr/bin/python
"""Make a systemd unit run with what is configured, or fail with the unit's own words."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: fleet_unit
short_description: Make a systemd unit run with what is configured
description:
  - Starts and enables a unit. Restarts or reloads it where its process is older than its files,
    whoever wrote them and when, so that an interrupted run loses nothing.
  - A command that systemd accepts is not yet a service that works. Waits until the unit is active,
    its process stays, and its page answers; else fails with what its journal says.
options:
  name:
    description: The unit, with its type.
    type: str
    required: true
  state:
    description:
      - V(current) restarts or reloads a process that is older than its files. V(started) leaves a
        running process alone, which something else restarts. V(restarted) and V(reloaded) act now.
    type: str
    choices: [current, started, restarted, reloaded]
    default: current
  restart_files:
    description:
      - Files that are read at a start alone. The unit's own file and the C(wsfleet.conf) in the
        folder of its settings are always among them.
    type: list
    elements: path
    default: []
  reload_files:
    description: Files that a reload reads as well.
    type: list
    elements: path
    default: []
  url:
    description: A page of the service. It must be answered with 200.
    type: str
    default: ""
  expect:
    description:
      - Regular expression that the page must match. Where it does not, the unit is reloaded.
    type: str
    default: ""
  wrong:
    description: What another check has found to be wrong with the running service; fails with it.
    type: str
    default: ""
  since:
    description:
      - Where the shown part of the journal begins, in seconds since 1970. 0 is the unit's last
        change.
    type: float
    default: 0
  must_stay:
    description:
      - Whether it is a failure that the process ends. It is none where the unit tries again because
        it cannot reach another machine.
    type: bool
    default: true
  timeout:
    description: Seconds to wait until it works.
    type: int
    default: 30
author: wsfleet
"""

EXAMPLES = r"""
- name: Start, or take changed settings into use
  fleet_unit:
    name: prometheus.service
    restart_files: [/etc/default/prometheus]
    reload_files: [/etc/prometheus/prometheus.yml]
    url: http://10.0.0.1:9090/metrics
    expect: (?m)^prometheus_config_last_reload_successful 1$
"""

RETURN = r"""
reason:
  description: Why the unit was started, restarted or reloaded; empty if it was not.
  type: str
  returned: always
since:
  description: When that was, in seconds since 1970.
  type: float
  returned: always
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
FOLDER = Path("/etc/systemd/system")
SETTLED = 2.0
"""Seconds that a process must live: most mistakes that end one do so in its first moments."""
TELLING = re.compile(
    r"alert|emerg|error|fatal|fail|cannot|can't|could not|unable|denied|refused|invalid|unknown"
    r"|in use|no such",
    re.IGNORECASE,
)
"""Lines of a journal that say what is wrong, as far as words tell."""
MOST_LINES = 12

Run = Callable[[Sequence[str]], tuple[int, str, str]]


class FailedError(Exception):
    """The unit does not run with what is configured."""


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
        """Whether a condition in the unit keeps systemd from starting it, as in a container."""
        return self.active == "inactive" and not self.condition and self.condition_time > 0


def timestamp(text: str) -> float:
    """Read a time as systemd writes it with `us+utc`; 0 where there is none."""
    match = re.search(r"(\d+-\d+-\d+ \d+:\d+:\d+(?:\.\d+)?) UTC$", text)
    if not match:
        return 0.0
    pattern = "%Y-%m-%d %H:%M:%S" + (".%f" if "." in match[1] else "")
    return datetime.strptime(match[1], pattern).replace(tzinfo=UTC).timestamp()


def newer(files: Iterable[str], moment: float) -> str:
    """Name the first file that was written after a moment, or nothing."""
    for name in files:
        path = Path(name)
        if path.exists() and path.stat().st_mtime > moment:
            return name
    return ""


def telling(lines: Sequence[str]) -> list[str]:
    """Choose the lines of a journal that say what is wrong; the last ones, if no word tells."""
    found = [line for line in lines if TELLING.search(line)]
    return list(dict.fromkeys(found or lines))[-MOST_LINES:]


class Unit:
    """A unit of systemd."""

    def __init__(self, name: str, run: Run) -> None:
        self._name = name
        self._run = run

    @property
    def own_files(self) -> list[str]:
        """What the roles write of a unit that its process must be restarted for."""
        names = {self._name, re.sub(r"@.*\.", "@.", self._name)}  # of an instance, the template too
        paths = [path for name in sorted(names) for path in (name, f"{name}.d/wsfleet.conf")]
        return [str(FOLDER / path) for path in paths]

    @property
    def _settings(self) -> set[str]:
        """The files of its settings that are there, whoever wrote them."""
        folders = {Path(path) for path in self.own_files if not path.endswith(".conf")}
        return {str(file) for folder in folders for file in FOLDER.glob(f"{folder.name}.d/*.conf")}

    def needs_daemon_reload(self, state: State) -> bool:
        """Whether systemd knows another version of its files.

        systemd itself does not notice a folder of settings that is new.
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
        """Have systemd start, restart, reload or enable it.

        Raises:
            FailedError: systemd says that it did not succeed.
        """
        code, output, error = self._run(["systemctl", verb, self._name])
        if code != 0:
            text = (error or output).strip().splitlines()
            raise FailedError(self.explain(f"systemctl {verb}: {text[0] if text else code}", since))

    def daemon_reload(self) -> None:
        """Have systemd read its files again."""
        self._run(["systemctl", "daemon-reload"])

    def explain(self, wrong: str, since: float) -> str:
        """Say what is wrong with it, followed by its own words since then."""
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=200"]
        output = self._run([*command, f"--since=@{int(since)}", f"--unit={self._name}"])[1]
        lines = telling([line for line in output.splitlines() if line])
        said = "\n".join(["", "Its journal says:", *lines]) if lines else ""
        return f"{self._name} does not run with what is configured: {wrong}.{said}"


class Page:
    """A page of a service, which tells whether it works."""

    def __init__(self, url: str, expect: str) -> None:
        self._url = url
        self._expect = expect

    def wrong(self) -> str:
        """Say what is wrong with the page; empty if nothing is."""
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
    """Choose the verb of systemctl that the unit needs, and say why; empty if it needs none."""
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
    """Wait until the unit is active, its process stays, and its page is as it should be.

    `acted` is when it was started or reloaded; 0 if it was not.

    Raises:
        FailedError: that did not happen in time.
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


def main() -> None:
    """Run as Ansible does."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["current", "started", "restarted", "reloaded"],
                "default": "current",
            },
            "restart_files": {"type": "list", "elements": "path", "default": []},
            "reload_files": {"type": "list", "elements": "path", "default": []},
            "url": {"type": "str", "default": ""},
            "expect": {"type": "str", "default": ""},
            "wrong": {"type": "str", "default": ""},
            "since": {"type": "float", "default": 0.0},
            "must_stay": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
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
            module.exit_json(changed=True, reason="it is not installed yet", since=now)
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
    module.exit_json(changed=bool(verb) or disabled, reason=reason if verb else "", since=since)


if __name__ == "__main__":
    main()
