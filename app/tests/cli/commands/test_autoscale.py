"""``wsfleet autoscale``: on nodes behind HAProxy, with others of its kind, and without Redis."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.command import COMMAND, wsfleet
from tests.support.fleet import running_fleet
from tests.support.fleet_clients import node_of, through_haproxy
from tests.support.redis import RedisServer
from tests.support.topologies import SentinelTopology
from wsfleet.cli.access import elected_service
from wsfleet.cli.access.elected_service import Schedule
from wsfleet.cli.access.fleet_file import Fleet
from wsfleet.cli.commands import autoscale
from wsfleet.cli.commands.autoscale import AutoscalePlan, Autoscaler
from wsfleet.cluster import node_state
from wsfleet.cluster.autoscale_policy import Decision, decide
from wsfleet.redis import key_names

# The nodes of a test share its machine, whose CPU says nothing about their clients.
SETTINGS = {
    "min": 2,
    "max": 3,
    "desired": 2,
    "step": 1,
    "connections-high": 3,
    "connections-low": 2,
    "cpu-high": 1000,
    "cpu-low": 1000,
    "margin": 0.1,
    "scale-out-cooldown": 0,
    "scale-in-cooldown": 0,
}
OPTIONS = [f"--{name}={value}" for name, value in SETTINGS.items()]
POLICY = autoscale.policy(**{name.replace("-", "_"): value for name, value in SETTINGS.items()})


class Running:
    """An autoscaler as a process."""

    def __init__(self, child: "subprocess.Popen[bytes]", log: Path, port: int) -> None:
        self.child = child
        self._log = log
        self._port = port

    def metric(self, name: str) -> float:
        """One of its gauges or counters, by its name and labels."""
        text = httpx.get(f"http://127.0.0.1:{self._port}/metrics", trust_env=False).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        return float(values[f"wsfleet_autoscale_{name}"])

    @property
    def lines(self) -> list[Any]:
        """The lines that it has printed."""
        return self._log.read_text().splitlines()


@contextmanager
def autoscaler(fleet_file: Path, *options: str) -> Iterator[Running]:
    """Run an autoscaler until the block ends."""
    port = free_port()
    log = fleet_file.parent / f"autoscale-{port}.log"
    command = [*COMMAND, "autoscale", *OPTIONS, "--json", f"--fleet={fleet_file}", *options]
    with process([*command, "--interval=0.5", f"--metrics-port={port}"], log) as child:
        yield Running(child, log, port)


def decisions(fleet_file: Path) -> list[dict[str, Any]]:
    """Return the decisions in the log."""
    outcome = wsfleet("autoscale", "--log", "--json", "--fleet", fleet_file)
    assert outcome.code == 0, outcome
    found: list[dict[str, Any]] = outcome.document["decisions"]
    return found


def direct(url: str) -> ClientConnection:
    """A client of one node, which need not read what the others say to stay connected."""
    return connect(url.replace("http", "ws") + "/ws", proxy=None, max_queue=None)


def hear(client: ClientConnection) -> None:
    """Receive until the connection ends."""
    while True:
        client.recv(20)


@pytest.mark.usefixtures("processes")
def test_hosts_come_and_go_with_the_load(tmp_path: Path) -> None:
    """The standby host takes clients while the load is high; then it asks them to reconnect."""
    with (
        running_fleet(tmp_path, 3, standby=1, WSFLEET_HEARTBEAT_INTERVAL="0.5") as rig,
        autoscaler(rig.fleet_file) as running,
        ExitStack() as stack,
    ):
        until(lambda: running.metric('hosts{place="standby"}') == 1, "the pool is seen")
        assert rig.ready("host3-8001") == 503
        clients = {
            name: [stack.enter_context(direct(rig.nodes[name])) for _ in range(4)]
            for name in ("host1-8001", "host2-8001")
        }
        until(lambda: rig.ready("host3-8001") == 200, "the standby serves")
        while node_of(newcomer := stack.enter_context(through_haproxy(rig))) != "host3-8001":
            newcomer.close()
        assert running.metric("connections_per_node") > 2

        for held in clients.values():
            held.pop().close()
            held.pop().close()
        with pytest.raises(ConnectionClosed, match="1012"):
            hear(newcomer)
        with through_haproxy(rig) as back:
            assert node_of(back) != "host3-8001"
        until(lambda: running.metric('hosts{place="standby"}') == 1, "the standby is empty again")
        for name, held in clients.items():
            assert [node_of(client) for client in held] == [name] * 2

        first, second, *more = decisions(rig.fleet_file)
        assert not more
        assert (first["action"], first["hosts"]) == ("scale_out", ["host3"])
        assert "connections a node are above 3" in first["reason"]
        assert (second["action"], second["hosts"]) == ("scale_in", ["host3"])
        assert " are low" in second["reason"]
        # The clients left one by one, and their nodes say so when they next give a sign of life.
        assert second["connections"] <= 3 * SETTINGS["connections-low"]
        assert second["places"]["serving"] == 3
        said = [json.loads(line) for line in running.lines]
        assert [line["hosts"] for line in said if line["applied"]] == [["host3"], ["host3"]]
        assert "host3" in wsfleet("autoscale", "--log", "--fleet", rig.fleet_file).stdout


@pytest.mark.usefixtures("processes")
def test_another_one_takes_over(tmp_path: Path) -> None:
    """Two run and one decides; it is killed, then a node: the other one replaces the node."""
    with (
        running_fleet(tmp_path, 3, standby=1) as rig,
        autoscaler(rig.fleet_file) as one,
        autoscaler(rig.fleet_file) as two,
    ):
        both = [one, two]
        until(lambda: sum(each.metric("leader") for each in both) == 1, "one of them leads")
        both.sort(key=lambda each: each.metric("leader"))
        other, leader = both
        leader.child.kill()
        until(lambda: other.metric("leader") == 1, "the other one leads")
        rig.kill("host2-8001")
        until(lambda: rig.ready("host3-8001") == 200, "the standby replaces the node")
        (decision,) = decisions(rig.fleet_file)
        assert decision["reason"] == "1 hosts serve, at least 2 should"


@pytest.fixture
def fleet_file(tmp_path: Path, redis_process: RedisServer) -> Path:
    """A fleet whose nodes are only entries of the registry; see `nodes_of`."""
    return write_fleet(tmp_path, redis_process.url_of("cli"))


def write_fleet(folder: Path, redis_url: str) -> Path:
    """Write a fleet file."""
    path = folder / "fleet.json"
    nodes = {f"host{n}-8001": "http://127.0.0.1:1" for n in (1, 2, 3)}
    document = {"redis_url": redis_url, "base_url": "http://127.0.0.1:1", "nodes": nodes}
    path.write_text(json.dumps(document))
    return path


def nodes_of(database: Any, **states: str) -> None:
    """Enter nodes into the registry, whose next sign of life is not due for an hour."""
    for host, state in states.items():
        database.hset(key_names.node(f"{host}-8001"), mapping={"state": state, "connections": 0})
        database.zadd(key_names.NODES, {f"{host}-8001": time.time() + 3600})


def look(fleet_file: Path) -> None:
    """Let a new autoscaler look once."""
    fleet = Fleet.model_validate_json(fleet_file.read_bytes())
    autoscaler = Autoscaler(lambda: fleet, AutoscalePlan(POLICY, Schedule(once=True)))
    autoscaler.look()
    autoscaler.leave()


def test_a_leader_that_was_paused_does_nothing_late(
    fleet_file: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its decision another one came to lead: its decision is not taken."""
    nodes_of(database, host1="ready", host2="drained")

    def paused(*args: Any, **kwargs: Any) -> Decision:
        database.set(key_names.AUTOSCALE_LEADER, "another one")
        return decide(*args, **kwargs)

    monkeypatch.setattr(autoscale, "decide", paused)
    look(fleet_file)
    assert not database.exists(key_names.DESIRED, key_names.AUTOSCALE_LOG)
    assert database.get(key_names.AUTOSCALE_LEADER) == "another one"


