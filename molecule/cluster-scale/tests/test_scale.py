"""A cluster that grows, is updated and shrinks under load: the tests follow each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import redis
import wsfleet
import yaml
from wsfleet.clients.centrifuge import client
from wsfleet.server import server

from lab.waiting import until

if TYPE_CHECKING:
    from types import ModuleType

    from molecule.conftest import Cluster

PACKAGE = Path(wsfleet.__file__).parent
NODES = ["node1", "node2", "node3"]


@pytest.fixture(scope="module")
def with_node3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the operator's addition to the inventory, as an argument."""
    extra = tmp_path_factory.mktemp("inventory") / "extra.yml"
    extra.write_text(yaml.safe_dump({"wsnodes": {"hosts": {"node3": None}}}))
    return f"-i{extra}"


def opened(cluster: Cluster, name: str) -> int:
    """WebSockets that a node has accepted so far."""
    text = httpx.get(f"{cluster.fleet['nodes'][name]}/metrics", verify=cluster.trusted).text
    found = re.search(r"^wsfleet_connections_opened_total (\S+)$", text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def make_release(cluster: Cluster, name: str, module: ModuleType, line: str) -> None:
    """Put another release on all nodes: that of today with a line appended to a module."""
    assert module.__file__
    path = Path(module.__file__).relative_to(PACKAGE)
    files = f"{name}/venv/lib/python3*/site-packages/wsfleet/{path}"
    for host in NODES:
        cluster.on(
            host,
            "cd /opt/wsfleet/releases && old=$(basename $(readlink ../current)) && "
            f"cp -a $old {name} && sed -i 1s#/$old/#/{name}/# {name}/venv/bin/wsfleet && "
            f"echo '{line}' | tee -a {files}",
        )


def release_of(cluster: Cluster, host: str) -> str:
    """The release that a host has in use."""
    return cluster.on(host, "basename $(readlink /opt/wsfleet/current)")


def test_a_node_is_added_and_nobody_is_dropped(cluster: Cluster, with_node3: str) -> None:
    """A host in the inventory and scale_out.yml: every open connection stays, without a reload."""
    workers = cluster.on("lb1", "pgrep -u haproxy haproxy")
    with cluster.load() as report:
        output = cluster.play("playbooks/scale_out.yml", with_node3, "-enode=node3")
    print(output[output.index("PLAY RECAP") :])  # the number of tasks on each host
    assert report["reconnects"] == 0
    assert cluster.on("lb1", "pgrep -u haproxy haproxy") == workers
    cluster.well()
    assert set(cluster.fleet["nodes"]) == {f"{host}-8001" for host in NODES}
    with cluster.wsfleet(
        "load", cluster.url, "--clients", "60", "--duration", "3", "--json"
    ) as new:
        output, _ = new.communicate(timeout=60)
    assert set(json.loads(output)["nodes"]) == set(cluster.fleet["nodes"])


@pytest.mark.parametrize("arguments", [[], ["-enode=node9"], ["-enode=lb1"]])
def test_the_host_to_be_added_must_be_named(cluster: Cluster, arguments: list[str]) -> None:
    """Nothing is touched, and the hosts that may be named are listed."""
    result = cluster.playbook("playbooks/scale_out.yml", *arguments)
    assert result.returncode != 0
    assert "-e node=NAME" in result.stdout
    assert cluster.changed(result.stdout) == []


def test_after_that_site_changes_nothing(cluster: Cluster, with_node3: str) -> None:
    """The host has all that site.yml does, and the other hosts know of it."""
    assert cluster.changed(cluster.play("site.yml", with_node3)) == []


def test_an_update_loses_nothing(cluster: Cluster, with_node3: str) -> None:
    """Node by node drains and comes back with the new release; clients recover what they missed."""
    make_release(cluster, "good", server, "# another release")
    with cluster.load() as report:
        output = cluster.play("playbooks/rolling_update.yml", with_node3, "-ewsnode_release=good")
        assert cluster.output("rebalance", "--dry-run").startswith("even: ")
    assert report["reconnects"] > 0
    said = " ".join(output.split())
    assert "Hosts restart one at a time: node1, node2, node3." in said
    assert "a client moves at most twice" in said
    assert "at most 2 times each were planned" in said
    assert "raise wsnode_restart_pause" not in said
    assert [release_of(cluster, host) for host in NODES] == ["good"] * 3
    cluster.well()


@pytest.mark.parametrize(
    ("name", "defect", "playbook"),
    [
        ("dead", (server, "raise SystemExit(1)"), ["rollback.yml", "-ewsnode_rollback_to=dead"]),
        (
            "mute",
            (client, "async def mute(*_): pass\nCentrifugeClient.receive = mute"),
            ["rolling_update.yml", "-ewsnode_release=mute"],
        ),
    ],
)
def test_a_bad_release_stops_at_the_first_node(
    cluster: Cluster,
    with_node3: str,
    name: str,
    defect: tuple[ModuleType, str],
    playbook: list[str],
) -> None:
    """One that does not start, or starts and does not answer, is put back; the others run on."""
    make_release(cluster, name, *defect)
    show = "systemctl show -p MainPID --value wsnode@8001"
    before = [cluster.on(host, show) for host in NODES]
    previous = cluster.on("node1", "readlink /opt/wsfleet/previous")
    result = cluster.playbook(f"playbooks/{playbook[0]}", with_node3, *playbook[1:])
    assert result.returncode != 0
    assert f"node1 does not work with releases/{name} and is back at releases/good" in " ".join(
        result.stdout.split()
    )
    assert [release_of(cluster, host) for host in NODES] == ["good"] * 3
    assert cluster.on("node1", "readlink /opt/wsfleet/previous") == previous
    after = [cluster.on(host, show) for host in NODES]
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    cluster.well()


@pytest.mark.parametrize("arguments", [[], ["-enode=node9"], ["-enode=lb1"]])
def test_the_host_to_be_taken_out_must_be_named(cluster: Cluster, arguments: list[str]) -> None:
    """Nothing is touched, and the hosts that may be named are listed."""
    result = cluster.playbook("playbooks/scale_in.yml", *arguments)
    assert result.returncode != 0
    assert "-e node=NAME" in result.stdout
    assert cluster.changed(result.stdout) == []


def test_with_a_host_in_standby_each_client_moves_once(cluster: Cluster, with_node3: str) -> None:
    """It serves before the first client moves, and the last host is in standby afterwards."""
    cluster.output("drain", "node1", "--standby")
    make_release(cluster, "better", server, "# a better release")
    with cluster.load() as report:
        output = cluster.play("playbooks/rolling_update.yml", with_node3, "-ewsnode_release=better")
    said = " ".join(output.split())
    assert "Hosts restart one at a time: node1, node2, node3." in said
    assert "First node1 of the warm pool serves; afterwards node3 is in the pool" in said
    assert "at most 1 times each were planned" in said
    assert "raise wsnode_restart_pause" not in said
    assert report["reconnects"] > 0
    assert [release_of(cluster, host) for host in NODES] == ["better"] * 3
    assert cluster.connections()["node3-8001"] == 0
    cluster.output("undrain", "node3")
    # The balancer gets the command of this release, so that the last site.yml has nothing to do.
    cluster.play("site.yml", with_node3, "-ewsnode_release=better")
    cluster.well()


def test_a_node_is_taken_out(cluster: Cluster, with_node3: str) -> None:
    """Its clients move, each once, and nobody else; then nothing knows of it."""
    with cluster.load() as report:
        moving = cluster.connections()["node3-8001"]
        before = sum(opened(cluster, f"{host}-8001") for host in ("node1", "node2"))
        cluster.play("playbooks/scale_in.yml", with_node3, "-enode=node3")
        after = sum(opened(cluster, f"{host}-8001") for host in ("node1", "node2"))
        assert moving > 0
        assert after == before + moving
    assert 0 < report["reconnects"] <= moving
    assert cluster.on("node3", "systemctl list-units --all --no-legend 'wsnode@*'") == ""
    assert "node3" not in cluster.on("lb1", "cat /etc/haproxy/haproxy.cfg")
    assert "node3-8001" not in cluster.fleet["nodes"]
    with redis.Redis.from_url(cluster.fleet["redis_url"], decode_responses=True) as store:
        assert sorted(store.zrange("wsfleet:nodes", 0, -1)) == ["node1-8001", "node2-8001"]
        assert not list(store.scan_iter("wsfleet:node:node3*"))
        assert "node3-8001" not in store.hkeys("wsfleet:desired")
    cluster.well()
    # As after an interruption at the last step.
    cluster.play("playbooks/scale_in.yml", with_node3, "-enode=node3")


def test_without_it_in_the_inventory_nothing_is_left_to_do(cluster: Cluster) -> None:
    """The next site.yml changes nothing."""
    assert cluster.changed(cluster.play("site.yml", "-ewsnode_release=better")) == []


def test_a_dead_node_is_taken_out(cluster: Cluster) -> None:
    """Its machine does not answer any more: what is left to do elsewhere is done."""
    cluster.on("node2", "systemd-run --on-active=1 systemctl poweroff --force")
    url = cluster.fleet["nodes"]["node2-8001"]

    def dead() -> bool:
        try:
            httpx.get(f"{url}/health", verify=cluster.trusted)
        except httpx.TransportError:
            return True
        return False

    until(dead, "the machine is off")
    cluster.play("playbooks/scale_in.yml", "-enode=node2")
    assert set(cluster.fleet["nodes"]) == {"node1-8001"}
    with redis.Redis.from_url(cluster.fleet["redis_url"], decode_responses=True) as store:
        assert store.zrange("wsfleet:nodes", 0, -1) == ["node1-8001"]
        assert "node2-8001" not in store.hkeys("wsfleet:desired")
    cluster.well()
