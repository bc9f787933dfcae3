"""Three servers with Sentinels, on the older Redis: they know each other, and change roles."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

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


SERVERS = {12: "bookworm1", 13: "bookworm2", 14: "bookworm3"}
#: Writes that both replicas have, and a crash of the primary, whose disk has none of them.
CRASH = """
set -e
cd /var/lib/redis/appendonlydir
pid=$(cat /run/redis/redis-server.pid)
size=$(stat --format %s *.incr.aof)
printf 'SET acknowledged {value}\\nWAIT 2 5000\\n' | redis-cli-auth
kill -STOP "$pid"
truncate --size "$size" *.incr.aof
{then}
"""


def primary_host(cluster: Cluster) -> str:
    """Return the host whose server the Sentinels agree on, as soon as it has two replicas."""

    def agreed() -> set[str]:
        return {primary(cluster.host(name)) for name in SERVERS.values()}

    until(lambda: len(agreed()) == 1, "the Sentinels agree")
    name = SERVERS[int(agreed().pop().rpartition(".")[2])]
    until(lambda: online_replicas(cluster.host(name)) == 2, "it has two replicas", 60)
    return name


def restart(cluster: Cluster, names: list[str]) -> None:
    """Cut the power of machines at once, and switch it on again."""
    for verb in ("kill", "start"):
        for name in names:
            cluster.podman(verb, name)
    for name in names:
        until(lambda: cluster.is_up(name), f"{name} is up", 60)  # noqa: B023


def value(cluster: Cluster) -> set[str]:
    """Return what the servers have."""
    return {cluster.on(name, "redis-cli-auth GET acknowledged") for name in SERVERS.values()}


@pytest.mark.parametrize(
    "then",
    [
        'kill -KILL "$pid"',
        # Its start is interrupted: that is no shutdown.
        "systemctl kill -s KILL redis-server; sleep 0.3; systemctl stop redis-server;"
        " systemctl start redis-server",
    ],
    ids=["it starts again", "it is stopped and started"],
)
def test_a_primary_that_crashed_gives_way(cluster: Cluster, then: str) -> None:
    """Its disk lacks what the replicas have, so one of them becomes the primary."""
    old = primary_host(cluster)
    cluster.on(old, CRASH.format(value=f"before-{old}", then=then))
    until(lambda: primary_host(cluster) != old, "another one is the primary")
    assert value(cluster) == {f"before-{old}"}


def test_a_primary_whose_machine_crashed_gives_way(cluster: Cluster) -> None:
    """Also if the machine is back before the Sentinels count it as down."""
    old = primary_host(cluster)
    cluster.on(old, CRASH.format(value="before-the-machine", then=""))
    restart(cluster, [old])
    until(lambda: primary_host(cluster) != old, "another one is the primary")
    assert value(cluster) == {"before-the-machine"}


def test_a_primary_that_shuts_down_stays_the_primary(cluster: Cluster) -> None:
    """Its files are complete."""
    old = primary_host(cluster)
    cluster.on(old, "systemctl restart redis-server")
    assert primary_host(cluster) == old


def test_the_primary_is_the_same_after_an_outage_of_all(cluster: Cluster) -> None:
    """No replica has followed it since: which of them has more is unknown."""
    old = primary_host(cluster)
    cluster.on(old, "printf 'SET acknowledged at-the-end\\nWAIT 2 5000\\n' | redis-cli-auth")
    restart(cluster, list(SERVERS.values()))
    assert primary_host(cluster) == old
    assert value(cluster) == {"at-the-end"}
