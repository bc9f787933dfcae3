"""``wsfleet rebalance``: its exit codes, its log, and the service of several processes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.command import wsfleet
from tests.support.redis import RedisServer
from wsfleet.broker import control
from wsfleet.broker.control import Shed
from wsfleet.cli.access import rebalancing
from wsfleet.cli.access.elected_service import Schedule
from wsfleet.cli.access.fleet_file import Fleet
from wsfleet.cli.commands import rebalance
from wsfleet.cli.commands.rebalance import Rebalancer
from wsfleet.cluster.rebalance_policy import RebalancePolicy, decide
from wsfleet.redis import key_names

NAMES = ("host1-8001", "host2-8001")
AT_ONCE = RebalancePolicy(delay=0.0, cooldown=0.0)


@pytest.fixture
def fleet_file(tmp_path: Path, redis_process: RedisServer) -> Path:
    """Return a fleet file whose nodes are only entries of the registry; see `nodes_of`."""
    return write_fleet(tmp_path, redis_process.url_of("cli"))


def write_fleet(folder: Path, redis_url: str, **said: str) -> Path:
    """Write a fleet file."""
    path = folder / "fleet.json"
    nodes = dict.fromkeys(NAMES, "http://127.0.0.1:1")
    document = {"redis_url": redis_url, "base_url": "http://127.0.0.1:1", "nodes": nodes, **said}
    path.write_text(json.dumps(document))
    return path


def nodes_of(database: Any, *connections: int, state: str = "ready", **said: str) -> None:
    """Enter nodes into the registry, whose next heartbeat is not due for an hour."""
    for name, count in zip(NAMES, connections, strict=False):
        report = {"state": state, "connections": count, **said}
        database.hset(key_names.node(name), mapping=report)
        database.zadd(key_names.NODES, {name: time.time() + 3600})


def rebalancer(fleet_file: Path, policy: RebalancePolicy = AT_ONCE) -> Rebalancer:
    """Return a rebalancer that looks when it is told to."""
    fleet = Fleet.model_validate_json(fleet_file.read_bytes())
    return Rebalancer(lambda: fleet, policy, Schedule(once=True))


def logged(database: Any) -> list[dict[str, int]]:
    """Return what nodes shed in each round of the log."""
    return [each.entry["shed"] for each in rebalancing.rounds(database, 10)]


def test_even_nodes_are_left_alone(fleet_file: Path, database: Any) -> None:
    """Exit code 0 and one line."""
    nodes_of(database, 104, 96)
    outcome = wsfleet("rebalance", "--fleet", fleet_file)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == "even: host1-8001 has 104 clients, its share is 100.0, within 10%\n"
    assert wsfleet("rebalance", "--to", "3%", "--dry-run", "--fleet", fleet_file).code == 1
    assert logged(database) == []


def test_a_dry_run_says_what_would_be_done(fleet_file: Path, database: Any) -> None:
    """Exit code 1, one line, and no change."""
    nodes_of(database, 200, 0)
    before = database.keys()
    outcome = wsfleet("rebalance", "--dry-run", "--fleet", fleet_file)
    assert outcome.code == 1
    assert outcome.stdout == (
        "host1-8001 has 200 clients, its share is 100.0; host1-8001 sheds 100 with a round\n"
    )
    assert database.keys() == before


def test_a_round_tells_the_nodes(fleet_file: Path, database: Any, redis_server: str) -> None:
    """The message has the surplus, the share that stays, and the rate; the log has the round."""
    nodes_of(database, 200, 0)
    with redis.Redis.from_url(redis_server) as raw, raw.pubsub() as listener:
        listener.ssubscribe(key_names.control("host1-8001"))
        assert listener.get_message(timeout=5)["type"] == "ssubscribe"
        outcome = wsfleet("rebalance", "--rate", 20, "--no-wait", "--json", "--fleet", fleet_file)
        message = listener.get_message(timeout=5)
    assert (outcome.code, outcome.document["shed"]) == (0, {"host1-8001": 100})
    assert control.decode(message["data"]) == Shed(count=100, keep=100, rate=20.0)
    assert logged(database) == [{"host1-8001": 100}]
    assert "host1-8001 100" in wsfleet("rebalance", "--log", "--fleet", fleet_file).stdout


def test_a_round_that_helps_nothing_is_a_failure(fleet_file: Path, database: Any) -> None:
    """Exit code 1 if the nodes are still uneven after the timeout."""
    nodes_of(database, 200, 0)
    outcome = wsfleet("rebalance", "--rate", 1000, "--timeout", 0.1, "--fleet", fleet_file)
    assert outcome.code == 1
    assert outcome.stdout.endswith(
        "still uneven after the round: host1-8001 has 200, host2-8001 has 0\n"
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"state": "draining"}, "host1-8001 is not ready: draining"),
        ({"shedding": "5"}, "host1-8001 sheds 5 clients"),
    ],
)
def test_clients_that_move_anyway_are_not_moved(
    fleet_file: Path, database: Any, said: dict[str, str], words: str
) -> None:
    """Exit code 2 and one line."""
    nodes_of(database, 200, 0, **said)
    outcome = wsfleet("rebalance", "--fleet", fleet_file)
    assert outcome.code == 2
    assert f"clients cannot be moved now: {words}" in outcome.stderr
    assert logged(database) == []


@pytest.mark.parametrize("stickiness", ["source", "path 2", "header X-Room"])
def test_stickiness_by_address_or_key_cannot_be_rebalanced(
    tmp_path: Path, redis_process: RedisServer, stickiness: str
) -> None:
    """Exit code 2; the line names the variable and the value that it must have."""
    path = write_fleet(tmp_path, redis_process.url_of("cli"), stickiness=stickiness)
    for option in ("--dry-run", "--run"):
        outcome = wsfleet("rebalance", option, "--fleet", path)
        assert outcome.code == 2
        assert f"haproxy_stickiness: {stickiness}." in outcome.stderr
        assert "needs haproxy_stickiness: cookie" in outcome.stderr


@pytest.mark.parametrize("wrong", ["100%", "2", "much", "-1%"])
@pytest.mark.usefixtures("processes")
def test_a_wrong_tolerance_is_one_line(wrong: str) -> None:
    """Exit code 2."""
    outcome = wsfleet("rebalance", "--to", wrong)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "--to" in outcome.stderr


def test_the_service_rebalances(fleet_file: Path, database: Any) -> None:
    """It logs each round once, and waits for the cool-down before the next one."""
    nodes_of(database, 200, 0)
    one = rebalancer(fleet_file, RebalancePolicy(delay=0.0, cooldown=60.0))
    one.look()
    one.look()
    one.leave()
    assert logged(database) == [{"host1-8001": 100}]
    assert not database.exists(key_names.REBALANCE_LEADER)


def test_only_the_leader_acts(fleet_file: Path, database: Any) -> None:
    """A second rebalancer follows, and takes over when the first one leaves."""
    nodes_of(database, 104, 96)
    one, other = rebalancer(fleet_file), rebalancer(fleet_file)
    one.look()
    nodes_of(database, 200, 0)
    other.look()
    assert logged(database) == []
    one.leave()
    other.look()
    assert logged(database) == [{"host1-8001": 100}]


def test_a_leader_that_was_paused_does_nothing_late(
    fleet_file: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis does not take its round if another rebalancer leads by then."""
    nodes_of(database, 200, 0)

    def paused(*args: Any, **kwargs: Any) -> Any:
        database.set(key_names.REBALANCE_LEADER, "another one")
        return decide(*args, **kwargs)

    monkeypatch.setattr(rebalance, "decide", paused)
    rebalancer(fleet_file).look()
    assert logged(database) == []


def test_a_hold_forbids_rounds_of_the_service(
    fleet_file: Path, database: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until it is released, or expires."""
    nodes_of(database, 200, 0)
    assert wsfleet("rebalance", "--hold", 600, "--fleet", fleet_file).code == 0
    assert 0 < database.ttl(key_names.REBALANCE_HELD) <= 600
    one = rebalancer(fleet_file)
    one.look()
    assert "wait: held by `wsfleet rebalance --hold`" in capsys.readouterr().out
    assert logged(database) == []
    assert wsfleet("rebalance", "--hold", 0, "--fleet", fleet_file).code == 0
    one.look()
    assert logged(database) == [{"host1-8001": 100}]


def test_another_redis_is_waited_for(
    fleet_file: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover nodes have time for a heartbeat before a round."""
    nodes_of(database, 200, 0)
    found = ["one"]
    monkeypatch.setattr(
        "wsfleet.cli.access.elected_service.server_infos",
        lambda _: [{"run_id": run_id} for run_id in found],
    )
    one = rebalancer(fleet_file, RebalancePolicy(delay=3600.0))
    one.look()
    found[:] = ["two"]
    nodes_of(database, 200, 0)
    one._policy = AT_ONCE
    one.look()
    assert logged(database) == []
