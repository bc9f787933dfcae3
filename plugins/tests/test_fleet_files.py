"""Files of a machine in one task: writing, comparing, reporting."""

from __future__ import annotations

import grp
import json
import os
import pwd
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.wsfleet.wsfleet.plugins.module_utils import written_files
from ansible_collections.wsfleet.wsfleet.plugins.module_utils.written_files import drop_in_entries
from ansible_collections.wsfleet.wsfleet.plugins.modules import fleet_files

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}

Run = Any


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the module with real arguments, and return its result."""

    def run_module(*files: dict[str, Any], check: bool = False, **arguments: Any) -> dict[str, Any]:
        entries = [{key: str(value) for key, value in (ME | file).items()} for file in files]
        arguments |= {"files": entries, "_ansible_check_mode": check}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            fleet_files.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run_module


def mode(path: Path) -> int:
    """The permissions of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_a_file_and_a_link_are_written_once(run: Run, tmp_path: Path) -> None:
    """A second run changes nothing and keeps the time of the file, by which units restart."""
    folder, link = tmp_path / "a" / "folder", tmp_path / "link"
    file = folder / "file"
    entries = (
        {"path": folder, "state": "directory", "mode": "0750"},
        {"path": file, "content": "text\n", "mode": "0640"},
        {"path": link, "state": "link", "target": file},
    )
    assert run(*entries)["changed_paths"] == [str(folder), str(file), str(link)]
    assert (mode(folder), mode(file), link.read_text()) == (0o750, 0o640, "text\n")
    os.utime(file, (1, 1))
    again = run(*entries)
    assert (again["changed"], again["changed_paths"], again["diff"]) == (False, [], [])
    assert file.stat().st_mtime == 1
    assert sorted(path.name for path in folder.iterdir()) == ["file"]


def test_drift_is_mended(run: Run, tmp_path: Path) -> None:
    """Content, mode, a link instead of the file, and a link that leads elsewhere."""
    file, other, link = tmp_path / "file", tmp_path / "other", tmp_path / "link"
    entry = {"path": file, "content": "new", "mode": "0600"}
    file.write_text("old")
    (told,) = run(entry)["diff"]
    assert (told["before"], told["after"], told["after_header"]) == ("old", "new", str(file))
    assert file.read_text() == "new"
    file.chmod(0o644)
    moded = run(entry)
    assert moded["changed_paths"] == [str(file)]
    assert moded["diff"][0]["after"] == {"mode": "0600"}
    assert mode(file) == 0o600
    file.unlink()
    other.write_text("new")
    file.symlink_to(other)
    assert run(entry)["changed"]
    assert not file.is_symlink()
    link.symlink_to(other)
    assert run({"path": link, "state": "link", "target": file})["changed"]
    assert link.readlink() == file


def test_what_must_not_exist_is_removed(run: Run, tmp_path: Path) -> None:
    """A file, a link to nothing, and a folder with its files; what a link leads to stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    entries = [{"path": tmp_path / name, "state": "absent"} for name in ("folder", "link", "none")]
    assert run(*entries)["changed_paths"] == [str(tmp_path / "folder"), str(tmp_path / "link")]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_check_mode_tells_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    """With the same changes and differences as the run after it, and without the validation."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "gone").touch()
    entries = (
        {"path": tmp_path / "new", "state": "directory", "mode": "0755"},
        {"path": tmp_path / "new" / "file", "content": "text", "mode": "0644"},
        {"path": tmp_path / "file", "content": "new", "mode": "0644", "validate": "true %s"},
        {"path": tmp_path / "link", "state": "link", "target": "file"},
        {"path": tmp_path / "gone", "state": "absent"},
    )
    before = sorted(tmp_path.rglob("*"))
    unchecked = {**entries[2], "validate": "no-such-program %s"}
    checked = run(*entries[:2], unchecked, *entries[3:], check=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "old"
    written = run(*entries)
    assert len(checked["changed_paths"]) == len(entries)
    assert checked["changed_paths"] == written["changed_paths"]
    assert checked["diff"] == written["diff"]
    assert run(*entries, check=True)["changed"] is False


def test_an_invalid_file_replaces_nothing(run: Run, tmp_path: Path) -> None:
    """The error has the words of the command; what precedes it is written, what follows is not."""
    file = tmp_path / "file"
    file.write_text("valid")
    result = run(
        {"path": tmp_path / "first", "content": "", "mode": "0600"},
        {"path": file, "content": "x", "mode": "0600", "validate": "grep --quiet valid %s"},
        {"path": tmp_path / "last", "content": "", "mode": "0600"},
    )
    assert result["failed"]
    assert f"failed to validate {file}" in result["msg"]
    assert (result["rc"], result["changed_paths"]) == (1, [str(tmp_path / "first")])
    assert file.read_text() == "valid"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "first"]


