"""``wsfleet check state`` on a real Redis with keys that are right, wrong, and in motion."""

import threading
import time
from typing import Any

import pytest

from tests.support.command import wsfleet
from tests.support.fleet import Rig
from wsfleet.cli.commands.check_state import run
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.report import Report

NODE = "node1-8001"


@pytest.fixture
def healthy(database: Any) -> Any:
    """A database with one live node, 1,200 clients on it, and states of clients long gone."""
    database.zadd("wsfleet:nodes", {NODE: time.time() + 60})
    database.hset(f"wsfleet:node:{NODE}", mapping={"connections": "1200"})
    pipe = database.pipeline()
    for number in range(1200):
        pipe.set(f"connection:c{number}", NODE)
        pipe.sadd(f"wsfleet:node:{NODE}:clients", f"c{number}")
        pipe.set(f"state:c{number}", "text")
    pipe.set("state:gone", "text", ex=100)
    pipe.execute()
    return database


def found(url: str, *others: str, settle: float = 0.0) -> list[tuple[str, str]]:
    """Return (kind, key) of each orphan."""
    report = run([url, *others], settle)
    return [(each["kind"], each["key"]) for each in report.data["orphans"]]


def test_a_healthy_database_has_no_orphans(healthy: Any, redis_server: str) -> None:
    """Owners, members and TTLs are all there; everything is counted."""
    report = run([redis_server], 0)
    assert report.ok
    assert report.data["orphans"] == []
    assert report.data["connections"] == report.data["node_clients"] == 1200
    assert report.data["states"] == 1201
    assert report.data["live_nodes"] == [NODE]


def test_a_connection_of_a_dead_node_is_an_orphan(healthy: Any, redis_server: str) -> None:
    """Without a sign of life for eight seconds, or ever, a node holds no connections."""
    healthy.zadd("wsfleet:nodes", {"old-8001": time.time() - 9})
    for client, node in (("x", "old-8001"), ("y", "never-8001")):
        healthy.set(f"connection:{client}", node)
        healthy.sadd(f"wsfleet:node:{node}:clients", client)
    assert found(redis_server) == [
        ("connection_of_dead_node", "connection:x"),
        ("connection_of_dead_node", "connection:y"),
    ]


def test_a_connection_its_node_does_not_know_is_an_orphan(healthy: Any, redis_server: str) -> None:
    """The node's own set must have the client, or nobody will ever reap its key."""
    healthy.srem(f"wsfleet:node:{NODE}:clients", "c7")
    assert found(redis_server) == [("connection_unknown_to_its_node", "connection:c7")]


def test_a_member_without_connection_is_an_orphan(healthy: Any, redis_server: str) -> None:
    """A node's set must not have clients whose key is missing, or another node's."""
    healthy.sadd(f"wsfleet:node:{NODE}:clients", "nobody")
    healthy.sadd("wsfleet:node:other:clients", "c3")
    report = run([redis_server], 0)
    assert [(each["key"], each["detail"]) for each in report.data["orphans"]] == [
        (f"wsfleet:node:{NODE}:clients", "its client nobody has no connection: key"),
        ("wsfleet:node:other:clients", f"its client c3 is on {NODE}"),
    ]


def test_a_state_without_owner_and_ttl_is_an_orphan(healthy: Any, redis_server: str) -> None:
    """It would stay for ever."""
    healthy.set("state:lost", "text")
    assert found(redis_server) == [("state_without_owner", "state:lost")]


def test_keys_in_motion_are_no_orphans(healthy: Any, redis_server: str) -> None:
    """A key that looks wrong once, and right a moment later, is not reported."""
    healthy.set("state:late", "text")
    healthy.srem(f"wsfleet:node:{NODE}:clients", "c1")
    healthy.sadd(f"wsfleet:node:{NODE}:clients", "leaving")

    def arrive() -> None:
        healthy.expire("state:late", 100)
        healthy.sadd(f"wsfleet:node:{NODE}:clients", "c1")
        healthy.srem(f"wsfleet:node:{NODE}:clients", "leaving")

    timer = threading.Timer(0.3, arrive)
    timer.start()
    try:
        assert found(redis_server, settle=1.0) == []
    finally:
        timer.join()


def test_names_of_any_bytes_are_taken(healthy: Any, redis_server: str) -> None:
    """A key that is not UTF-8 is reported readably, and one that is right is not reported."""
    healthy.set(b"state:\xff\xfe", "text")
    healthy.set(b"connection:\xfd", NODE)
    healthy.sadd(f"wsfleet:node:{NODE}:clients", b"\xfd")
    assert found(redis_server) == [("state_without_owner", r"state:\xff\xfe")]


def test_keys_is_never_used(healthy: Any, redis_server: str) -> None:
    """KEYS would hold up the Redis that the fleet works with; SCAN does not."""
    run([redis_server], 0)
    commands = healthy.info("commandstats")
    assert "cmdstat_scan" in commands
    assert "cmdstat_keys" not in commands


@pytest.fixture
def second(redis_server: str, healthy: Any) -> str:
    """The URL of a second database that has the same keys as the first."""
    for key in healthy.scan_iter(count=1000):
        healthy.copy(key, key, destination_db=1)
    return redis_server.removesuffix("/0") + "/1"


def test_servers_that_agree_pass(second: str, redis_server: str) -> None:
    """The same keys on both: nothing to report."""
    report = run([redis_server, second], 0)
    assert report.ok
    assert report.data["redis"] == [redis_server, second]


def test_servers_that_differ_are_found(healthy: Any, second: str, redis_server: str) -> None:
    """A key missing on either side, or another node in it, is reported once."""
    healthy.move("connection:c1", 2)
    healthy.set("connection:c1", NODE)
    healthy.set("state:here", "text", ex=100)
    healthy.copy("state:gone", "state:there", destination_db=1)
    healthy.copy("state:gone", "connection:c2", destination_db=1, replace=True)
    assert found(redis_server, second) == [
        ("differs_between_servers", "connection:c2"),
        ("differs_between_servers", "state:here"),
        ("differs_between_servers", "state:there"),
    ]


def test_the_number_of_problems_for_people_is_bounded(healthy: Any, redis_server: str) -> None:
    """Thousands of orphans do not flood the terminal; --json has all of them."""
    healthy.delete("wsfleet:nodes")
    report: Report = run([redis_server], 0)
    assert len(report.problems) == 1200
    outcome = wsfleet("check", "state", "--redis", redis_server, "--settle", 0)
    assert outcome.code == 1
    assert "1180 more" in outcome.stdout
    assert outcome.stdout.count("✗") == 20


def test_an_unreachable_redis_cannot_be_checked(unused_tcp_port: int) -> None:
    """Exit code 2's error: one line, with the host, without the password."""
    url = f"redis://user:secret@127.0.0.1:{unused_tcp_port}/0"
    with pytest.raises(CannotRun, match=f"127.0.0.1:{unused_tcp_port}") as caught:
        run([url], 0)
    assert "secret" not in caught.value.message


def test_a_real_fleet_has_no_orphans(fleet: Rig) -> None:
    """After clients came and went through HAProxy no key is left without an owner or a TTL."""
    assert wsfleet("check", "stickiness", fleet.base_url, "--seconds", 0).code == 0
    outcome = wsfleet("check", "state", "--fleet", fleet.fleet_file, "--settle", 1, "--json")
    assert outcome.code == 0, outcome.document
    assert outcome.document["states"] > 0
    assert outcome.document["live_nodes"] == sorted(fleet.nodes)
