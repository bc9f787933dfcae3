"""The faults: each is injected at the start of its `with` block and healed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from chaos.cluster import Cluster

#: A function that injects a fault at a host.
Make = Callable[[Cluster, str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    `target` is a group, of which one host is chosen; or `primary` or `active`, for the host that
    has this role when the fault begins; or `all`. The fault lasts `shortest` to `longest` seconds.
    It needs at least `least` hosts in its group.
    """

    make: Make
    target: str
    shortest: float = 1.0
    longest: float = 15.0
    least: int = 1


#: The group of the hosts that can have each role.
ROLES = {"primary": "redis", "active": "loadbalancers", "all": "wsnodes"}


@contextmanager
def nothing(_: Cluster, __: str) -> Iterator[None]:
    """Inject nothing."""
    yield


@contextmanager
def machine_killed(cluster: Cluster, host: str) -> Iterator[None]:
    """Cut the power of a machine, and switch it on again."""
    try:
        cluster.podman("kill", host)
        yield
    finally:
        cluster.podman("start", host)


@contextmanager
def machine_frozen(cluster: Cluster, host: str) -> Iterator[None]:
    """Freeze a machine, as a hypervisor does; its connections stay open."""
    try:
        cluster.podman("pause", host)
        yield
    finally:
        cluster.podman("unpause", host)


def process_killed(unit: str) -> Make:
    """Kill a unit with SIGKILL; systemd restarts it."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        cluster.shell(host, f"systemctl kill -s KILL '{unit}'")
        yield

    return make


@contextmanager
def replaced(cluster: Cluster, host: str) -> Iterator[None]:
    """Let the Sentinels promote a replica while the primary still answers."""
    # They refuse while an earlier failover is not over.
    failover = "redis-cli-auth -p 26379 SENTINEL FAILOVER wsfleet"
    cluster.shell(host, f"until {failover} | grep --quiet OK; do sleep 1; done")
    yield


def service_stopped(unit: str) -> Make:
    """Kill a unit with SIGKILL, and keep it stopped until the fault ends."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        try:
            cluster.shell(host, f"systemctl kill -s KILL '{unit}'; systemctl stop '{unit}'")
            yield
        finally:
            cluster.shell(host, f"systemctl start '{unit}'")

    return make


