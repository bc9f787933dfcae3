"""The Redis primary dies under load and a replica goes on; site.yml leaves it at that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

SERVERS = ["redis1", "redis2", "redis3"]
ASK = "redis-cli-auth"
ASK_SENTINEL = f"{ASK} -p 26379"
KEYS = "/etc/redis/tls"
ANONYMOUS = f"redis-cli --tls --cacert {KEYS}/ca.pem"
NEW_PASSWORD = ("-e", "redis_password=another/and@longer")


def info(cluster: Cluster, name: str) -> dict[str, str]:
    """Return a Redis server's INFO of its replication."""
    lines = cluster.on(name, f"{ASK} INFO replication").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def primary(cluster: Cluster) -> str:
    """The host that the Sentinels of all machines agree on, as soon as they do."""
    get = f"{ASK_SENTINEL} SENTINEL GET-MASTER-ADDR-BY-NAME wsfleet"

    def views() -> set[str]:
        return {cluster.on(name, get).split()[0] for name in SERVERS}

    until(lambda: len(views()) == 1, "the Sentinels agree")
    last = views().pop().rpartition(".")[2]
    return f"redis{int(last) - 30}"


def replicates(cluster: Cluster, name: str) -> bool:
    """Whether a server has what the primary has."""
    return info(cluster, name).get("master_link_status") == "up"


def in_sync(cluster: Cluster) -> bool:
    """Whether the primary has two replicas, which have what it has."""
    first = primary(cluster)
    return info(cluster, first)["connected_slaves"] == "2" and all(
        replicates(cluster, name) for name in SERVERS if name != first
    )


def test_one_primary_two_replicas_three_sentinels(cluster: Cluster) -> None:
    """Everybody knows everybody, by the addresses of the inventory."""
    assert info(cluster, primary(cluster))["role"] == "master"
    assert in_sync(cluster)
    for name in SERVERS:
        quorum = cluster.on(name, f"{ASK_SENTINEL} SENTINEL CKQUORUM wsfleet")
        assert quorum.startswith("OK 3 usable Sentinels")


def test_all_machines_boot_before_the_network(cluster: Cluster) -> None:
    """As after a power cut: Redis, Sentinels and nodes try until they have their address."""
    cluster.boot_without_an_address(*SERVERS, "lb1", "node1", "node2")
    until(lambda: in_sync(cluster), "the replicas have what the primary has", 60)
    for name in SERVERS:
        show = "systemctl show --property NRestarts --value"
        for unit in ("redis-server", "redis-sentinel"):
            assert cluster.on(name, f"{show} {unit}") != "0"
    cluster.well()


@pytest.mark.parametrize("port", [6379, 26379])
def test_nobody_enters_without_the_password(cluster: Cluster, port: int) -> None:
    """Neither Redis nor Sentinel tells anything, also from the machine itself."""
    for name in SERVERS:
        assert "NOAUTH" in cluster.on(name, f"{ANONYMOUS} -p {port} PING")


@pytest.mark.parametrize("port", [6379, 26379])
def test_nobody_is_understood_without_tls(cluster: Cluster, port: int) -> None:
    """Neither by Redis nor by Sentinel; and who has not their CA tells them nothing."""
    for name in SERVERS:
        host = cluster.host(name)
        assert host.run(f"redis-cli -p {port} PING").stdout == ""
        others = "/etc/ssl/certs/ca-certificates.crt"
        stranger = host.run(f"redis-cli --tls --cacert {others} -p {port} PING")
        assert stranger.rc != 0
        assert stranger.stdout == ""


def test_keys_are_not_for_everybody(cluster: Cluster) -> None:
    """Only root and Redis read them."""
    for name in SERVERS:
        key = cluster.host(name).file(f"{KEYS}/host.key")
        assert (key.user, key.group, key.mode) == ("root", "redis", 0o640)
        assert cluster.host(name).file(KEYS).mode == 0o750


def test_passwords_are_not_for_everybody(cluster: Cluster) -> None:
    """Also in the files that Redis and Sentinel have written themselves."""
    secrets = (
        "awk 1 /etc/redis/wsfleet-admin; "
        "awk '/^masterauth |^sentinel sentinel-pass / { print $NF }' /etc/redis/wsfleet*.conf"
    )
    readable = "find /etc/redis /var/lib/redis -type f -perm /o=rwx -exec cat {} +"
    for name in SERVERS:
        admin, replica, sentinel = cluster.on(name, secrets).split()
        assert not {admin, replica, sentinel} & set(
            re.split(r"[\s\"]+", cluster.on(name, readable))
        )


def test_the_primary_dies_and_nothing_acknowledged_is_lost(cluster: Cluster) -> None:
    """Publications that a replica has confirmed are all heard, once and in order."""
    old = primary(cluster)
    with cluster.load() as report:
        cluster.on(old, "systemctl kill -s KILL redis-server; systemctl stop redis-server")
        until(lambda: primary(cluster) != old, "another one is primary")
        until(cluster.answers, "the nodes have found it")
    assert report["errors"], "the primary was away at no moment"
    new = primary(cluster)
    assert info(cluster, new)["role"] == "master"
    cluster.on(old, "systemctl start redis-server")
    until(lambda: in_sync(cluster), f"{old} follows {new}", 60)


def test_site_leaves_the_new_primary_alone(cluster: Cluster) -> None:
    """After a failover the inventory's first host is not primary again, and nothing changes."""
    before = primary(cluster)
    assert before != SERVERS[0]
    assert cluster.changed(cluster.play("site.yml")) == []
    assert primary(cluster) == before


