"""``wsfleet drain``, ``undrain`` and ``forget``, on nodes behind HAProxy with clients on them."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from websockets.sync.client import connect

from lab.waiting import TIMEOUT, until
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import Rig, running_fleet
from tests.support.fleet_clients import node_of, through_haproxy
from wsfleet.redis import key_names

FAULTS = ("lost", "duplicated", "reordered", "recovered_wrongly")


@pytest.fixture(scope="module")
def three(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet of three nodes; each test leaves all of them serving."""
    with running_fleet(tmp_path_factory.mktemp("three"), nodes=3) as rig:
        yield rig


def health(rig: Rig, name: str) -> dict[str, Any]:
    """Return the `/health` of a node."""
    answer = httpx.get(f"{rig.nodes[name]}/health", trust_env=False)
    document: dict[str, Any] = answer.json()
    return document


def connections(rig: Rig) -> dict[str, int]:
    """Open WebSockets, by node."""
    return {name: health(rig, name)["connections"] for name in rig.nodes}


def opened(rig: Rig) -> int:
    """WebSockets that the nodes have accepted so far."""
    texts = [httpx.get(f"{url}/metrics", trust_env=False).text for url in rig.nodes.values()]
    found = [re.search(r"^wsfleet_connections_opened_total (\S+)$", text, re.M) for text in texts]
    return sum(int(float(match[1])) for match in found if match)


def undrain(rig: Rig, *names: str) -> None:
    """Let nodes serve again, and wait until HAProxy sees it."""
    assert wsfleet("undrain", *names, "--fleet", rig.fleet_file).code == 0
    until(lambda: wsfleet("status", "--fleet", rig.fleet_file).code == 0, "all is well")


