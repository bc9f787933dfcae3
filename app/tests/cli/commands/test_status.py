"""``wsfleet status``: what HAProxy says, and fleets that are well, ill and dead."""

import json
import os
import pty
import signal
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import Rig
from wsfleet.cluster import haproxy_stats

CSV = """# pxname,svname,scur,status,lastchg,type,check_status,last_chk
public,FRONTEND,12,OPEN,,0,,
nodes,node1-8001,7,UP,62,2,L7OK,
nodes,node2-8001,5,UP 1/2,3,2,L7STS,HTTP status 503
nodes,node3-8001,,DOWN,1,2,L4CON,"Connection refused, really"
nodes,node4-8001,0,MAINT,9,2,,
nodes,BACKEND,12,UP,62,1,,
"""


def test_haproxys_csv_is_read() -> None:
    """Only servers count; those that take clients are well."""
    servers = {row["server"]: row for row in haproxy_stats.servers(haproxy_stats.rows(CSV))}
    assert [(name, row["well"]) for name, row in servers.items()] == [
        ("node1-8001", True),
        ("node2-8001", True),
        ("node3-8001", False),
        ("node4-8001", False),
    ]
    assert servers["node1-8001"]["sessions"] == 7
    assert servers["node1-8001"]["seconds_in_status"] == 62
    assert servers["node3-8001"]["sessions"] == 0
    assert servers["node3-8001"]["check"] == "L4CON Connection refused, really"
    assert haproxy_stats.sessions(haproxy_stats.rows(CSV)) == 12


def test_a_healthy_fleet_is_well(fleet: Rig) -> None:
    """Nodes, balancer and Redis are shown with their numbers: exit code 0."""
    outcome = wsfleet("status", "--fleet", fleet.fleet_file, "--json")
    document = outcome.document
    assert outcome.code == 0, document
    assert [node["name"] for node in document["nodes"]] == sorted(fleet.nodes)
    for node in document["nodes"]:
        assert (node["live"], node["health"], node["state"]) == (True, "healthy", "ready")
        assert node["connections"] is not None
        assert node["version"]
        assert node["uptime"] >= 0
    (balancer,) = document["loadbalancers"]
    assert {server["server"] for server in balancer["servers"]} == set(fleet.nodes)
    assert document["redis"]["role"] == "master"
    assert document["redis"]["connected_clients"] > 0
    assert document["redis"]["state_keys"] is not None


def test_the_fleet_is_found_by_the_environment(fleet: Rig) -> None:
    """WSFLEET_FLEET names the file; the tables for people have all three parts."""
    outcome = wsfleet("status", WSFLEET_FLEET=str(fleet.fleet_file))
    assert outcome.code == 0, outcome
    for words in ("host1-8001", "nodes/host2-8001", "redis", "all is well"):
        assert words in outcome.stdout


def test_a_killed_node_is_found(own_fleet: Rig) -> None:
    """It does not answer, and the balancer has it down: both are named, exit code 1."""
    own_fleet.kill("host2-8001")

    def both_named() -> bool:
        outcome = wsfleet("status", "--fleet", own_fleet.fleet_file, "--json")
        problems = outcome.document["problems"]
        assert outcome.code == 1
        return any(text.startswith("node host2-8001: ") for text in problems) and any(
            "server host2-8001 is DOWN" in text for text in problems
        )

    until(both_named, "the node and its server are reported")


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (("127.0.0.1", "192.0.2.1"), []),
        (
            ("127.0.0.1", "127.0.0.1"),
            [
                "load balancers lb1 and lb2 have the virtual address at the same time: "
                "VRRP (IP protocol 112) does not pass between them"
            ],
        ),
        (("192.0.2.1", "192.0.2.1"), ["no load balancer has the virtual address"]),
    ],
)
def test_one_balancer_has_the_virtual_address(
    fleet: Rig, tmp_path: Path, addresses: tuple[str, ...], expected: list[str]
) -> None:
    """Two that have it at the same time are named, and so it is if nobody has it: exit code 1."""
    document = json.loads(fleet.fleet_file.read_text()) | {"loadbalancers": {}}
    path = tmp_path / "fleet.json"
    with ExitStack() as stack:
        for number, address in enumerate(addresses, 1):
            public, stats = free_port(), free_port()
            config = tmp_path / f"lb{number}.cfg"
            text = haproxy_config(
                fleet.nodes, public, stats, virtual_address=address, _haproxy_ca=fleet.ca
            )
            config.write_text(text)
            command = [str(HAPROXY_PROGRAM), "-db", "-f", str(config)]
            stack.enter_context(process(command, tmp_path / f"lb{number}.log"))
            document["loadbalancers"][f"lb{number}"] = f"http://127.0.0.1:{stats}"
        path.write_text(json.dumps(document))

        def problems() -> list[str]:
            outcome = wsfleet("status", "--fleet", path, "--json")
            found: list[str] = outcome.document["problems"]
            assert outcome.code == bool(found)
            return found

        until(lambda: problems() == expected, "the checks have been made, and status says it")