def test_a_changed_setting_restarts_the_primary_last(cluster: Cluster) -> None:
    """Every server is in sync before the next one is restarted, and all have the new setting."""
    cluster.play("site.yml", "-e", "redis_maxclients=5000", "--limit", "redis")
    started = {}
    for name in SERVERS:
        assert cluster.on(name, f"{ASK} CONFIG GET maxclients").split() == ["maxclients", "5000"]
        started[name] = int(cluster.on(name, "stat -c %Y /run/redis/redis-server.pid"))
    assert max(started, key=lambda name: started[name]) == primary(cluster)
    assert in_sync(cluster)


def test_a_backup_can_be_restored(cluster: Cluster, tmp_path: Path) -> None:
    """All servers have the data of the backup again; without a confirmation nothing is touched."""
    first = primary(cluster)
    cluster.on(first, f"{ASK} SET backup:test before")
    dump = tmp_path / "redis.rdb"
    cluster.play("playbooks/backup.yml", "-e", f"redis_backup={dump}")
    assert dump.stat().st_mode & 0o077 == 0
    cluster.on(first, f"{ASK} SET backup:test after")
    refused = cluster.playbook("playbooks/restore.yml", "-e", f"redis_backup={dump}")
    assert refused.returncode != 0
    assert "confirm=yes" in refused.stdout
    assert cluster.on(first, f"{ASK} GET backup:test") == "after"
    restore = ("playbooks/restore.yml", "-e", f"redis_backup={dump}", "-e", "confirm=yes")
    cluster.play(*restore)
    # As an interrupted restore leaves it: the data is moved away, and nothing is in its place.
    for name in SERVERS:
        cluster.on(name, "systemctl stop redis-sentinel")
    kept = "/var/lib/redis/before-restore"
    cluster.on(first, "systemctl stop redis-server")
    cluster.on(first, f"rm -r {kept}/* && mv /var/lib/redis/appendonlydir {kept}")
    cluster.play(*restore)
    cluster.on(first, f"ls {kept}/appendonlydir")
    assert primary(cluster) == first
    for name in SERVERS:
        assert cluster.on(name, f"{ASK} GET backup:test") == "before"


def test_the_password_is_changed_and_nobody_is_locked_out(cluster: Cluster) -> None:
    """Both passwords open while everybody gets the new one; then the old one opens nothing."""
    first = primary(cluster)
    old = cluster.on(first, "cat /etc/redis/wsfleet-admin")
    enters = f"REDISCLI_AUTH={old} {ANONYMOUS} --user admin PING 2>&1 || true"
    inventory = yaml.safe_load((cluster.inventory / "hosts.yml").read_text())
    before = inventory["all"]["vars"]["redis_password"]
    with cluster.load():
        old_too = json.dumps({"redis_previous_password": before})
        cluster.play("site.yml", *NEW_PASSWORD, "-e", old_too)
    assert all("PONG" in cluster.on(name, enters) for name in SERVERS)
    cluster.play("site.yml", *NEW_PASSWORD)
    assert all("WRONGPASS" in cluster.on(name, enters) for name in SERVERS)
    until(lambda: in_sync(cluster), "the replicas have the new password")
    until(cluster.answers, "the nodes have the new password")


def test_tls_is_taken_out_of_use_and_into_it(cluster: Cluster, tmp_path: Path) -> None:
    """All servers change together: the primary stays who it is, and has what it had."""
    first = primary(cluster)
    cluster.on(first, f"{ASK} SET tls:test kept")
    without = tmp_path / "without.yml"
    without.write_text("all: {vars: {fleet_tls: false}}\n")
    part = cluster.playbook("site.yml", f"-i{without}", *NEW_PASSWORD, "--limit", "redis1")
    assert part.returncode != 0
    assert "run site.yml without --limit" in part.stdout
    for arguments in ([f"-i{without}"], []):
        cluster.play("site.yml", *arguments, *NEW_PASSWORD)
        assert primary(cluster) == first
        assert in_sync(cluster)
        assert cluster.on(first, f"{ASK} GET tls:test") == "kept"
        until(cluster.answers, "the nodes have found it")
        for name in SERVERS:
            plain = cluster.host(name).run("redis-cli PING").stdout
            assert plain.partition(" ")[0] == ("NOAUTH" if arguments else "")
            assert cluster.host(name).file(f"{KEYS}/host.key").exists == (not arguments)
        for name in ("node1", "node2"):
            assert cluster.host(name).file("/etc/wsfleet/tls/host.key").exists == (not arguments)


def test_two_more_servers_join(cluster: Cluster, tmp_path: Path) -> None:
    """They follow the primary of the moment, and the quorum is a majority of five."""
    more = tmp_path / "more.yml"
    more.write_text("redis: {hosts: {redis4: {}, redis5: {}}}\n")
    before = primary(cluster)
    cluster.play("site.yml", f"-i{more}", *NEW_PASSWORD)
    assert primary(cluster) == before
    assert info(cluster, before)["connected_slaves"] == "4"
    for name in [*SERVERS, "redis4", "redis5"]:
        view = json.loads(cluster.on(name, f"{ASK_SENTINEL} --json SENTINEL MASTER wsfleet"))
        assert (view["quorum"], view["num-other-sentinels"]) == ("3", "4")
