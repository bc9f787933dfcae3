"""``wsfleet monitor``: what counts as a failure, and fleets watched over time."""

import json
import signal
import subprocess

import pytest

from lab.waiting import TIMEOUT
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import Rig
from wsfleet.cli.measure.health import HealthHistory, judge

#: The tests themselves may keep the machine busy: that is no finding here.
BUSY = ("--limit", "100")

WELL = {
    "status": "healthy",
    "connections": 3,
    "cpu_usage": 12.0,
    "memory_usage": 40.0,
    "redis_connected": True,
    "hostname": "node1-8001",
}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"status": "degraded"}, "is degraded"),
        ({"redis_connected": False}, "has no connection to Redis"),
        ({"redis_connected": None}, "has no connection to Redis"),
        ({"cpu_usage": 90.5}, "CPU at 90 %"),
        ({"memory_usage": 99}, "memory at 99 %"),
    ],
)
def test_each_threshold_is_a_problem(change: dict[str, object], problem: str) -> None:
    """One line a problem, in the node's own numbers."""
    assert judge({**WELL, **change}, 1.0, 90.0).problems == [problem]


@pytest.mark.parametrize("status", ["healthy", "draining", "drained"])
def test_a_healthy_answer_has_no_problem(status: str) -> None:
    """Up to 90 % of CPU and memory nothing is reported, and its numbers are kept."""
    reading = judge({**WELL, "status": status, "cpu_usage": 90.0, "memory_usage": 90.0}, 2.5, 90.0)
    assert reading.problems == []
    assert reading.values == {
        "connections": 3, "cpu_usage": 90.0, "memory_usage": 90.0, "response_ms": 2.5,
    }  # fmt: skip


def test_a_change_is_printed_once() -> None:
    """A change of the status is told when it happens; failures and extremes are summed up."""
    history = HealthHistory()
    readings = [judge({**WELL, "status": status}, 1.0, 90.0) for status in
                ("healthy", "degraded", "degraded", "healthy")]  # fmt: skip
    assert [history.add(reading) for reading in readings] == [
        [], ["healthy → degraded"], [], ["degraded → healthy"],
    ]  # fmt: skip
    assert (history.checks, history.failures) == (4, 2)
    assert history.spans["connections"].summary() == {"min": 3, "avg": 3, "max": 3}


def test_nodes_are_found_behind_the_balancer(fleet: Rig) -> None:
    """Without a fleet file each node is found by its cookie and asked by name from then on."""
    outcome = wsfleet("monitor", fleet.base_url, "--interval", 0.2, "--count", 3, "--json", *BUSY)
    document = outcome.document
    assert outcome.code == 0, document
    assert document["ticks"] == 3
    assert set(document["targets"]) == {"balancer", *fleet.nodes}
    for target in document["targets"].values():
        assert (target["checks"], target["failures"]) == (3, 0)
        assert (
            target["cpu_usage"]["min"] <= target["cpu_usage"]["avg"] <= target["cpu_usage"]["max"]
        )


def test_nodes_of_a_fleet_file_are_asked_directly(fleet: Rig) -> None:
    """With a fleet file there is a line a round with every node, and a table at the end."""
    outcome = wsfleet(
        "monitor",
        fleet.base_url,
        "--fleet",
        fleet.fleet_file,
        "--interval",
        0.2,
        "--count",
        2,
        *BUSY,
    )
    assert outcome.code == 0, outcome
    assert outcome.stdout.count("| host2-8001 healthy") == 2
    assert "2 rounds, 0 failures" in outcome.stdout


@pytest.mark.parametrize("direct", [True, False], ids=["fleet file", "discovery"])
def test_a_node_that_dies_is_noticed(own_fleet: Rig, direct: bool) -> None:
    """Its check fails in each round from then on, and the change is an event: exit code 1."""
    fleet = ["--fleet", str(own_fleet.fleet_file)] if direct else []
    options = [own_fleet.base_url, "--interval", "0.3", *BUSY, *fleet]
    watch = subprocess.Popen(
        [*COMMAND, "monitor", *options], stdout=subprocess.PIPE, text=True, bufsize=1,
        env=None,
    )  # fmt: skip
    assert watch.stdout is not None
    try:
        lines = [watch.stdout.readline()]
        assert "host2-8001 healthy" in lines[0]
        own_fleet.kill("host2-8001")
        while "host2-8001: healthy → no answer" not in lines[-1]:
            lines.append(watch.stdout.readline())
            assert lines[-1], "the monitor ended"
            assert len(lines) < 100
    finally:
        watch.send_signal(signal.SIGINT)
        rest, _ = watch.communicate(timeout=TIMEOUT)
    assert watch.returncode == 1
    assert "host2-8001:" in rest
    assert "checks failed" in rest


