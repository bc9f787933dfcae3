"""Two balancers with one address: HAProxy stops, a machine dies, keepalived dies, clients go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from lab.waiting import until

if TYPE_CHECKING:
    from molecule.conftest import Cluster

BALANCERS = ["lb1", "lb2"]


def has_address(cluster: Cluster, name: str) -> bool:
    """Whether a balancer has the address now."""
    show = f"ip -brief address show to {cluster.url.removeprefix('http://')}"
    return cluster.on(name, show) != ""


def holders(cluster: Cluster) -> list[str]:
    """The balancers that have the address now."""
    return [name for name in BALANCERS if has_address(cluster, name)]


def serves(cluster: Cluster, name: str) -> bool:
    """Whether this balancer alone has the address, and a client is answered."""
    return holders(cluster) == [name] and cluster.answers()


def runs_keepalived(cluster: Cluster, name: str) -> bool:
    """Return whether keepalived runs already on a machine that starts."""
    try:
        return cluster.host(name).run("systemctl is-active keepalived").rc == 0
    except RuntimeError:  # ssh does not answer yet
        return False


@pytest.fixture
def active(cluster: Cluster) -> Iterator[str]:
    """The balancer that has the address; afterwards both are well again, and one has it."""

    def one() -> bool:
        return len(holders(cluster)) == 1 and cluster.answers()

    until(one, "one balancer has the address and answers")
    yield holders(cluster)[0]
    for name in BALANCERS:
        cluster.on(name, "systemctl start haproxy keepalived")
    until(one, "one balancer has the address afterwards")


def other(name: str) -> str:
    """The other balancer."""
    (result,) = set(BALANCERS) - {name}
    return result


def test_each_network_has_its_own(cluster: Cluster, active: str) -> None:
    """The address is in the clients' network, VRRP and the statistics in the machines' own."""
    for name in BALANCERS:
        machine = cluster.host(name)
        public = machine.check_output("ip -json -4 address show eth1")
        assert (machine.check_output("ip -json -4 address show eth0")).count('"local"') == 1
        addresses = [found["local"] for found in json.loads(public)[0]["addr_info"]]
        assert (cluster.url.removeprefix("http://") in addresses) == (name == active)
        assert httpx.get(f"http://{addresses[0]}/balancer").status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{addresses[0]}:8404/stats", timeout=1)
        configured = machine.check_output("cat /etc/keepalived/keepalived.conf")
        assert "interface eth0" in configured
        assert "dev eth1" in configured


def test_two_masters_are_seen(cluster: Cluster, active: str) -> None:
    """Balancers that do not hear each other have the address both, and `wsfleet status` says so."""
    rules = (
        "nft add table ip deaf; nft add chain ip deaf in '{ type filter hook input priority -1; }'"
    )
    cluster.on(other(active), f"{rules} && nft add rule ip deaf in ip protocol 112 drop")
    try:
        until(lambda: holders(cluster) == BALANCERS, "both have the address")

        def said() -> bool:
            code, output = cluster.run("status", "--json")
            return code == 1 and "lb1 and lb2 have the virtual address" in output

        until(said, "status says so")
    finally:
        cluster.on(other(active), "nft delete table ip deaf")
    until(lambda: len(holders(cluster)) == 1, "one gives it back")
    cluster.well()


def test_the_check_is_not_roots(cluster: Cluster, active: str) -> None:
    """HAProxy is asked by a user that may do nothing else."""
    for name in BALANCERS:
        machine = cluster.host(name)
        assert machine.service("keepalived").is_enabled
        assert machine.user("keepalived_script").shell == "/usr/sbin/nologin"
        # Scripts that root would run for others are refused, with these words.
        log = machine.check_output("journalctl -u keepalived -o cat")
        assert "SECURITY VIOLATION" not in log
        assert "succeeded" in log, log


@pytest.mark.parametrize("name", BALANCERS)
def test_a_wrong_configuration_is_refused(cluster: Cluster, name: str) -> None:
    """The check that guards each write takes the real file and refuses one with a mistake."""
    machine = cluster.host(name)
    check = "env --ignore-signal=TERM keepalived --config-test -f"
    assert machine.run(f"{check} /etc/keepalived/keepalived.conf").rc == 0
    machine.check_output("sed s/nopreempt/nopreemt/ /etc/keepalived/keepalived.conf > /tmp/wrong")
    refused = machine.run(f"{check} /tmp/wrong")
    assert refused.rc != 0
    assert "nopreemt" in refused.stderr


def test_a_reload_leaves_the_address(cluster: Cluster, active: str) -> None:
    """A new configuration does not move the address, which would end all WebSockets."""
    for name in BALANCERS:
        cluster.on(name, "systemctl reload keepalived && sleep 3")
    assert holders(cluster) == [active]


@pytest.mark.parametrize(
    "fault",
    [
        "systemctl stop haproxy",
        "systemctl stop keepalived",
        "systemctl kill -s KILL keepalived",  # it leaves the address behind
    ],
)
def test_a_service_fails(cluster: Cluster, active: str, fault: str) -> None:
    """The other balancer alone has the address, answers, and keeps it when the first is back."""
    cluster.on(active, fault)
    until(lambda: serves(cluster, other(active)), f"after '{fault}' the other serves")
    cluster.on(active, "systemctl start haproxy keepalived && sleep 5")
    assert holders(cluster) == [other(active)]


def test_a_machine_dies(cluster: Cluster, active: str) -> None:
    """The other balancer serves; the dead one comes back without the address."""
    alive = other(active)
    cluster.podman("kill", active)
    try:
        until(lambda: has_address(cluster, alive) and cluster.answers(), "it serves")
    finally:
        cluster.podman("start", active)
    until(lambda: runs_keepalived(cluster, active), "it is back")
    assert holders(cluster) == [alive]


def test_nothing_acknowledged_is_lost_when_the_address_moves(cluster: Cluster, active: str) -> None:
    """Unmodified SDKs publish and subscribe while the address moves there and back."""
    with cluster.load() as report:
        for name in (active, other(active)):
            cluster.on(name, "systemctl stop haproxy")
            until(lambda: serves(cluster, other(name)), "the other serves")  # noqa: B023
            cluster.on(name, "systemctl start haproxy")
            cluster.well()
    assert report["reconnects"] >= 2 * 56
