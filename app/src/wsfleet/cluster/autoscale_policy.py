"""The autoscaling policy: a decision from observations, without sockets, Redis or a clock."""

import enum
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from wsfleet.cluster.node_name import host_of
from wsfleet.cluster.node_state import DRAIN, NOT_RUNNING, READY, SERVE, NodeState


class Action(enum.Enum):
    """A decision on the number of serving hosts."""

    SCALE_IN = "scale_in"
    HOLD = "hold"
    SCALE_OUT = "scale_out"


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds, thresholds and pauses; sizes are hosts.

    Connections are those of a node (one process), CPU is per cent of a machine; both are averages
    over what serves. Cool-downs are seconds since the last decision, of either kind.

    Raises:
        ValueError: two settings contradict each other; the message names them.
    """

    min: int
    max: int
    desired: int
    """Hosts that serve before the first decision."""
    step: int
    """Hosts that are added at once under high load; they are removed one at a time."""
    connections_high: float
    connections_low: float
    cpu_high: float
    cpu_low: float
    margin: float
    """How far the remaining hosts must stay below the high thresholds, as a fraction of these."""
    scale_out_cooldown: float
    scale_in_cooldown: float

    def __post_init__(self) -> None:
        """Raise ValueError for settings that contradict each other."""
        for low, high in (
            ("min", "max"),
            ("min", "desired"),
            ("desired", "max"),
            ("connections_low", "connections_high"),
            ("cpu_low", "cpu_high"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{low} ({getattr(self, low):g}) is more than {high} ({getattr(self, high):g})"
                )


@dataclass(frozen=True, slots=True)
class ObservedNode:
    """A node as autoscaler and rebalancer see it: its own report, and its desired state."""

    name: str
    state: str
    """`READY`, or why the node is not ready; `NOT_RUNNING`."""
    connections: int = 0
    cpu: float = 0.0
    wanted: str | None = None
    drained_by_us: bool = False
    """Whether it was drained into the warm pool, by the autoscaler or `wsfleet drain --standby`."""
    started: str = ""
    """When the process started, as it says itself."""
    weight: int = 1
    shedding: int = 0
    """Clients that it has still to shed."""

    @property
    def serves(self) -> bool:
        """Whether the host has clients or may have some; it need not take new ones."""
        away = (NOT_RUNNING, *(state.value for state in NodeState))
        return self.wanted != DRAIN and self.state not in away


class Place(enum.Enum):
    """The state of a host in the pool."""

    SERVING = "serving"
    """It serves clients, or is about to."""
    DRAINING = "draining"
    STANDBY = "standby"
    """It is empty, and may be added."""
    HELD = "held"
    """An operator wants it drained: the autoscaler leaves it alone."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host: its nodes are added and removed together."""

    name: str
    nodes: tuple[ObservedNode, ...]

    @property
    def place(self) -> Place:
        """The host's state in the pool."""
        nodes, drained = self.nodes, NodeState.DRAINED.value
        if any(node.wanted == DRAIN and not node.drained_by_us for node in nodes):
            return Place.HELD
        starting = NodeState.STARTING.value
        if any(
            node.serves
            or (node.wanted == SERVE and node.state == drained)  # has not read it yet
            or (node.wanted != DRAIN and node.state == starting)
            for node in nodes
        ):
            return Place.SERVING
        empty = all(node.state in (drained, NOT_RUNNING) for node in nodes)
        return Place.STANDBY if empty else Place.DRAINING

    @property
    def ready(self) -> bool:
        """Whether new clients may come."""
        return any(node.serves and node.state == READY for node in self.nodes)

    @property
    def connections(self) -> int:
        """Open WebSockets of all its nodes."""
        return sum(node.connections for node in self.nodes)

    @property
    def cpu(self) -> float:
        """Per cent of the machine, as the busiest reading of its nodes has it."""
        return max(node.cpu for node in self.nodes)


def hosts_of(nodes: Iterable[ObservedNode]) -> list[Host]:
    """Group nodes, named HOST-PORT, by host; hosts without a running node are left out."""
    found: dict[str, list[ObservedNode]] = defaultdict(list)
    for node in nodes:
        found[host_of(node.name)].append(node)
    return [
        Host(name, tuple(group))
        for name, group in sorted(found.items())
        if any(node.state != NOT_RUNNING for node in group)
    ]