def test_ctrl_c_ends_it_well(fleet: Rig) -> None:
    """An interrupt is the usual end: the summary is printed and the exit code is the verdict."""
    watch = subprocess.Popen(
        [
            *COMMAND,
            "monitor",
            fleet.base_url,
            "--interval",
            "30",
            *BUSY,
            "--fleet",
            str(fleet.fleet_file),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    assert "healthy" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=TIMEOUT)
    assert watch.returncode == 0
    assert "1 rounds, 0 failures" in out
    assert err == ""


@pytest.mark.usefixtures("processes")
def test_an_unreachable_url_is_an_error(unused_tcp_port: int) -> None:
    """If not even the first round has an answer, the URL is wrong: one line, exit code 2."""
    outcome = wsfleet("monitor", f"http://127.0.0.1:{unused_tcp_port}", "--json", *BUSY)
    assert outcome.code == 2
    assert "Check the URL" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert json.loads(outcome.stdout)["ok"] is False


MESSAGE = ("--message", '{"text": "{token}"}')


def test_an_applications_websocket_is_probed(guests: Rig) -> None:
    """At the balancer, and at each node by its cookie; a message comes back from each."""
    outcome = wsfleet(
        *("monitor", f"{guests.base_url}/echo", *MESSAGE, "--json"),
        *("--interval", 0.2, "--count", 3, *BUSY),
    )
    document = outcome.document
    assert outcome.code == 0, document
    assert set(document["targets"]) == {"balancer", *guests.nodes}
    for target in document["targets"].values():
        assert (target["checks"], target["failures"], target["last_status"]) == (3, 0, "open")
        for measured in ("response_ms", "round_trip_ms"):
            assert 0 < target[measured]["min"] <= target[measured]["max"]


def test_with_a_fleet_file_nodes_tell_their_health(guests: Rig) -> None:
    """At their internal ports; only the balancer is probed by a WebSocket, which sends nothing."""
    outcome = wsfleet(
        *("monitor", f"{guests.base_url}/hold", "--fleet", guests.fleet_file),
        *("--interval", 0.2, "--count", 2, *BUSY),
    )
    assert outcome.code == 0, outcome
    assert outcome.stdout.count("| host2-8001 healthy") == 2
    assert outcome.stdout.count(" open ") == 2
    assert "round trip" not in outcome.stdout


def test_a_message_that_does_not_come_back_is_a_problem(guests: Rig) -> None:
    """The WebSocket opens, and the check fails: exit code 1."""
    outcome = wsfleet("monitor", f"{guests.base_url}/bye", *MESSAGE, "--count", 1, "--json", *BUSY)
    assert outcome.code == 1
    texts = {event["text"].partition(": ")[2] for event in outcome.document["events"]}
    assert texts == {"disconnected before the message came back (close code 4001)"}
    options = (*MESSAGE, "--fleet", guests.fleet_file, "--count", 1, "--json", *BUSY)
    outcome = wsfleet("monitor", f"{guests.base_url}/hold", *options)
    assert outcome.code == 1
    texts = {event["text"].partition(": ")[2] for event in outcome.document["events"]}
    assert texts == {"the message did not come back within 3 s"}


def test_a_node_of_an_application_that_dies_is_noticed(own_guests: Rig) -> None:
    """The other node answers in its place, and says so by its field: exit code 1."""
    watch = subprocess.Popen(
        [*COMMAND, "monitor", f"{own_guests.base_url}/echo", "--interval", "0.3", *BUSY],
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert watch.stdout is not None
    try:
        lines = [watch.stdout.readline()]
        assert "host2-8001 open" in lines[0]
        own_guests.kill("host2-8001")
        while "does not answer: host1-8001 answered instead" not in lines[-1]:
            lines.append(watch.stdout.readline())
            assert lines[-1], "the monitor ended"
            assert len(lines) < 100
    finally:
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=TIMEOUT)
    assert watch.returncode == 1


@pytest.mark.usefixtures("processes")
def test_an_application_that_refuses_is_an_error(guests: Rig) -> None:
    """If no WebSocket opens in the first round, the path is wrong: one line, exit code 2."""
    outcome = wsfleet("monitor", f"{guests.base_url}/nowhere", "--count", 1, *BUSY)
    assert outcome.code == 2
    assert "/nowhere: no WebSocket: refused with HTTP" in outcome.stderr
    outcome = wsfleet("monitor", guests.base_url, *MESSAGE, *BUSY)
    assert outcome.code == 2
    assert "add --protocol application" in outcome.stderr
