"""The warm pool of a small cluster comes in by itself: the tests follow each other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from molecule.conftest import Cluster

HOSTS = ["trixie", "bookworm"]
SERVICE = "wsfleet-autoscale"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds, or fail after a while."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.25)


def leaders(cluster: Cluster) -> list[str]:
    """The hosts whose autoscaler says that it decides."""
    found = []
    for name, url in cluster.fleet["nodes"].items():
        metrics = url.rpartition(":")[0] + ":8405/metrics"
        try:
            text = httpx.get(metrics).text
        except httpx.TransportError:  # it is not up yet, or not any more
            continue
        if "wsfleet_autoscale_leader 1.0" in text.splitlines():
            found.append(name.rpartition("-")[0])
    return found


def ready(cluster: Cluster, host: str) -> bool:
    """Whether a host takes clients."""
    return httpx.get(f"{cluster.fleet['nodes'][f'{host}-8001']}/ready").status_code == 200


def test_it_starts_with_the_node(cluster: Cluster) -> None:
    """Each host runs one, without privileges, also after a reboot."""
    for host in HOSTS:
        cluster.on(host, f"systemctl is-active {SERVICE} && systemctl is-enabled {SERVICE}")
        pid = cluster.on(host, f"systemctl show -p MainPID --value {SERVICE}")
        assert "CapEff:\t0000000000000000" in cluster.on(host, f"cat /proc/{pid}/status")
        assert cluster.on(host, f"ps -o user= -p {pid}") == "wsfleet"


def test_the_standby_host_comes_in_under_load(cluster: Cluster) -> None:
    """The log says why, on every host."""
    assert not ready(cluster, "bookworm")
    load = cluster.wsfleet("load", cluster.url, "--clients", "40", "--duration", "20", "--json")
    with load:
        until(lambda: ready(cluster, "bookworm"), "the standby serves")
        output, _ = load.communicate(timeout=120)
    assert json.loads(output)["ok"] is True
    log = json.loads(cluster.on("bookworm", "wsfleet autoscale --log --json"))
    (decision,) = [each for each in log["decisions"] if each["hosts"] == ["bookworm"]]
    assert decision["action"] == "scale_out"
    assert decision["reason"].endswith("connections a node are above 10")


def test_it_is_restarted_with_the_node(cluster: Cluster) -> None:
    """A roll restarts the node's process, and the autoscaler takes the new release as well."""
    command = f"systemctl show -p MainPID --value {SERVICE}"
    before = cluster.on("trixie", command)
    cluster.on("trixie", "systemctl restart wsnode@8001")
    assert cluster.on("trixie", command) not in (before, "0")


def test_one_leads_and_another_takes_over(cluster: Cluster) -> None:
    """The leader is stopped: the other host's decides."""
    until(lambda: len(leaders(cluster)) == 1, "one leads")
    (leader,) = leaders(cluster)
    (other,) = set(HOSTS) - {leader}
    cluster.on(leader, f"systemctl stop {SERVICE}")
    until(lambda: leaders(cluster) == [other], "the other one leads")
    cluster.on(leader, f"systemctl start {SERVICE}")


def test_contradictions_do_not_get_in(cluster: Cluster) -> None:
    """The play fails with the two settings, and what runs stays as it was."""
    settings = cluster.on("trixie", "cat /etc/wsfleet/autoscale.env")
    result = cluster.playbook("site.yml", "-e", "autoscale_min=3")
    assert result.returncode != 0
    assert "min (3) is more than max (2)" in result.stdout
    assert cluster.on("trixie", "cat /etc/wsfleet/autoscale.env") == settings


def test_where_it_is_not_wanted_it_does_not_run(cluster: Cluster) -> None:
    """Switched off in the inventory it is stopped, and starts no more."""
    cluster.play("site.yml", "-e", "autoscale_enabled=false")
    for host in HOSTS:
        cluster.on(host, f"! systemctl is-active {SERVICE} && ! systemctl is-enabled {SERVICE}")