def test_each_client_of_a_drained_node_moves_once(three: Rig) -> None:
    """Nobody else moves, nothing is lost, and the node takes clients again when it may."""
    command = [
        *(*COMMAND, "verify-delivery", three.base_url, "--json", "--timeout", "50"),
        *("--publishers", "6", "--subscribers", "60", "--messages", "150", "--rate", "15"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        until(lambda: sum(connections(three).values()) == 66, "all are connected")
        moving, before = connections(three)["host1-8001"], opened(three)
        assert moving > 0
        outcome = wsfleet("drain", "host1-8001", "--fleet", three.fleet_file, "--json")
        assert outcome.code == 0, outcome
        assert outcome.document["nodes"] == [
            {"name": "host1-8001", "state": "drained", "connections": 0}
        ]
        until(lambda: sum(connections(three).values()) == 66, "all are connected again")
        assert connections(three)["host1-8001"] == 0
        stdout, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    report = json.loads(stdout)
    assert [report[fault] for fault in FAULTS] == [0, 0, 0, 0], report
    assert report["acknowledged"] == 900
    assert 0 < report["reconnects"] <= moving
    assert opened(three) == before + moving
    undrain(three, "host1-8001")

    def serves() -> bool:
        with through_haproxy(three) as client:
            return node_of(client) == "host1-8001"

    until(serves, "host1 takes clients")


def test_a_drained_node_is_not_a_fault(three: Rig) -> None:
    """`status` shows it and finds all well; a host's name means all of its nodes."""
    outcome = wsfleet("drain", "host2", "--fleet", three.fleet_file)
    assert outcome.code == 0, outcome
    assert "host2-8001: drained, 0 connections\n" in outcome.stdout

    def down() -> bool:
        rows = wsfleet("status", "--fleet", three.fleet_file, "--json").document
        (balancer,) = rows["loadbalancers"]
        return not all(server["well"] for server in balancer["servers"])

    until(down, "HAProxy has taken it out")
    outcome = wsfleet("status", "--fleet", three.fleet_file, "--json")
    assert outcome.code == 0, outcome
    states = {node["name"]: (node["health"], node["state"]) for node in outcome.document["nodes"]}
    assert states["host2-8001"] == ("drained", "drained")
    undrain(three, "host2")


def test_the_last_ready_node_is_spared(three: Rig) -> None:
    """Its clients could go nowhere: exit code 2, unless it is forced."""
    names = ("host1", "host2", "host3")
    outcome = wsfleet("drain", *names, "--fleet", three.fleet_file)
    assert outcome.code == 2
    assert "--force" in outcome.stderr
    assert [health(three, name)["status"] for name in three.nodes] == ["healthy"] * 3
    assert wsfleet("drain", *names, "--force", "--fleet", three.fleet_file).code == 0
    outcome = wsfleet("status", "--fleet", three.fleet_file, "--json")
    assert outcome.code == 1
    assert outcome.document["problems"] == ["no node takes clients: all of them are drained"]
    undrain(three, *names)


def test_an_unfinished_drain_is_reported(three: Rig) -> None:
    """Exit code 1 with one line; the drain goes on all the same."""
    with connect(three.nodes["host3-8001"].replace("http", "ws") + "/ws", proxy=None) as client:
        node_of(client)
        outcome = wsfleet(
            "drain", "host3-8001", "--timeout", 0, "--fleet", three.fleet_file, "--json"
        )
        assert outcome.code == 1
        (problem,) = outcome.document["problems"]
        assert problem.startswith("host3-8001: ready, ")
        until(lambda: health(three, "host3-8001")["status"] == "drained", "it is drained")
    undrain(three, "host3-8001")


def test_without_waiting(three: Rig) -> None:
    """--no-wait says what is wanted and returns: exit code 0."""
    outcome = wsfleet("drain", "host3", "--no-wait", "--fleet", three.fleet_file, "--json")
    assert (outcome.code, outcome.document["problems"]) == (0, [])
    until(lambda: health(three, "host3-8001")["status"] == "drained", "it is drained")
    undrain(three, "host3")


def test_ctrl_c_ends_the_waiting_only(three: Rig) -> None:
    """The drain goes on, and the command says how to end it."""
    # Ctrl-C is ignored in tests that run in the background, and child processes inherit that.
    heeds = ("env", "--default-signal=INT")
    command = [*heeds, *COMMAND, "drain", "host3-8001", "--fleet", str(three.fleet_file)]
    node = three.processes["host3-8001"]
    node.send_signal(signal.SIGSTOP)  # it does not obey before the command was interrupted
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("host3-8001: ")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT)
        node.send_signal(signal.SIGCONT)
        assert process.returncode == 130
        assert "wsfleet undrain host3-8001" in stderr
        until(lambda: health(three, "host3-8001")["status"] == "drained", "it is drained")
    undrain(three, "host3-8001")


def test_a_terminal_shows_how_many_are_left(three: Rig) -> None:
    """There a bar goes on while clients leave."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "drain", "host3-8001", "--fleet", str(three.fleet_file)]
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # Linux's way to say that the other side is closed
        pass
    finally:
        os.close(ours)
        process.wait(20)
    assert process.returncode == 0
    assert b"connections left" in output
    undrain(three, "host3-8001")


@pytest.mark.parametrize("command", ["drain", "undrain", "forget"])
def test_an_unknown_node_is_refused(three: Rig, command: str) -> None:
    """Exit code 2, and the names that there are."""
    outcome = wsfleet(command, "host1-8001", "host9", "--fleet", three.fleet_file)
    assert outcome.code == 2
    assert outcome.stderr == (
        "wsfleet: unknown node host9: name one of host1-8001, host2-8001, host3-8001.\n"
    )


def test_a_running_node_is_not_forgotten(three: Rig) -> None:
    """Its service must be stopped first: exit code 2."""
    outcome = wsfleet("forget", "host1", "--fleet", three.fleet_file)
    assert outcome.code == 2
    assert "host1-8001 still runs" in outcome.stderr


def test_a_stopped_node_leaves_no_trace(own_fleet: Rig) -> None:
    """A node that runs no more counts as drained; forgotten, Redis knows nothing of it."""
    assert wsfleet("drain", "host2-8001", "--fleet", own_fleet.fleet_file).code == 0
    own_fleet.processes["host2-8001"].terminate()
    own_fleet.processes["host2-8001"].wait()
    outcome = wsfleet("drain", "host2-8001", "--fleet", own_fleet.fleet_file, "--json")
    assert outcome.document["nodes"][0]["state"] == "not running"
    assert outcome.code == 0
    with redis.Redis.from_url(own_fleet.redis_url, decode_responses=True) as client:
        assert client.hkeys("wsfleet:desired") == ["host2-8001"]
        client.xadd("wsfleet:node:host2-8001:samples", {"sample": "{}"})
        client.hset("wsfleet:node:host2-8001:disconnects", "alice", "as no node has a handler")
        client.sadd(key_names.AUTOSCALE_DRAINED, "host2-8001")
        outcome = wsfleet("forget", "host2-8001", "--fleet", own_fleet.fleet_file, "--json")
        assert outcome.code == 0, outcome
        assert outcome.document["forgotten"] == ["host2-8001"]
        assert outcome.document["untold_disconnects"] == 1
        assert not client.exists("wsfleet:desired", key_names.AUTOSCALE_DRAINED)
        assert list(client.scan_iter("*host2-8001*")) == []
        assert client.zrange("wsfleet:nodes", 0, -1) == ["host1-8001"]


def test_forget_fails_without_a_live_node(database: Any, tmp_path: Path) -> None:
    """Where no node is alive to reap the dead one, forgetting it fails: exit code 1.

    A node that starts later still tells of its clients.
    """
    database.zadd("wsfleet:nodes", {"old-8001": time.time() - 60})
    database.sadd("wsfleet:node:old-8001:clients", "alice")
    database.hset("wsfleet:node:old-8001:disconnects", "alice", "told later")
    path = tmp_path / "fleet.json"
    kwargs = database.connection_pool.connection_kwargs
    document = {
        "redis_url": f"redis://127.0.0.1:{kwargs['port']}/0",
        "base_url": "http://127.0.0.1:1",
        "nodes": {"old-8001": "http://127.0.0.1:1"},
    }
    path.write_text(json.dumps(document))
    outcome = wsfleet("forget", "old", "--timeout", 0, "--fleet", path, "--json")
    assert outcome.code == 1
    assert outcome.document["left"] == ["old-8001", "wsfleet:node:old-8001:clients"]
    assert database.exists("wsfleet:node:old-8001:disconnects")
