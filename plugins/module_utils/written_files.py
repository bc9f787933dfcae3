"""Files, folders, links and the drop-in files of units, which modules write."""

from __future__ import annotations

import os
import re
import resource
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

FOLDER = "/etc/systemd/system"
BOOT = """\
# Ansible managed
# At boot an address may come late, by DHCP for instance, and so may another machine: the unit waits
# for the network and is restarted until it succeeds. A file of its own, because a change of it does
# not restart the process.
[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=1
"""
PID1_LIMITS = Path("/proc/1/limits")
NR_OPEN = Path("/proc/sys/fs/nr_open")
UNIT_SUFFIXES = (".service", ".service.d/wsfleet.conf")
OPEN_FILES = re.compile(r"^LimitNOFILE=(\d+)$", re.MULTILINE)
SUBOPTIONS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "state": {
        "type": "str",
        "choices": ["file", "directory", "link", "absent"],
        "default": "file",
    },
    "content": {"type": "str"},
    "target": {"type": "str"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "raw"},
    "validate": {"type": "str"},
    "force": {"type": "bool", "default": True},
}
NEEDED = [
    ("state", "file", ["content", "mode"]),
    ("state", "directory", ["mode"]),
    ("state", "link", ["target"]),
]

Entry = Mapping[str, Any]


class FailedError(Exception):
    """An entry that cannot be written, with the output of its validation, if it had one."""

    def __init__(self, message: str, **output: Any) -> None:
        super().__init__(message)
        self.output = output


def drop_in_entries(drop_ins: Mapping[str, str]) -> list[Entry]:
    """Return the entries of `files` for the drop-in files of units."""
    root = {"owner": "root", "group": "root"}
    found: list[Entry] = []
    for unit, text in drop_ins.items():
        folder = f"{FOLDER}/{unit}.d"
        found.append({"path": folder, "state": "directory", "mode": "0755", **root})
        boot = BOOT if unit.endswith(".service") else ""
        for name, content in {"wsfleet-boot.conf": boot, "wsfleet.conf": text}.items():
            if content:
                file = {"path": f"{folder}/{name}", "state": "file", "content": content}
                found.append(file | {"mode": "0644", **root})
    return found


