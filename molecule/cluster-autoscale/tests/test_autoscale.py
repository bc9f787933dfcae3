"""The warm pool comes in and goes by itself: the tests follow each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

BALANCERS = ["lb1", "lb2"]
NODES = ["node1", "node2", "node3"]
SERVICE = "wsfleet-autoscale"
#: Seconds for the autoscaler to see, to decide and to be obeyed.
PATIENCE = 60


def leaders(cluster: Cluster) -> list[str]:
    """The balancers whose autoscaler says that it decides, and that it sees Redis."""
    found = []
    for name, url in cluster.fleet["loadbalancers"].items():
        metrics = url.rpartition(":")[0] + ":8405/metrics"
        try:
            lines = httpx.get(metrics).text.splitlines()
        except httpx.TransportError:  # it is not up yet, or not any more
            continue
        if {"wsfleet_autoscale_leader 1.0", "wsfleet_autoscale_redis_connected 1.0"} <= {*lines}:
            found.append(name)
    return found


def serving(cluster: Cluster) -> list[str]:
    """The hosts that take clients."""
    urls = cluster.fleet["nodes"]
    return [
        host
        for host in NODES
        if httpx.get(f"{urls[f'{host}-8001']}/ready").status_code == httpx.codes.OK
    ]


def decisions(cluster: Cluster, balancer: str) -> list[dict[str, Any]]:
    """Return the decisions so far, from one of the balancers."""
    log: list[dict[str, Any]] = json.loads(
        cluster.on(balancer, "wsfleet autoscale --log --count 1000 --json")
    )["decisions"]
    return log


def test_it_runs_on_every_balancer(cluster: Cluster) -> None:
    """Without privileges, also after a reboot; one of them decides."""
    for host in BALANCERS:
        cluster.on(host, f"systemctl is-active {SERVICE} && systemctl is-enabled {SERVICE}")
        pid = cluster.on(host, f"systemctl show -p MainPID --value {SERVICE}")
        assert "CapEff:\t0000000000000000" in cluster.on(host, f"cat /proc/{pid}/status")
        assert cluster.on(host, f"ps -o user= -p {pid}") == "wsfleet"
    until(lambda: len(leaders(cluster)) == 1, "one leads", PATIENCE)


def test_the_pool_comes_in_under_load_and_goes_after_it(cluster: Cluster) -> None:
    """The log says why, on every balancer; nothing is lost on the way."""
    assert serving(cluster) == ["node1", "node2"]
    load = cluster.wsfleet("load", cluster.url, "--clients", "40", "--duration", "20", "--json")
    with load:
        until(lambda: serving(cluster) == NODES, "the standby serves", PATIENCE)
        output, _ = load.communicate(timeout=120)
    assert json.loads(output)["ok"] is True
    until(lambda: len(serving(cluster)) == 2, "one host goes when the load is gone", PATIENCE)
    for balancer in BALANCERS:
        coming, going = decisions(cluster, balancer)
        assert (coming["action"], coming["hosts"]) == ("scale_out", ["node3"])
        assert coming["reason"].endswith("connections a node are above 10")
        assert (going["action"], len(going["hosts"])) == ("scale_in", 1)


def test_another_one_takes_over(cluster: Cluster) -> None:
    """The leader's service is stopped: the other balancer's decides."""
    until(lambda: len(leaders(cluster)) == 1, "one leads", PATIENCE)
    (leader,) = leaders(cluster)
    (other,) = {*BALANCERS} - {leader}
    cluster.on(leader, f"systemctl stop {SERVICE}")
    until(lambda: leaders(cluster) == [other], "the other one leads", PATIENCE)
    cluster.on(leader, f"systemctl start {SERVICE}")


def test_a_missing_host_is_replaced_after_a_failover_of_redis(cluster: Cluster) -> None:
    """The Sentinels name another primary: one leads there, and what it decides is obeyed."""
    ask = "redis-cli-auth -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME wsfleet"
    old = cluster.on("node1", ask)
    known = len(decisions(cluster, "lb1"))
    # Read before the failover: a node is not ready for a moment when it has seen it.
    hosts = serving(cluster)
    gone = hosts[0]
    (standby,) = {*NODES} - {*hosts}
    cluster.on("node1", "redis-cli-auth -p 26379 SENTINEL FAILOVER wsfleet")
    until(lambda: cluster.on("node1", ask) != old, "another primary", PATIENCE)
    until(lambda: len(leaders(cluster)) == 1, "one leads", PATIENCE)
    until(lambda: serving(cluster) == hosts, "the nodes have followed", PATIENCE)

    cluster.on(gone, "systemctl stop wsnode@8001")
    url = cluster.fleet["nodes"][f"{standby}-8001"]
    until(
        lambda: httpx.get(f"{url}/ready").status_code == httpx.codes.OK, "it is replaced", PATIENCE
    )
    (decision,) = decisions(cluster, "lb2")[known:]
    assert (decision["action"], decision["hosts"]) == ("scale_out", [standby])
    assert decision["reason"] == "1 hosts serve, at least 2 should"
    cluster.on(gone, "systemctl start wsnode@8001")


def test_contradictions_do_not_get_in(cluster: Cluster) -> None:
    """The play fails with the two settings, and what runs stays as it was."""
    settings = cluster.on("lb1", "cat /etc/wsfleet/autoscale.env")
    result = cluster.playbook("site.yml", "-eautoscale_min=11", "--limit=loadbalancers")
    assert result.returncode != 0
    assert "min (11) is more than max (10)" in result.stdout
    assert cluster.on("lb1", "cat /etc/wsfleet/autoscale.env") == settings


def test_where_it_is_not_wanted_it_does_not_run(cluster: Cluster) -> None:
    """Switched off in the inventory it is stopped, and starts no more."""
    cluster.play("site.yml", "-eautoscale_enabled=false", "--limit=loadbalancers")
    for host in BALANCERS:
        cluster.on(host, f"! systemctl is-active {SERVICE} && ! systemctl is-enabled {SERVICE}")
