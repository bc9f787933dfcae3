"""The application of `scripts/chaos --application` on node processes behind HAProxy."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from chaos.clients import Clients
from chaos.cluster import Cluster
from chaos.disconnects import CHANNEL, RECORDS, SOURCE
from chaos.faults import CONTROL
from chaos.report import report_of
from chaos.run import run
from chaos.schedule import Step
from lab.waiting import until
from tests.support.command import wsfleet
from tests.support.fleet import Rig, running_fleet

NO_FAULTS = {"lost": 0, "duplicated": 0, "reordered": 0, "recovered_wrongly": 0}


class Loopback(Cluster):
    """A fleet of this machine, as chaos sees a cluster; of all faults it can have a killed node."""

    def __init__(self, rig: Rig, records: Path) -> None:
        self._rig = rig
        self._disconnects = records
        self.groups = {"wsnodes": [name.partition("-")[0] for name in rig.nodes], "redis": ["lo"]}
        self.url = rig.base_url
        self._variables = {host: {} for host in self.groups["wsnodes"]}

    def heal(self) -> None:
        """Heal nothing."""

    def playbook(self, *_: str) -> None:
        """Deploy nothing: the fleet has the application."""

    def wsfleet(self, *arguments: str, check: bool = True) -> str:
        """Run the command line, and return its output."""
        return wsfleet(*arguments, "--fleet", self._rig.fleet_file).stdout

    def close_connections(self, node: str) -> None:
        """Close nothing: HAProxy has no admin socket here, and its clients are spread enough."""

    def shell(self, host: str, text: str, *, check: bool = True) -> str:
        """Return the application's records, which all nodes share, or kill a host's node."""
        if RECORDS in text:
            first = host == self.groups["wsnodes"][0]
            return self._disconnects.read_text() if first else ""
        assert text == "systemctl kill -s KILL 'wsnode@*'"
        node = f"{host}-8001"
        self._rig.kill(node)
        self._rig.start(node)
        until(lambda: self._rig.ready(node) == 200, "the node is ready again")
        return ""


@pytest.fixture
def cluster(processes: None, tmp_path: Path) -> Iterator[Loopback]:
    """Return a fleet with the application; its Redis has no replica for `durability`."""
    config = yaml.safe_load((SOURCE / "deploy.yml").read_text())["wsnode_config"]
    for namespace in config["channel"]["namespaces"]:
        assert namespace.pop("durability") == "replicated"
    file, records = tmp_path / "wsfleet.yml", tmp_path / "disconnects.jsonl"
    file.write_text(yaml.safe_dump(config))
    with running_fleet(
        tmp_path,
        nodes=3,
        WSFLEET_APP="chaos_application:realtime",
        WSFLEET_APP_DIR=str(SOURCE),
        WSFLEET_CONFIG=str(file),
        CHAOS_DISCONNECTS=str(records),
        CHAOS_SLEEP="0.1",  # the rates are higher than in deploy.yml: the run is short
        CHAOS_BLOCK="0.05",
        CHAOS_RAISE="0.1",
    ) as rig:
        yield Loopback(rig, records)


def test_acknowledged_messages_survive_bad_handlers_and_a_dead_node(
    cluster: Loopback, tmp_path: Path
) -> None:
    """Each is delivered once; bad handlers alone cost no connection; each end is told."""
    steps = [Step(CONTROL, "all", 5.0, 0.0), Step("node_process_killed", "host1", 0.0, 0.0)]
    channels = [
        Clients(cluster.url, 10, "replicated:chaos", 5.0, tmp_path / "others.jsonl"),
        Clients(cluster.url, 10, CHANNEL, 5.0, tmp_path / "handled.jsonl", keyed=True),
    ]
    report = report_of(run(cluster, steps, channels, 1, threading.Event(), application=True))
    assert report.ok, report.problems
    assert all(criterion.met for criterion in report.criteria), report.criteria
    dropped = [fault["clients"]["dropped"] for fault in report.data["faults"]]
    assert dropped[0] == 0 < dropped[1]
    for channel in report.data["channels"].values():
        assert {name: channel[name] for name in NO_FAULTS} == NO_FAULTS
        assert channel["acknowledged"] > 0
    # A handler that raised or slept for too long was retried.
    errors = report.data["channels"][CHANNEL]["errors"]
    assert any(error.startswith("100 ") for error in errors), errors
    disconnects = report.data["disconnects"]
    assert disconnects["connections"] > 2 * (10 + 4)
    assert disconnects["of_dead_nodes"] > 0