def test_a_follower_that_comes_to_lead_waits_too(
    fleet_file: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It followed when Redis failed over: nodes have time for a sign of life all the same."""
    nodes_of(database, host1="ready", host2="drained")
    redis_is = ["one"]
    monkeypatch.setattr(
        elected_service, "server_infos", lambda _: [{"run_id": run_id} for run_id in redis_is]
    )
    fleet = Fleet.model_validate_json(fleet_file.read_bytes())
    autoscaler = Autoscaler(lambda: fleet, AutoscalePlan(POLICY, Schedule(once=True)))
    database.set(key_names.AUTOSCALE_LEADER, "another one")
    autoscaler.look()
    redis_is[:] = ["two"]
    database.delete(key_names.AUTOSCALE_LEADER)
    autoscaler.look()
    assert database.get(key_names.AUTOSCALE_LEADER) != "another one"
    assert not database.exists(key_names.DESIRED)
    monkeypatch.setattr(elected_service, "NODE_DEAD_AFTER", 0)
    redis_is[:] = ["three"]
    autoscaler.look()
    assert database.hgetall(key_names.DESIRED) == {"host2-8001": node_state.SERVE}


def test_an_operators_newer_decision_wins(
    fleet_file: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose desired state has changed since it was read is left alone."""
    nodes_of(database, host1="ready", host2="drained")

    def interrupted(*args: Any, **kwargs: Any) -> Decision:
        database.hset(key_names.DESIRED, "host2-8001", node_state.DRAIN)
        return decide(*args, **kwargs)

    monkeypatch.setattr(autoscale, "decide", interrupted)
    look(fleet_file)
    assert database.hgetall(key_names.DESIRED) == {"host2-8001": node_state.DRAIN}
    assert not database.exists(key_names.AUTOSCALE_LOG)


def test_an_operator_takes_a_host_out_of_the_pool(fleet_file: Path, database: Any) -> None:
    """The autoscaler may bring in a host that it drained, until an operator drains it as well."""
    nodes_of(database, host1="ready", host2="ready", host3="ready")
    look(fleet_file)
    assert database.hgetall(key_names.DESIRED) == {"host1-8001": node_state.DRAIN}
    nodes_of(database, host1="drained", host2="drained", host3="ready")
    command = ("drain", "host1", "--no-wait", "--fleet", fleet_file)
    assert wsfleet(*command).code == 0
    look(fleet_file)
    assert database.hgetall(key_names.DESIRED) == {
        "host1-8001": node_state.DRAIN,
        "host2-8001": node_state.SERVE,
    }


def test_a_dry_run_writes_nothing(fleet_file: Path, database: Any) -> None:
    """It writes nothing, and does not lead."""
    nodes_of(database, host1="ready", host2="drained")
    before = database.keys()
    outcome = wsfleet("autoscale", *OPTIONS, "--dry-run", "--once", "--fleet", fleet_file)
    assert outcome.code == 0, outcome
    assert outcome.stdout == "scale_out host2: 1 hosts serve, at least 2 should\n"
    assert database.keys() == before


def test_the_lead_is_given_back(fleet_file: Path, database: Any) -> None:
    """On SIGTERM: exit code 0, and nobody leads."""
    nodes_of(database, host1="ready", host2="ready")
    with autoscaler(fleet_file) as running:
        until(lambda: database.exists(key_names.AUTOSCALE_LEADER) == 1, "it leads")
        running.child.send_signal(signal.SIGTERM)
        assert running.child.wait(20) == 0
    assert not database.exists(key_names.AUTOSCALE_LEADER)


def test_it_waits_for_redis(fleet_file: Path, redis_process: RedisServer) -> None:
    """Without Redis it says so in one line, and goes on when Redis is back."""
    redis_process.stop()
    with autoscaler(fleet_file) as running:
        until(lambda: len(running.lines) == 1, "it says that there is no Redis")
        assert "cannot read Redis" in running.lines[0]
        assert running.metric("redis_connected") == 0
        redis_process.start()
        until(lambda: running.metric("leader") == 1, "it leads")
        redis_process.stop()
        until(lambda: running.metric("redis_connected") == 0, "it misses Redis")
        redis_process.start()
        until(lambda: running.metric("redis_connected") == 1, "it goes on")


def test_it_follows_a_failover(tmp_path: Path, sentinel: SentinelTopology) -> None:
    """The Sentinels name another primary: it decides there, once nodes had time to follow."""
    with autoscaler(write_fleet(tmp_path, sentinel.url)) as running:
        until(lambda: running.metric("leader") == 1, "it leads")
        old = sentinel.primary
        old.kill()
        sentinel.wait_for_failover(old)
        with redis.Redis.from_url(sentinel.primary.url, decode_responses=True) as client:
            until(lambda: client.exists(key_names.AUTOSCALE_LEADER) == 1, "it leads there")
            nodes_of(client, host1="ready", host2="drained")
            until(lambda: client.hgetall(key_names.DESIRED) != {}, "it has decided")
            assert client.hgetall(key_names.DESIRED) == {"host2-8001": node_state.SERVE}
        *_, waited, decided = map(json.loads, running.lines[-2:])
        assert "nodes have 8 s" in waited["reason"]
        assert decided["action"] == "scale_out"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--min", 5, "--max", 2), "min (5) is more than max (2)"),
        (("--desired", 1), "min (2) is more than desired (1)"),
        (("--cpu-low", 80), "cpu_low (80) is more than cpu_high (70)"),
        (("--min", 0), "--min"),
        (("--margin", 2), "--margin"),
    ],
)
def test_wrong_settings_are_one_line(args: tuple[object, ...], words: str) -> None:
    """Exit code 2, before anything is looked at."""
    outcome = wsfleet("autoscale", "--check", *args)
    assert outcome.code == 2
    assert words in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_settings_come_from_the_environment(fleet_file: Path) -> None:
    """As its service gives them; a port that is taken is one line as well."""
    outcome = wsfleet("autoscale", "--check", WSFLEET_AUTOSCALE_MAX="1")
    assert (outcome.code, outcome.stderr) == (
        2,
        "wsfleet: min (2) is more than max (1): change one of the two.\n",
    )
    assert wsfleet("autoscale", "--check", WSFLEET_AUTOSCALE_MAX="5").code == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = wsfleet(
            "autoscale", "--once", "--fleet", fleet_file, WSFLEET_AUTOSCALE_METRICS_PORT=port
        )
    assert outcome.code == 2
    assert "Set another --metrics-port" in outcome.stderr