def test_a_file_that_is_written_once_is_left_alone(run: Run, tmp_path: Path) -> None:
    """A program keeps its state there."""
    entry = {"path": tmp_path / "state", "content": "first", "mode": "0640", "force": False}
    assert run(entry)["changed"]
    (tmp_path / "state").write_text("state")
    assert not run(entry)["changed"]
    assert (tmp_path / "state").read_text() == "state"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"content": "x", "mode": "0600"}, "is a folder, and not a file: remove it"),
        ({"state": "link", "target": "x"}, "is a folder, and not a link: remove it"),
        ({"content": "x"}, "missing: mode"),
        ({"state": "directory"}, "missing: mode"),
        ({"state": "link"}, "missing: target"),
        ({"mode": "0600"}, "missing: content"),
    ],
)
def test_wrong_entries_are_errors(
    run: Run, tmp_path: Path, entry: dict[str, Any], expected: str
) -> None:
    """No folder is deleted for a file, and no file gets its mode from a umask."""
    result = run({"path": tmp_path} | entry)
    assert result["failed"]
    assert expected in result["msg"]


def test_a_missing_folder_is_an_error(run: Run, tmp_path: Path) -> None:
    """The message names the path."""
    result = run({"path": tmp_path / "none" / "file", "content": "x", "mode": "0600"})
    assert result["failed"]
    assert result["msg"].startswith(f"{tmp_path}/none/file: ")


def test_validate_without_a_path_is_an_error(run: Run, tmp_path: Path) -> None:
    """It would check the old file."""
    entry = {"path": tmp_path / "file", "content": "x", "mode": "0600", "validate": "true"}
    assert "must contain %s" in run(entry)["msg"]


def test_a_service_waits_for_the_network_and_a_socket_does_not() -> None:
    """The drop-in folder of each unit, the boot settings of a service, and its own settings."""
    entries = drop_in_entries({"a.service": "own", "b@.service": "", "c.socket": "own"})
    folder = written_files.FOLDER
    assert [entry["path"].removeprefix(f"{folder}/") for entry in entries] == [
        "a.service.d",
        "a.service.d/wsfleet-boot.conf",
        "a.service.d/wsfleet.conf",
        "b@.service.d",
        "b@.service.d/wsfleet-boot.conf",
        "c.socket.d",
        "c.socket.d/wsfleet.conf",
    ]
    assert "StartLimitIntervalSec=0" in entries[1]["content"]
    assert {entry["owner"] for entry in entries} == {"root"}


def test_drop_in_files_are_written_after_the_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same rules: check mode tells of them as well."""
    monkeypatch.setattr(written_files, "FOLDER", str(tmp_path))
    file = {"path": tmp_path / "a.service", "content": "x", "mode": "0644"}
    result = run(file, drop_ins={"a.service": "own"}, check=True)
    names = [path.removeprefix(f"{tmp_path}/") for path in result["changed_paths"]]
    assert names == [
        "a.service",
        "a.service.d",
        "a.service.d/wsfleet-boot.conf",
        "a.service.d/wsfleet.conf",
    ]


def test_a_limit_that_the_machine_does_not_allow_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, also not what precedes it, so a restart does not end the old process."""
    monkeypatch.setattr(written_files, "FOLDER", str(tmp_path))
    most = int(written_files.NR_OPEN.read_text())
    text = "[Service]\nLimitNOFILE={}\n"
    first = {"path": tmp_path / "first", "content": "x", "mode": "0600"}
    for check in (True, False):
        drop_ins = {"a.service": text.format(most + 1)}
        result = run(first, check=check, drop_ins=drop_ins)
        assert f"a.service.d/wsfleet.conf has LimitNOFILE={most + 1}" in result["msg"]
        unit = {"path": tmp_path / "a@.service", "mode": "0644"}
        result = run(first, unit | {"content": text.format(most + 1)}, check=check)
        assert "haproxy_maxconn" in result["msg"]
    assert not list(tmp_path.iterdir())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert run(unit | {"content": text.format(hard)})["changed"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard


@pytest.mark.parametrize(
    ("hard", "kernel", "wanted", "allowed"),
    [(20_000, 1 << 20, 20_000, True), (20_000, 1 << 20, 20_001, False), (900, 500, 600, False)],
)
def test_the_limit_of_a_container_is_that_of_its_first_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hard: int,
    kernel: int,
    wanted: int,
    allowed: bool,
) -> None:
    """The limit of a login may be lower, and without CAP_SYS_RESOURCE it cannot be raised."""
    (tmp_path / "limits").write_text(f"Max open files            1024      {hard}      files\n")
    (tmp_path / "nr_open").write_text(f"{kernel}\n")
    monkeypatch.setattr(written_files, "PID1_LIMITS", tmp_path / "limits")
    monkeypatch.setattr(written_files, "NR_OPEN", tmp_path / "nr_open")

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert written_files.allows(wanted) is allowed
