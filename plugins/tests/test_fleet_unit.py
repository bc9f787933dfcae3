"""A unit that runs with its configuration: comparing, acting, reporting."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.wsfleet.wsfleet.plugins.modules import fleet_unit
from ansible_collections.wsfleet.wsfleet.plugins.modules.fleet_unit import (
    FailedError,
    Page,
    State,
    Unit,
    telling,
    timestamp,
    wait,
    why,
)

STARTED = "Sun 2026-11-29 20:00:00.250000 UTC"
RELOADED = "Sun 2026-11-29 21:00:00.500000 UTC"
MOMENT = timestamp(STARTED)


def shown(**changes: str) -> str:
    """Return systemctl's properties of a unit that was started, and reloaded an hour later."""
    properties = {
        "LoadState": "loaded",
        "ActiveState": "active",
        "MainPID": "100",
        "NeedDaemonReload": "no",
        "UnitFileState": "enabled",
        "ConditionResult": "yes",
        "ConditionTimestamp": STARTED,
        "InactiveExitTimestamp": STARTED,
        "ExecMainStartTimestamp": STARTED,
        "StateChangeTimestamp": RELOADED,
    }
    return "\n".join(f"{name}={value}" for name, value in (properties | changes).items())


def written(path: Path, seconds: float) -> str:
    """Make a file that was written a number of seconds after the unit was started."""
    path.touch()
    os.utime(path, (MOMENT + seconds, MOMENT + seconds))
    return str(path)


class Systemd:
    """Stands in for systemctl and journalctl: states one after the other, the last one for ever."""

    def __init__(self, *states: str, journal: str = "") -> None:
        self.states = list(states)
        self.journal = journal
        self.commands: list[str] = []

    def __call__(self, command: Sequence[str]) -> tuple[int, str, str]:
        """Answer a command."""
        if command[0] == "journalctl":
            return 0, self.journal, ""
        if command[1] == "show":
            return 0, self.states.pop(0) if len(self.states) > 1 else self.states[0], ""
        self.commands.append(command[1])
        return 0, "", ""


def test_times_are_read_with_their_fractions() -> None:
    """Times of systemd are read to the microsecond; `n/a` and an empty text mean no time."""
    assert timestamp(STARTED) % 60 == 0.25
    assert timestamp("Sun 2026-11-29 20:00:00 UTC") == MOMENT - 0.25
    assert timestamp("n/a") == timestamp("") == 0


@pytest.mark.parametrize(
    ("changes", "wanted", "verb"),
    [
        ({}, "current", ""),
        ({"ActiveState": "inactive"}, "current", "start"),
        ({"ActiveState": "failed"}, "started", "start"),
        ({"ActiveState": "activating"}, "current", "restart"),
        ({}, "restarted", "restart"),
        ({}, "reloaded", "reload"),
        ({"ActiveState": "inactive"}, "reloaded", "start"),
        ({"ActiveState": "inactive", "ConditionResult": "no"}, "current", ""),
    ],
)
def test_a_stopped_unit_is_started(changes: dict[str, str], wanted: str, verb: str) -> None:
    """Also what is between two attempts; not what a condition of the unit keeps from it."""
    assert why(State.parse(shown(**changes)), wanted, [], [])[0] == verb


@pytest.mark.parametrize(
    ("restart_file", "reload_file", "wanted", "verb"),
    [
        (-1, -1, "current", ""),
        (1, -1, "current", "restart"),
        (1, 4000, "current", "restart"),
        (-1, 1, "current", ""),
        (-1, 4000, "current", "reload"),
        (1, 4000, "started", ""),
    ],
)
def test_a_process_older_than_its_files_is_restarted(
    tmp_path: Path, restart_file: int, reload_file: int, wanted: str, verb: str
) -> None:
    """A start is compared with all that it reads, a reload with what it reads as well."""
    restart = written(tmp_path / "restart", restart_file)
    reload = written(tmp_path / "reload", reload_file)
    missing = str(tmp_path / "missing")
    chosen = why(State.parse(shown()), wanted, [restart, missing], [reload, missing])
    assert chosen[0] == verb
    assert bool(chosen[1]) == bool(verb)


def test_a_condition_is_asked_again_when_a_file_is_new(tmp_path: Path) -> None:
    """A start that systemd skipped is tried once for each change."""
    skipped = State.parse(shown(ActiveState="inactive", ConditionResult="no"))
    assert why(skipped, "current", [written(tmp_path / "new", 1)], [])[0] == "start"
    assert why(skipped, "current", [written(tmp_path / "old", -1)], []) == ("", "")