def process_frozen(unit: str) -> Make:
    """Freeze a unit's processes with SIGSTOP, and continue them later."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        try:
            cluster.shell(host, f"systemctl kill -s STOP '{unit}'")
            yield
        finally:
            cluster.shell(host, f"systemctl kill -s CONT '{unit}'")

    return make


def cut_off(group: str | None, *, inbound: bool = False, outbound: bool = False) -> Make:
    """Drop all packets between a host and a group (None: all hosts), except the given direction."""

    @contextmanager
    def make(cluster: Cluster, host: str) -> Iterator[None]:
        if group is None:
            source, destination = 'iifname != "lo"', 'oifname != "lo"'
        else:
            peers = ", ".join(cluster.address(h) for h in cluster.groups[group] if h != host)
            source, destination = f"ip saddr {{ {peers} }}", f"ip daddr {{ {peers} }}"
        rules = []
        if not inbound:
            rules.append(
                "chain input { type filter hook input priority -300; " + source + " drop; }"
            )
        if not outbound:
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
    """Drain a node, and undrain it."""
    try:
        cluster.wsfleet("drain", host)
        yield
    finally:
        cluster.wsfleet("undrain", host)


@contextmanager
def scaled_in(cluster: Cluster, host: str) -> Iterator[None]:
    """Remove a node from the cluster, and add it again."""
    try:
        cluster.playbook("playbooks/scale_in.yml", f"-enode={host}")
        yield
    finally:
        cluster.playbook("site.yml", "--limit", f"{host},loadbalancers,redis")


@contextmanager
def updated(cluster: Cluster, _: str) -> Iterator[None]:
    """Run a rolling update, after making the installed release look newer than the running one."""
    for host in cluster.groups["wsnodes"]:
        cluster.shell(host, "touch --no-dereference /opt/wsfleet/current")
    cluster.playbook("playbooks/rolling_update.yml")
    yield


@contextmanager
def reloaded(cluster: Cluster, host: str) -> Iterator[None]:
    """Reload HAProxy: a new worker starts, the old one keeps its connections."""
    cluster.shell(host, "systemctl reload haproxy")
    yield


@contextmanager
def disk_full(cluster: Cluster, host: str) -> Iterator[None]:
    """Fill the disk of Redis."""
    try:
        cluster.fill_disk(host)
        yield
    finally:
        cluster.free_disk(host)


@contextmanager
def clock_stepped(cluster: Cluster, host: str) -> Iterator[None]:
    """Restart a node with a clock an hour ahead, then step the clock back while it runs.

    There is no such fault for Redis: libfaketime and its allocator deadlock.
    """
    try:
        cluster.step_clock(host, 3600)
        yield
    finally:
        cluster.restore_clock(host)


NODE, REDIS, SENTINEL, HAPROXY = "wsnode@*", "redis-server", "redis-sentinel", "haproxy"

#: The control, with which every run begins: what clients see without a fault.
CONTROL = "no_fault"

FAULTS: dict[str, Fault] = {
    CONTROL: Fault(nothing, "all", 20.0, 20.0),
    "node_process_killed": Fault(process_killed(NODE), "wsnodes", 0.0, 3.0),
    # After 20 s systemd's watchdog kills it.
    "node_process_frozen": Fault(process_frozen(NODE), "wsnodes", 1.0, 25.0),
    "node_machine_killed": Fault(machine_killed, "wsnodes"),
    "node_machine_frozen": Fault(machine_frozen, "wsnodes", 1.0, 25.0),
    "node_without_redis": Fault(cut_off("redis"), "wsnodes"),
    "node_deaf_to_redis": Fault(cut_off("redis", outbound=True), "wsnodes"),
    "node_mute_to_redis": Fault(cut_off("redis", inbound=True), "wsnodes"),
    "node_without_balancers": Fault(cut_off("loadbalancers"), "wsnodes", 1.0, 25.0),
    "node_isolated": Fault(cut_off(None), "wsnodes", 1.0, 25.0),
    "node_clock_stepped": Fault(clock_stepped, "wsnodes", 5.0, 20.0),
    "node_drained": Fault(drained, "wsnodes", 1.0, 5.0, least=2),
    "node_scaled_in_and_out": Fault(scaled_in, "wsnodes", 1.0, 5.0, least=2),
    "nodes_updated": Fault(updated, "all", 0.0, 0.0, least=2),
    "primary_process_killed": Fault(process_killed(REDIS), "primary", 0.0, 3.0),
    "primary_machine_killed": Fault(machine_killed, "primary"),
    # Sentinel takes the primary for down after 5 s: both shorter and longer than that.
    "primary_process_frozen": Fault(process_frozen(REDIS), "primary"),
    "primary_machine_frozen": Fault(machine_frozen, "primary"),
    "primary_replaced": Fault(replaced, "primary", 0.0, 3.0, least=3),
    # Nodes still reach it and continue to write, while the Sentinels promote a replica.
    "primary_without_replicas": Fault(cut_off("redis"), "primary", least=3),
    "primary_deaf_to_replicas": Fault(cut_off("redis", outbound=True), "primary", least=3),
    "primary_isolated": Fault(cut_off(None), "primary", least=3),
    # Redis refuses even PING: after 5 s Sentinel promotes a replica.
    "primary_disk_full": Fault(disk_full, "primary", 1.0, 20.0),
    "redis_disk_full": Fault(disk_full, "redis", 1.0, 20.0, least=3),
    "redis_machine_killed": Fault(machine_killed, "redis", least=3),
    "sentinel_killed": Fault(service_stopped(SENTINEL), "redis", least=3),
    "balancer_process_killed": Fault(process_killed(HAPROXY), "active", 0.0, 3.0),
    "balancer_machine_killed": Fault(machine_killed, "active"),
    "balancer_machine_frozen": Fault(machine_frozen, "active", least=2),
    "balancer_reloaded": Fault(reloaded, "active", 0.0, 0.0),
}
