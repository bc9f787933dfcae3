"""The units of the application's handlers, and what their nodes are told."""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest

from lab.rendering import rendered, template

TEMPLATES = ("wsnode@.service", "wsfleet-app@.service", "wsfleet-app.socket")
FILES = ("_wsnode_files", "_wsnode_app_files", "_wsnode_app_units", "_wsnode_app_restarts")
APP: dict[str, Any] = {
    "wsnode_app": "chat.app:realtime",
    "wsnode_app_memory_max": "1G",
    "wsnode_app_writable_paths": ["/var/lib/chat"],
    "wsnode_app_redis": True,
    "wsnode_host_name": "node1",
    "fleet_host_address": "10.0.0.1",
    "fleet_host_tls": True,
    "fleet_spare_files": 1000,
    "fleet_ca": "/etc/wsfleet/tls/ca.pem",
    "fleet_members": {"tls": True},
    "_wsnode_app_found": [1, 2],
    "_node_exporter_bind": "10.0.0.1",
    "_node_exporter_port": 9100,
}


def written(folder: Path, variables: dict[str, Any]) -> dict[str, str]:
    """Return the units and, as JSON, the lists of files and units, as the role makes them."""
    contents = {name: template("wsnode", name) for name in TEMPLATES}
    contents["exporter"] = template("node_exporter", "prometheus-node-exporter")
    contents |= {name: f"{{{{ {name} | to_json }}}}" for name in FILES}
    return rendered(folder, "wsnode", contents, variables)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is written for two processes."""
    return written(tmp_path_factory.mktemp("role"), APP | {"wsnode_app_processes": 2})


def section(text: str, name: str) -> configparser.SectionProxy:
    """Return a section of a unit; of a setting that is given several times, the last one."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text.replace("\\\n", ""))
    return unit[name]


def test_nodes_and_processes_have_one_socket(files: dict[str, str]) -> None:
    """The one that a node is told is the one that systemd holds, and each process has it."""
    socket = section(files["wsfleet-app.socket"], "Socket")
    assert f"WSFLEET_APP_SOCKET={socket['ListenStream']}\n" in files["wsnode@.service"]
    assert section(files["wsnode@.service"], "Unit")["After"] == "wsfleet-app.socket"
    assert section(files["wsfleet-app@.service"], "Service")["Sockets"] == "wsfleet-app.socket"
    assert (socket["SocketUser"], socket["SocketGroup"], socket["SocketMode"]) == (
        "wsfleet",
        "wsfleet",
        "0660",
    )
    units = json.loads(files["_wsnode_app_units"])
    assert units == ["wsfleet-app@1.service", "wsfleet-app@2.service"]
    assert socket["Service"] == units[0]


def test_processes_are_restarted_in_one_task(files: dict[str, str]) -> None:
    """A task with a loop would restart the second one although the first one does not start."""
    assert json.loads(files["_wsnode_app_restarts"]) == [
        {"name": f"wsfleet-app@{number}.service", "state": "restarted"} for number in (1, 2)
    ]


def test_a_process_has_what_the_nodes_have(files: dict[str, str]) -> None:
    """Release, environment, memory, sandbox and watchdog; its name is its own."""
    unit = files["wsfleet-app@.service"]
    service = section(unit, "Service")
    assert service["ExecStart"] == "/opt/wsfleet/current/venv/bin/wsfleet app chat.app:realtime"
    for line in (
        "EnvironmentFile=/etc/wsfleet/wsnode.env",
        "EnvironmentFile=/etc/wsfleet/app.env",
        "Environment=WSFLEET_NODE_NAME=node1-app-%i",
    ):
        assert f"{line}\n" in unit
    node = section(files["wsnode@.service"], "Service")
    for name in ("Type", "User", "Group", "WatchdogSec", "MemoryMax", "ReadWritePaths", "UMask"):
        assert service[name] == node[name], name
    sandbox = files["wsnode@.service"].partition("CapabilityBoundingSet=")[2]
    assert unit.partition("CapabilityBoundingSet=")[2] == sandbox


def test_the_exporter_shows_the_processes(files: dict[str, str], tmp_path: Path) -> None:
    """And no unit of a host without any."""
    assert "--collector.systemd.unit-include=wsfleet-app@.+" in files["exporter"]
    assert "--no-collector.systemd" not in files["exporter"]
    assert "--no-collector.systemd" in written(tmp_path, APP)["exporter"]


def test_a_change_restarts_those_that_read_it(files: dict[str, str], tmp_path: Path) -> None:
    """A node has its own unit and certificate, a process its own unit; they share the rest."""
    nodes = set(json.loads(files["_wsnode_files"]))
    processes = set(json.loads(files["_wsnode_app_files"]))
    assert nodes - processes == {
        "/etc/systemd/system/wsnode@.service",
        "/etc/wsfleet/tls/host.pem",
    }
    assert processes - nodes == {"/etc/systemd/system/wsfleet-app@.service"}
    assert {"/etc/wsfleet/wsnode.env", "/etc/wsfleet/app.env"} <= nodes & processes
    more = written(tmp_path, APP | {"wsnode_app_processes": 3})
    assert {name for name in TEMPLATES if more[name] != files[name]} == set()


def test_without_processes_the_node_runs_the_handlers(tmp_path: Path) -> None:
    """It is told of no socket, and waits for none."""
    files = written(tmp_path, APP)
    assert "wsfleet-app" not in files["wsnode@.service"]
    assert "WSFLEET_APP_SOCKET" not in files["wsnode@.service"]
    assert json.loads(files["_wsnode_app_units"]) == []