def test_an_old_process_needs_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for where the process is an hour old."""
    monkeypatch.setattr("time.time", lambda: MOMENT + 3600)
    wait(Unit("x.service", Systemd(shown())), Page("", ""), 0, 0, timeout=0)


@pytest.mark.parametrize(
    "states",
    [
        [shown(ActiveState="failed", MainPID="0")],
        [shown(ActiveState="activating", MainPID="0")],
        [shown(), shown(ActiveState="activating")],
    ],
)
def test_the_error_of_a_process_that_ends(
    monkeypatch: pytest.MonkeyPatch, states: list[str]
) -> None:
    """Also one that lived for a moment: systemd has started it well."""
    moments = iter([MOMENT + 0.1] + [MOMENT + 60] * 100)
    monkeypatch.setattr("time.time", lambda: next(moments))
    journal = "Starting x\nbind: Address already in use\nStopped x"
    unit = Unit("x.service", Systemd(*states, journal=journal))
    with pytest.raises(
        FailedError, match=r"(?s)x\.service .*bind: Address already in use"
    ) as error:
        wait(unit, Page("", ""), 0, 0, timeout=0)
    assert "Stopped" not in str(error.value)


def test_a_wrong_page_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stays and does not answer does not work."""
    monkeypatch.setattr("time.time", lambda: MOMENT + 3600)
    unit = Unit("x.service", Systemd(shown()))
    with pytest.raises(FailedError, match="does not answer"):
        wait(unit, Page("http://127.0.0.1:9/metrics", ""), 0, 0, timeout=0)


def test_a_unit_knows_its_own_files() -> None:
    """The unit's files are those that the roles write, without an operator's drop-ins."""
    assert Unit("a.service", Systemd("")).own_files == [
        "/etc/systemd/system/a.service",
        "/etc/systemd/system/a.service.d/wsfleet.conf",
    ]


def test_an_instance_has_the_files_of_its_template() -> None:
    """Both are read."""
    own = Unit("a@1.service", Systemd("")).own_files
    assert {Path(path).name for path in own if ".d/" not in path} == {"a@1.service", "a@.service"}


def test_systemd_reads_new_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a folder of settings that is new it knows nothing by itself."""
    monkeypatch.setattr(fleet_unit, "FOLDER", tmp_path)
    unit = Unit("a@1.service", Systemd(""))
    assert not unit.needs_daemon_reload(State.parse(shown()))
    assert unit.needs_daemon_reload(State.parse(shown(NeedDaemonReload="yes")))
    assert unit.needs_daemon_reload(State.parse(shown(LoadState="not-found")))
    (tmp_path / "a@.service.d").mkdir()
    settings = tmp_path / "a@.service.d" / "x.conf"
    settings.touch()
    assert unit.needs_daemon_reload(State.parse(shown()))
    assert not unit.needs_daemon_reload(State.parse(shown(DropInPaths=str(settings))))


def test_lines_that_tell_are_chosen() -> None:
    """Each once, the last ones; where no word tells, the end of what was said."""
    lines = [f"line {number}" for number in range(50)]
    assert telling(lines) == lines[-fleet_unit.MOST_LINES :]
    assert telling([*lines, "[ALERT] a", "[ALERT] a", "Loading failure!"]) == [
        "[ALERT] a",
        "Loading failure!",
    ]


@pytest.fixture
def module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """Run the module with a stand-in for systemd, in check mode, and return its result."""

    def run(states: dict[str, str], **arguments: Any) -> dict[str, Any]:
        def answer(_: Any, command: Sequence[str]) -> tuple[int, str, str]:
            return 0, states[command[-1]], ""

        monkeypatch.setattr(AnsibleModule, "run_command", answer)
        arguments |= {"_ansible_check_mode": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            fleet_unit.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_several_units_have_a_result_each(
    module: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Each with options of its own: one is restarted for its file, the other stays."""
    file = written(tmp_path / "file", 1)
    units = [{"name": "a.service", "restart_files": [file]}, {"name": "b.service"}]
    result = module({"a.service": shown(), "b.service": shown()}, units=units)
    assert result["changed"]
    assert [(unit["name"], unit["changed"]) for unit in result["units"]] == [
        ("a.service", True),
        ("b.service", False),
    ]
    assert file in result["units"][0]["reason"]
    assert not module({"b.service": shown()}, units=units[1:])["changed"]


def test_one_unit_has_its_own_result(module: Callable[..., dict[str, Any]]) -> None:
    """As tasks read it that restart one unit; a unit or a list of them is required."""
    result = module({"a.service": shown(ActiveState="inactive")}, name="a.service")
    assert (result["changed"], result["reason"]) == (True, "it does not run")
    assert "one of the following is required: name, units" in module({})["msg"]


def test_files_are_written_before_their_unit(
    module: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """In one task, with one result; an error of a file leaves the unit untouched."""
    file = {"path": str(tmp_path / "file"), "content": "new", "mode": "0644"}
    done = module({"a.service": shown()}, name="a.service", files=[file])
    assert (done["changed"], done["changed_paths"], done["reason"]) == (True, [file["path"]], "")
    (tmp_path / "file").write_text("new")
    (tmp_path / "file").chmod(0o644)
    units = [{"name": "a.service"}]
    done = module({"a.service": shown()}, units=units, files=[file])
    assert (done["changed"], done["changed_paths"]) == (False, [])
    (tmp_path / "folder").mkdir()
    wrong = file | {"path": str(tmp_path / "folder")}
    failed = module({}, name="a.service", files=[wrong])
    assert "is a folder, and not a file" in failed["msg"]