def test_a_node_that_never_came_is_found(fleet: Rig, tmp_path: Path) -> None:
    """A node of the fleet file that never registered is a problem: exit code 1."""
    document = json.loads(fleet.fleet_file.read_text())
    document["nodes"]["host9-8001"] = "http://127.0.0.1:1"
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(document))
    outcome = wsfleet("status", "--fleet", path, "--json")
    assert outcome.code == 1
    assert len(outcome.document["problems"]) == 1
    assert outcome.document["problems"][0].startswith("node host9-8001: ")


def test_an_unreachable_redis_is_found(fleet: Rig, tmp_path: Path, unused_tcp_port: int) -> None:
    """Nodes and balancers are shown all the same: exit code 1."""
    document = json.loads(fleet.fleet_file.read_text())
    document["redis_url"] = f"redis://127.0.0.1:{unused_tcp_port}/0"
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(document))
    outcome = wsfleet("status", "--fleet", path, "--json")
    assert outcome.code == 1
    assert [problem.split()[0] for problem in outcome.document["problems"]] == ["redis"]
    assert all(node["live"] is None for node in outcome.document["nodes"])


@pytest.mark.usefixtures("processes")
def test_a_fleet_that_is_gone_cannot_be_checked(tmp_path: Path) -> None:
    """Nobody answers at all: one line on stderr, exit code 2."""
    path = tmp_path / "fleet.json"
    path.write_text(
        json.dumps(
            {
                "redis_url": "redis://127.0.0.1:1/0",
                "base_url": "http://127.0.0.1:1",
                "nodes": {"host1-8001": "http://127.0.0.1:1"},
                "loadbalancers": {"lb1": "http://127.0.0.1:1"},
            }
        )
    )
    outcome = wsfleet("status", "--fleet", path)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "nothing of the fleet answers" in outcome.stderr
    assert outcome.stdout == ""


def test_a_watched_fleet_is_looked_at_again_and_again(own_fleet: Rig) -> None:
    """New problems are shown; Ctrl-C ends the command with the exit code of the last round."""
    terminal, inside = pty.openpty()
    screen = bytearray()

    def read() -> None:
        with suppress(OSError):  # all has been read, and the other end is closed
            while text := os.read(terminal, 65536):
                screen.extend(text)

    process = subprocess.Popen(
        [*COMMAND, "status", "--watch", "--interval", "0.2", "--fleet", str(own_fleet.fleet_file)],
        stdin=inside,
        stdout=inside,
        env=os.environ | {"COLUMNS": "120", "LINES": "60"},
    )
    os.close(inside)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: b"all is well" in screen, "all is well")
        own_fleet.kill("host1-8001")
        until(lambda: b"does not answer /health" in screen, "the dead node is seen")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(terminal)


def test_a_watched_fleet_is_for_people(fleet: Rig) -> None:
    """One JSON object would never be whole."""
    outcome = wsfleet("status", "--watch", "--json", "--fleet", fleet.fleet_file)
    assert outcome.code == 2
    assert "remove --json" in outcome.stderr
