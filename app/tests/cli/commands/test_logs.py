"""``wsfleet logs``: what it asks for, and what it makes of what the journal says."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Outcome, wsfleet

pytestmark = pytest.mark.usefixtures("processes")


def entry(message: Any, host: str = "node1", **fields: str) -> str:
    """A line of ``journalctl --output=json``."""
    document = {
        "__REALTIME_TIMESTAMP": "1790000000123456",
        "_HOSTNAME": host,
        "_SYSTEMD_UNIT": "wsnode@8001.service",
        "PRIORITY": "6",
        "MESSAGE": json.dumps(message) if isinstance(message, dict) else message,
    }
    return json.dumps(document | fields)


CLOSED = {
    "client_id": "ann",
    "code": 1012,
    "reason": "the node restarts",
    "duration": 12.5,
    "event": "connection_closed",
    "node": "node1-8001",
    "level": "info",
    "logger": "wsfleet.node.node",
    "timestamp": "2026-09-21T13:33:20Z",
}
JOURNAL = (
    entry(CLOSED),
    entry(
        CLOSED | {"node": "node2-8001", "event": "subscription_gap", "level": "warning"}, "node2"
    ),
    entry("Started wsnode@8001", UNIT="wsnode@8001.service", _SYSTEMD_UNIT="init.scope"),
    entry([87, 195, 182, 0], "lb1", _SYSTEMD_UNIT="haproxy.service", PRIORITY="3"),
    entry("", "lb1", _SYSTEMD_UNIT="keepalived.service"),
)


class Ssh:
    """A program `ssh` that says what a journal has, and writes down what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = folder / "fleet.json"
        self.write("#!/bin/sh", f'printf "%s\\n" "$@" > {folder}/asked', f"cat {folder}/journal")
        (folder / "journal").write_text("\n".join(JOURNAL) + "\n")
        self.collector(["ssh", "-p", "2222", "deploy@mon1"])

    def write(self, *lines: str) -> None:
        """Write the program."""
        program = self.folder / "ssh"
        program.write_text("\n".join(lines) + "\n")
        program.chmod(0o755)

    def collector(self, logs: list[str], **hosts: str) -> None:
        """Write the fleet file."""
        fleet = {"redis_url": "redis://r", "base_url": "http://b", "nodes": {"n": "http://n"}}
        self.fleet.write_text(json.dumps(fleet | {"logs": logs, "hosts": hosts}))

    @property
    def asked(self) -> list[str]:
        """Its arguments."""
        return (self.folder / "asked").read_text().splitlines()

    def run(self, *options: object, zone: str = "UTC") -> Outcome:
        """Run the command with this ssh."""
        path = f"{self.folder}:{os.environ['PATH']}"
        return wsfleet("logs", "--fleet", self.fleet, *options, PATH=path, TZ=zone)

    def since(self, text: str, zone: str = "UTC") -> str:
        """Return journalctl's argument for a `--since`."""
        outcome = self.run("--since", text, zone=zone)
        assert outcome.code == 0, outcome.stderr
        (option,) = (word for word in shlex.split(self.asked[-1]) if word.startswith("--since="))
        return option.removeprefix("--since=")


@pytest.fixture
def ssh(tmp_path: Path) -> Ssh:
    """The program, first in the PATH."""
    return Ssh(tmp_path)


def test_every_entry_is_a_line(ssh: Ssh) -> None:
    """A node's with its name and what it said, others with host and unit, whatever bytes."""
    outcome = ssh.run()
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0] == (
        "14:13:20.123 node1-8001 connection_closed client_id=ann code=1012 "
        "reason=the node restarts duration=12.5"
    )
    assert [line.split(" ", 1)[1] for line in lines[2:]] == [
        "node1 wsnode@8001 Started wsnode@8001",
        "lb1 haproxy W\u00f6\0",
        "lb1 keepalived ",
    ]


@pytest.mark.parametrize(
    ("name", "count"), [("node1-8001", 1), ("node1", 2), ("node2", 1), ("lb1", 2), ("nobody", 0)]
)
def test_only_those_that_were_asked_for(ssh: Ssh, name: str, count: int) -> None:
    """A node by its name, and all that is on a host by the host's."""
    lines = ssh.run("--node", name, "--json").stdout.splitlines()
    assert len(lines) == count
    for document in map(json.loads, lines):
        assert name in (document["node"], document["host"])


