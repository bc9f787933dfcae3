"""What can go wrong: each fault happens when its `with` begins, and is healed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from chaos.cluster import Cluster

#: Makes a fault at a host.
Make = Callable[[Cluster, str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    `target` is a group, for one of its hosts; or a role, `primary` or `active`: whoever has it
    when the time comes; or `all`. It is held for `shortest` to `longest` seconds. Where its group
    has fewer than `least` hosts it makes no sense.
    """

    make: Make
    target: str
    shortest: float = 1.0
    longest: float = 15.0
    least: int = 1


#: The group whose hosts may have a role.
ROLES = {"primary": "redis", "active": "loadbalancers", "all": "wsnodes"}


@contextmanager
def machine_killed(cluster: Cluster, host: str) -> Iterator[None]:
    """The power is cut, and comes back."""
    try:
        cluster.podman("kill", host)
        yield
    finally:
        cluster.podman("start", host)


@contextmanager
def machine_frozen(cluster: Cluster, host: str) -> Iterator[None]:
    """Nothing runs there any more, as when a hypervisor halts it; its connections stay open."""
    try:
        cluster.podman("pause", host)
        yield
    finally:
        cluster.podman("unpause", host)


def process_killed(unit: str) -> Make:
    """It dies by kill -9; systemd starts it again as soon as it does."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        cluster.shell(host, f"systemctl kill -s KILL '{unit}'")
        yield

    return make


def service_away(unit: str) -> Make:
    """It dies by kill -9, and systemd does not start it again until the fault is over."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        try:
            cluster.shell(host, f"systemctl kill -s KILL '{unit}'; systemctl stop '{unit}'")
            yield
        finally:
            cluster.shell(host, f"systemctl start '{unit}'")

    return make


def process_frozen(unit: str) -> Make:
    """It hangs, and goes on later as if no time had passed."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        try:
            cluster.shell(host, f"systemctl kill -s STOP '{unit}'")
            yield
        finally:
            cluster.shell(host, f"systemctl kill -s CONT '{unit}'")

    return make


def cut_off(group: str | None, *, hears: bool = False, speaks: bool = False) -> Make:
    """No packet passes between a host and those of a group (None: everybody), or one way only."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        if group is None:
            source, destination = 'iifname != "lo"', 'oifname != "lo"'
        else:
            peers = ", ".join(cluster.address(h) for h in cluster.groups[group] if h != host)
            source, destination = f"ip saddr {{ {peers} }}", f"ip daddr {{ {peers} }}"
        rules = []
        if not hears:
            rules.append(
                "chain input { type filter hook input priority -300; " + source + " drop; }"
            )
        if not speaks:
            rules.append(
                "chain output { type filter hook output priority -300; " + destination + " drop; }"
            )
        try:
            cluster.filter(host, "\n".join(rules))
            yield
        finally:
            cluster.unfilter(host)

    return make


@contextmanager
def drained(cluster: Cluster, host: str) -> Iterator[None]:
    """An operator sends a node's clients away, and brings it back later."""
    try:
        cluster.wsfleet("drain", host)
        yield
    finally:
        cluster.wsfleet("undrain", host)


@contextmanager
def scaled_in(cluster: Cluster, host: str) -> Iterator[None]:
    """An operator takes a node out of the cluster, and later puts it in again."""
    try:
        cluster.playbook("playbooks/scale_in.yml", f"-enode={host}")
        yield
    finally:
        cluster.playbook("site.yml", "--limit", f"{host},loadbalancers,redis")


@contextmanager
def updated(cluster: Cluster, _: str) -> Iterator[None]:
    """An operator rolls a release out: what is in use looks newer than what runs."""
    for host in cluster.groups["wsnodes"]:
        cluster.shell(host, "touch --no-dereference /opt/wsfleet/current")
    cluster.playbook("playbooks/rolling_update.yml")
    yield


@contextmanager
def reloaded(cluster: Cluster, host: str) -> Iterator[None]:
    """HAProxy starts a new worker; the old one keeps its connections."""
    cluster.shell(host, "systemctl reload haproxy")
    yield


@contextmanager
def disk_full(cluster: Cluster, host: str) -> Iterator[None]:
    """What Redis writes does not fit any more."""
    try:
        cluster.fill(host)
        yield
    finally:
        cluster.empty(host)


@contextmanager
def clock_stepped(cluster: Cluster, host: str) -> Iterator[None]:
    """A node dies and comes up an hour ahead, and then time goes back under it.

    Not so Redis: libfaketime and its allocator wait for each other.
    """
    try:
        cluster.clock(host, 3600)
        yield
    finally:
        cluster.right_clock(host)


NODE, REDIS, SENTINEL, HAPROXY = "wsnode@*", "redis-server", "redis-sentinel", "haproxy"

FAULTS: dict[str, Fault] = {
    "node_process_killed": Fault(process_killed(NODE), "wsnodes", 0.0, 3.0),
    # Beyond 20 s systemd's watchdog ends it.
    "node_process_frozen": Fault(process_frozen(NODE), "wsnodes", 1.0, 25.0),
    "node_machine_killed": Fault(machine_killed, "wsnodes"),
    "node_machine_frozen": Fault(machine_frozen, "wsnodes", 1.0, 25.0),
    "node_without_redis": Fault(cut_off("redis"), "wsnodes"),
    "node_deaf_to_redis": Fault(cut_off("redis", speaks=True), "wsnodes"),
    "node_mute_to_redis": Fault(cut_off("redis", hears=True), "wsnodes"),
    "node_without_balancers": Fault(cut_off("loadbalancers"), "wsnodes", 1.0, 25.0),
    "node_isolated": Fault(cut_off(None), "wsnodes", 1.0, 25.0),
    "node_clock_stepped": Fault(clock_stepped, "wsnodes", 5.0, 20.0),
    "node_drained": Fault(drained, "wsnodes", 1.0, 5.0, least=2),
    "node_scaled_in_and_out": Fault(scaled_in, "wsnodes", 1.0, 5.0, least=2),
    "nodes_updated": Fault(updated, "all", 0.0, 0.0, least=2),
    "primary_process_killed": Fault(process_killed(REDIS), "primary", 0.0, 3.0),
    "primary_machine_killed": Fault(machine_killed, "primary"),
    # Sentinel waits 5 s until the primary is down: both shorter and longer than that.
    "primary_process_frozen": Fault(process_frozen(REDIS), "primary"),
    "primary_machine_frozen": Fault(machine_frozen, "primary"),
    # Nodes still reach it and go on writing, while the others choose another primary.
    "primary_without_replicas": Fault(cut_off("redis"), "primary", least=3),
    "primary_deaf_to_replicas": Fault(cut_off("redis", speaks=True), "primary", least=3),
    "primary_isolated": Fault(cut_off(None), "primary", least=3),
    # Redis refuses, and answers not even PING: beyond 5 s Sentinel takes another primary.
    "primary_disk_full": Fault(disk_full, "primary", 1.0, 20.0),
    "redis_disk_full": Fault(disk_full, "redis", 1.0, 20.0, least=3),
    "redis_machine_killed": Fault(machine_killed, "redis", least=3),
    "sentinel_killed": Fault(service_away(SENTINEL), "redis", least=3),
    "balancer_process_killed": Fault(process_killed(HAPROXY), "active", 0.0, 3.0),
    "balancer_machine_killed": Fault(machine_killed, "active"),
    "balancer_machine_frozen": Fault(machine_frozen, "active", least=2),
    "balancer_reloaded": Fault(reloaded, "active", 0.0, 0.0),
}
