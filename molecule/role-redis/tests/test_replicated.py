"""Three servers with Sentinels, on the older Redis: they know each other, and change roles."""

import json
import time

from testinfra.host import Host

testinfra_hosts = ["ansible://replicated"]


def primary(host: Host) -> str:
    """The address that this machine's Sentinel names."""
    view = host.check_output("redis-cli-auth -p 26379 --json SENTINEL MASTER wsfleet")
    address: str = json.loads(view)["ip"]
    return address


def online_replicas(host: Host) -> int:
    """Of the primary; one that still gets its copy counts among connected_slaves, and is not."""
    replication = host.check_output(f"redis-cli-auth -h {primary(host)} INFO replication")
    return replication.count("state=online")


def test_it_knows_the_others(host: Host) -> None:
    """Each Sentinel knows two more and two replicas, and each replica has what the primary has."""
    view = json.loads(host.check_output("redis-cli-auth -p 26379 --json SENTINEL MASTER wsfleet"))
    assert (view["num-other-sentinels"], view["num-slaves"], view["quorum"]) == ("2", "2", "2")
    replication = host.check_output("redis-cli-auth INFO replication")
    assert "master_link_status:up" in replication or replication.count("state=online") == 2


def test_nothing_that_is_needed_is_refused(host: Host) -> None:
    """Replicas and Sentinels at work have asked for nothing that their users may not do."""
    assert host.check_output("redis-cli-auth ACL LOG") == ""
    assert host.check_output("redis-cli-auth -p 26379 ACL LOG") == ""


def test_a_primary_without_replicas_takes_no_writes(host: Host) -> None:
    """A primary without replicas refuses writes, so one that is cut off loses nothing."""
    settings = host.check_output("redis-cli-auth CONFIG GET min-replicas-*").splitlines()
    values = dict(zip(settings[::2], settings[1::2], strict=True))
    assert values == {"min-replicas-to-write": "1", "min-replicas-max-lag": "5"}


def test_another_one_becomes_primary(host: Host) -> None:
    """On request a replica is promoted, and the password holds in both directions."""
    old = primary(host)
    deadline = time.monotonic() + 60
    # Refused (INPROG, NOGOODSLAVE) while the roles of the last failover settle.
    while "OK" not in host.check_output("redis-cli-auth -p 26379 SENTINEL FAILOVER wsfleet"):
        assert time.monotonic() < deadline, "no failover was begun"
        time.sleep(1)
    while primary(host) == old or online_replicas(host) < 2:
        assert time.monotonic() < deadline, "no new primary with two replicas"
        time.sleep(0.5)
    test_nothing_that_is_needed_is_refused(host)
