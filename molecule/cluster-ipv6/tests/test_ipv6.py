"""A cluster whose addresses are all IPv6: everybody finds everybody, and clients the cluster."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster


def test_all_is_well(cluster: Cluster) -> None:
    """Balancers, nodes, Redis and the command line know each other by addresses in brackets."""
    cluster.well()
    assert cluster.url.startswith("http://[")
    assert cluster.answers()
    code, output = cluster.run("status", "--json")
    assert code == 0, output
    status = json.loads(output)
    assert status["redis"]["replicas"] == 2
    assert sorted(lb["virtual_address"] for lb in status["loadbalancers"]) == [False, True]


def test_clients_keep_their_node(cluster: Cluster) -> None:
    """WebSockets and the sticky cookie work by IPv6."""
    code, output = cluster.run("check", "stickiness", cluster.url)
    assert code == 0, output


def test_clients_of_both_families_come_in(cluster: Cluster) -> None:
    """A balancer listens on IPv4 as well, with a socket of its own for each family."""
    listening = cluster.on("lb1", "ss -Hltn 'sport = :80'")
    assert "0.0.0.0:80" in listening
    assert "[::]:80" in listening


def test_prometheus_reaches_everybody(cluster: Cluster) -> None:
    """Each target answers, and Alertmanager is known."""

    def answered() -> bool:
        targets = cluster.prometheus("node1", "targets")["activeTargets"]
        return bool(targets) and all(target["health"] == "up" for target in targets)

    until(answered, "every target answers", 90)
    assert cluster.prometheus("node1", "alertmanagers")["activeAlertmanagers"]


def test_private_ports_are_for_the_cluster_alone(cluster: Cluster) -> None:
    """Redis listens on the address of the cluster, and the firewall knows IPv6."""
    rules = cluster.on("node1", "nft list chain inet wsfleet input")
    one_rule_a_line = re.sub(r",\s+", ", ", rules)  # nft breaks the lines of long sets
    redis = [
        line for line in one_rule_a_line.splitlines() if "ip6 saddr" in line and "6379" in line
    ]
    assert all(any(cluster.address(host) in rule for rule in redis) for host in ("lb1", "lb2"))
    assert f"[{cluster.address('node1')}]:6379" in cluster.on("node1", "ss -Hltn")


@pytest.mark.parametrize(
    "command",
    ["redis-cli-auth -p 26379 SENTINEL FAILOVER wsfleet", "systemctl kill -s KILL redis-server"],
    ids=["by hand", "because it crashed"],
)
def test_the_primary_is_replaced(cluster: Cluster, command: str) -> None:
    """Sentinels agree by IPv6, the nodes find the new primary, and one that crashed gives way."""
    ask = "redis-cli-auth -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME wsfleet"
    before = cluster.on("lb1", ask)
    hosts = {cluster.address(name): name for name in ("lb1", "lb2", "node1")}
    cluster.on(hosts[before.split()[0]], command)

    def moved() -> bool:
        return cluster.on("lb1", ask) != before and cluster.answers()

    until(moved, "another one is the primary")
    cluster.well()


def test_the_journals_come_together(cluster: Cluster) -> None:
    """Each machine finds the collector."""
    cluster.on("lb1", "logger by IPv6")

    def collected() -> bool:
        look = "journalctl --directory=/var/log/journal/remote --grep 'by IPv6' -o cat || true"
        return "by IPv6" in cluster.on("node1", look)

    until(collected, "the entry is at the collector", 60)


def test_the_statistics_are_private(cluster: Cluster) -> None:
    """The page is at the balancer's own address, in brackets."""
    assert httpx.get(f"http://[{cluster.address('lb1')}]:8404/stats").status_code == 200