@dataclass(frozen=True, slots=True)
class Load:
    """All connections, with those of draining nodes; CPU of serving hosts."""

    connections: int
    cpu: float
    nodes: int
    hosts: int

    @classmethod
    def of(cls, hosts: Sequence[Host]) -> Self:
        """The load of a fleet."""
        busy = [host for host in hosts if any(node.serves for node in host.nodes)]
        return cls(
            connections=sum(host.connections for host in hosts),
            cpu=sum(host.cpu for host in busy),
            nodes=sum(node.serves for host in busy for node in host.nodes),
            hosts=len(busy),
        )

    def without(self, host: Host) -> Self:
        """The same load on the hosts that stay."""
        nodes = self.nodes - sum(node.serves for node in host.nodes)
        return type(self)(self.connections, self.cpu, nodes, self.hosts - 1)

    @property
    def per_node(self) -> float:
        """Connections of a node, on average."""
        return self.connections / self.nodes if self.nodes else math.inf

    @property
    def per_host(self) -> float:
        """Per cent of CPU of a host, on average."""
        return self.cpu / self.hosts if self.hosts else math.inf

    def above(self, connections: float, cpu: float) -> list[str]:
        """Return which of two thresholds is exceeded."""
        found = []
        if self.per_node > connections:
            found.append(f"{self.per_node:,.1f} connections a node are above {connections:,g}")
        if self.per_host > cpu:
            found.append(f"{self.per_host:.1f} % CPU are above {cpu:g} %")
        return found


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision: what to do to which hosts, and why, in one sentence.

    Scaling out without hosts means that more are needed and none is in standby.
    """

    action: Action
    reason: str
    hosts: tuple[Host, ...] = ()


def decide(policy: Policy, hosts: Sequence[Host], *, now: float, last: float | None) -> Decision:
    """Compare a fleet with the policy.

    `now` and `last`, the time of the last decision, are seconds on one clock; None: there was none.
    Hosts that are missing from `min` are brought in at once; load scales out `step`
    hosts or in one, never below `min` hosts that are ready, never above `max`.
    """
    serving = [host for host in hosts if host.place is Place.SERVING]
    standby = [host for host in hosts if host.place is Place.STANDBY]
    size = len(serving)
    if size < policy.min:
        return _scale_out(
            standby[: policy.min - size], f"{size} hosts serve, at least {policy.min} should"
        )
    if last is None and standby and size < policy.desired:
        return _scale_out(
            standby[: policy.desired - size],
            f"{size} hosts serve, {policy.desired} should to begin with",
        )
    load = Load.of(hosts)
    if not load.nodes:
        return Decision(Action.HOLD, "no node is ready yet")
    age = math.inf if last is None else now - last
    if size > policy.max:
        return _scale_in(policy, hosts, f"{size} hosts serve, at most {policy.max} should", age)
    if high := " and ".join(load.above(policy.connections_high, policy.cpu_high)):
        if size == policy.max:
            return Decision(Action.HOLD, f"{high}, but {size} hosts serve, which is the maximum")
        if age < policy.scale_out_cooldown:
            return _cooling(high, age, policy.scale_out_cooldown)
        return _scale_out(standby[: min(policy.step, policy.max - size)], high)
    if enough := load.above(policy.connections_low, policy.cpu_low):
        return Decision(Action.HOLD, f"{' and '.join(enough)}, the low thresholds")
    low = f"{load.per_node:,.1f} connections a node and {load.per_host:.1f} % CPU are low"
    return _scale_in(policy, hosts, low, age, load)


def _scale_out(chosen: Sequence[Host], why: str) -> Decision:
    if not chosen:
        why += ", but no host is in standby"
    return Decision(Action.SCALE_OUT, why, tuple(chosen))


def _scale_in(
    policy: Policy, hosts: Sequence[Host], why: str, age: float, load: Load | None = None
) -> Decision:
    """Return the host with the fewest clients to move, if the others can bear its `load`."""
    serving = [host for host in hosts if host.place is Place.SERVING]
    ready = [host for host in serving if host.ready]
    if len(ready) <= policy.min:
        return Decision(Action.HOLD, f"{why}, but {len(ready)} hosts are ready and must stay")
    if age < policy.scale_in_cooldown:
        return _cooling(why, age, policy.scale_in_cooldown)
    if len(ready) < len(serving) or any(host.place is Place.DRAINING for host in hosts):
        return Decision(Action.HOLD, f"{why}, but a host is still on its way in or out")
    chosen = min(ready, key=lambda host: (host.connections, host.name))
    if load is not None:
        bound = 1 - policy.margin
        rest = load.without(chosen).above(policy.connections_high * bound, policy.cpu_high * bound)
        if rest:
            return Decision(Action.HOLD, f"{why}, but without {chosen.name} {' and '.join(rest)}")
    return Decision(Action.SCALE_IN, why, (chosen,))


def _cooling(why: str, age: float, cooldown: float) -> Decision:
    return Decision(
        Action.HOLD, f"{why}, but the last decision is {age:.0f} s old, not {cooldown:g} s"
    )