def test_programs_get_objects(ssh: Ssh) -> None:
    """One a line, with the fields of the node's own line."""
    first, second, _, haproxy, _ = map(json.loads, ssh.run("--json").stdout.splitlines())
    assert first["time"] == "2026-09-21T14:13:20.123456+00:00"
    assert first["fields"]["reason"] == "the node restarts"
    assert (second["level"], haproxy["level"]) == ("warning", "error")


def test_a_host_is_named_as_in_the_inventory(ssh: Ssh) -> None:
    """Its hostname does not matter; one that several machines have names none of them."""
    ssh.collector(["ssh", "mon1"], ws1="node1", node1="lb1", edge="lb1")
    names = {json.loads(line)["host"] for line in ssh.run("--json").stdout.splitlines()}
    assert names == {"ws1", "node2", "lb1"}
    assert len(ssh.run("--node", "ws1").stdout.splitlines()) == 2
    assert "ws1 wsnode@8001 Started" in ssh.run("--node", "ws1").stdout


def test_it_reads_the_collected_logs(ssh: Ssh) -> None:
    """By the fleet file's way, or by --ssh; a shell there reads the command."""
    ssh.run("--follow")
    *way, command = ssh.asked
    assert way == ["-p", "2222", "deploy@mon1"]
    words = shlex.split(command)
    assert words[:3] == ["sudo", "-n", "journalctl"]
    assert {"--since=-10m", "--follow", "--unit=wsnode@*"} <= set(words)
    ssh.run("--ssh", "-p 22 me@there")
    assert ssh.asked[:-1] == ["-o", "BatchMode=yes", "-p", "22", "me@there"]
    assert "--follow" not in ssh.asked[-1]


@pytest.mark.parametrize(
    ("since", "asked"),
    [
        ("10m", "-10m"),
        ("1h30m", "-1h30m"),
        ("-2h", "-2h"),
        ("2 hours ago", "-2 hours"),
        ("1w", "-1w"),
        ("@1790000000", "@1790000000.000000"),
        ("2026-11-26 14:00", "@1795723200.000000"),
        ("2026-11-26T14:00:00", "@1795723200.000000"),
        ("2026-11-26", "@1795672800.000000"),
        ("2026-07-26 14:00", "@1785092400.000000"),
        ("2026-11-26 14:00 UTC", "@1795701600.000000"),
        ("2026-11-26T14:00:00Z", "@1795701600.000000"),
        ("2026-11-26 14:00+01:00", "@1795698000.000000"),
        ("2026-11-26 14:00 Europe/Berlin", "@1795698000.000000"),
    ],
)
def test_a_date_is_in_the_operators_time_zone(ssh: Ssh, since: str, asked: str) -> None:
    """Summer time too, wherever the journals are; a duration and a named zone are what they say."""
    assert ssh.since(since, "America/Chicago") == asked


def test_days_and_times_are_in_the_operators_time_zone(ssh: Ssh) -> None:
    """They differ by the zones' hours."""
    for text in ("today", "yesterday", "yesterday 14:00", "9:05", "14:00:30"):
        here = {zone: float(ssh.since(text, zone)[1:]) for zone in ("UTC+3", "UTC-3")}
        assert (here["UTC+3"] - here["UTC-3"]) % 86400 == 6 * 3600, text
    assert float(ssh.since("now")[1:]) > float(ssh.since("yesterday")[1:]) + 86400 - 1


@pytest.mark.parametrize(
    "since", ["", "soon", "10x", "2026-13-01", "25:00", "2026-11-26 14:00 Nowhere/City", "10m; ls"]
)
def test_no_time_is_an_error(ssh: Ssh, since: str) -> None:
    """Nothing is asked then, and the message has the forms of a time."""
    outcome = ssh.run("--since", since)
    assert outcome.code == 2
    assert "is not a time: write a duration" in outcome.stderr
    assert not (ssh.folder / "asked").exists()


def test_unreadable_logs_are_one_line(ssh: Ssh) -> None:
    """The line has ssh's error and its command, or that no host collects the logs."""
    ssh.write("#!/bin/sh", "echo first >&2; echo Permission denied >&2; exit 255")
    outcome = ssh.run()
    assert outcome.code == 2
    assert "Permission denied. Tried ssh -p 2222 deploy@mon1" in outcome.stderr
    ssh.collector([])
    assert "group `monitoring`" in ssh.run().stderr