def allows(files: int) -> bool:
    """Return whether this machine allows a service a number of open files.

    A process with CAP_SYS_RESOURCE raises its limit up to fs.nr_open (setrlimit(2)). Without it, as
    in a container, a service has the hard limit of PID 1; that of this process may be lower.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0], max(files, before[1])))
    except (OSError, ValueError):
        found = re.search(r"^Max open files +\S+ +(\d+)", PID1_LIMITS.read_text(), re.MULTILINE)
        return found is not None and files <= min(int(found[1]), int(NR_OPEN.read_text()))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return True


def check_open_files(entry: Entry) -> None:
    """Check the number of open files of a unit.

    Raises:
        FailedError: the machine allows fewer.
    """
    if not entry["path"].startswith(FOLDER) or not entry["path"].endswith(UNIT_SUFFIXES):
        return
    found = OPEN_FILES.search(entry.get("content") or "")
    if found and not allows(int(found[1])):
        raise FailedError(
            f"{entry['path']} has LimitNOFILE={found[1]}, which is more open files than this "
            f"machine allows (fs.nr_open is {NR_OPEN.read_text().strip()}; a container may have a "
            "lower limit): lower the variable that it is computed from (haproxy_maxconn, "
            "wsnode_max_connections or redis_maxclients), or raise the machine's limit."
        )


class Writer:
    """A writer of entries, which collects their changes and differences."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self.changed: list[str] = []
        self.diffs: list[dict[str, Any]] = []

    def write(self, entry: Entry) -> None:
        """Change one path as its entry requires.

        Raises:
            FailedError: something else is at the path, or the validation of the content failed.
            OSError: the path cannot be written.
        """
        path = Path(entry["path"])
        state = {
            "file": self._file,
            "directory": self._directory,
            "link": self._link,
            "absent": self._absent,
        }
        if state[entry["state"]](path, entry):
            self.changed.append(str(path))

    def _absent(self, path: Path, _: Entry) -> bool:
        if not os.path.lexists(path):
            return False
        self._differ(path, {"state": "present"}, {"state": "absent"})
        if not self._module.check_mode:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return True

    def _link(self, path: Path, entry: Entry) -> bool:
        before = str(path.readlink()) if path.is_symlink() else ""
        if before == entry["target"]:
            return False
        if path.is_dir() and not path.is_symlink():
            raise FailedError(f"{path} is a folder, and not a link: remove it")
        self._differ(path, {"target": before}, {"target": entry["target"]})
        if not self._module.check_mode:
            new = path.with_name(f".{path.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(entry["target"])
            new.replace(path)
        return True

    def _directory(self, path: Path, entry: Entry) -> bool:
        if path.is_dir():
            return self._attributes(path, entry)
        if os.path.lexists(path):
            raise FailedError(f"{path} is not a folder: remove it")
        self._differ(path, {"state": "absent"}, {"state": "directory"})
        if not self._module.check_mode:
            path.mkdir(mode=0o700, parents=True)
            self._attributes(path, entry, tell=False)
        return True

    def _file(self, path: Path, entry: Entry) -> bool:
        if path.is_dir() and not path.is_symlink():
            raise FailedError(f"{path} is a folder, and not a file: remove it")
        there = path.is_file() and not path.is_symlink()
        if there and not entry.get("force", True):
            return False
        content = entry["content"].encode()
        before = path.read_bytes() if there else b""
        if there and before == content:
            return self._attributes(path, entry)
        self._differ(path, before.decode(errors="replace"), entry["content"])
        if not self._module.check_mode:
            self._replace(path, content, entry)
        return True

    def _replace(self, path: Path, content: bytes, entry: Entry) -> None:
        """Write a new file in the same folder, validate it, and rename it."""
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        new = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._attributes(new, entry, tell=False)
            if entry.get("validate"):
                self._validate(entry["validate"], path, name)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def _validate(self, command: str, path: Path, name: str) -> None:
        if "%s" not in command:
            raise FailedError(f"validate of {path} must contain %s, and is: {command}")
        code, output, error = self._module.run_command(command.replace("%s", name))
        if code != 0:
            raise FailedError(
                f"failed to validate {path}: {(error or output).strip()}",
                rc=code,
                stdout=output,
                stderr=error,
            )

    def _attributes(self, path: Path, entry: Entry, *, tell: bool = True) -> bool:
        """Set owner, group and mode, or compare them in check mode; return whether they differ."""
        wanted = {key: entry.get(key) for key in ("owner", "group", "mode")}
        arguments = self._module.load_file_common_arguments(wanted, path=str(path))
        diff: dict[str, dict[str, Any]] = {"before": {}, "after": {}}
        changed: bool = self._module.set_fs_attributes_if_different(arguments, False, diff)
        if changed and tell:
            self._differ(path, diff["before"], diff["after"])
        return changed

    def _differ(self, path: Path, before: Any, after: Any) -> None:
        headers = {"before_header": str(path), "after_header": str(path)}
        self.diffs.append({"before": before, "after": after, **headers})


FILES_SPEC: dict[str, dict[str, Any]] = {
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": SUBOPTIONS,
        "required_if": NEEDED,
    },
    "drop_ins": {"type": "dict", "default": {}},
}
"""The options of a module that calls `write_files`."""


def write_files(module: AnsibleModule) -> dict[str, Any]:
    """Write what the options `files` and `drop_ins` of a module name, and return the result.

    The module fails at the first entry that cannot be written.
    """
    entries = [*module.params["files"], *drop_in_entries(module.params["drop_ins"])]
    writer = Writer(module)
    try:
        for entry in entries:
            check_open_files(entry)
        for entry in entries:
            writer.write(entry)
    except FailedError as error:
        module.fail_json(msg=str(error), changed_paths=writer.changed, **error.output)
    except OSError as error:
        module.fail_json(msg=f"{entry['path']}: {error}", changed_paths=writer.changed)
    changed = bool(writer.changed)
    return {"changed": changed, "changed_paths": writer.changed, "diff": writer.diffs}
