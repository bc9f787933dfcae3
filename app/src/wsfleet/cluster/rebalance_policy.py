"""The rebalancing policy: a decision from observations, without sockets, Redis or a clock."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wsfleet.cluster.autoscale_policy import ObservedNode
from wsfleet.cluster.node_state import DRAIN, FULL, NOT_RUNNING, READY, SERVE, NodeState


@dataclass(frozen=True, slots=True)
class RebalancePolicy:
    """When nodes shed clients, and how fast."""

    tolerance: float = 0.1
    """How far a node's connections may be from its share, as a fraction of this share."""
    delay: float = 30.0
    """Seconds that the nodes must be uneven, and the same, before a round."""
    cooldown: float = 60.0
    """Seconds from a round to the next one."""
    rate: float = 50.0
    """Clients a second that all nodes together shed."""


@dataclass(frozen=True, slots=True)
class Round:
    """A decision: how many clients each node sheds, and why, in one sentence.

    Without a node it is a decision to wait.
    """

    reason: str
    shed: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, int] = field(default_factory=dict)
    """By node: the connections that it should have; a shedding node keeps as many."""

    @property
    def clients(self) -> int:
        """The clients that are moved."""
        return sum(self.shed.values())


@dataclass(frozen=True, slots=True)
class Unevenness:
    """Since when the same nodes are uneven, in seconds on the clock of `decide`."""

    nodes: tuple[tuple[str, str, int], ...]
    """Name, start and weight of each: another process on the node is another node."""
    since: float


def serving(nodes: Iterable[ObservedNode]) -> list[ObservedNode]:
    """Return the nodes that clients are spread over; a full one can only have too many."""
    return [node for node in nodes if node.wanted != DRAIN and _takes_part(node)]


def _takes_part(node: ObservedNode) -> bool:
    return node.state == READY or node.state.startswith(FULL)


def obstacle(nodes: Sequence[ObservedNode]) -> str | None:
    """Return why clients must not be moved now; None if they may be.

    A drain, a roll, a failover or a round moves them already, or will soon. A node that does not
    run is no reason: its clients are on the other nodes, which may be uneven.
    """
    for node in nodes:
        if node.shedding:
            return f"{node.name} sheds {node.shedding} clients"
        if _takes_part(node):
            if node.wanted == DRAIN:
                return f"{node.name} is about to drain"
        elif node.state == NodeState.DRAINED.value:
            if node.wanted == SERVE:
                return f"{node.name} is about to serve"
        elif node.state != NOT_RUNNING:
            return f"{node.name} is not ready: {node.state}"
    if len(serving(nodes)) < 2:
        return "fewer than two nodes are ready"
    return None


def shares(nodes: Sequence[ObservedNode]) -> dict[str, float]:
    """Return each node's share of all connections, by the weights."""
    connections = sum(node.connections for node in nodes)
    weight = sum(node.weight for node in nodes)
    return {node.name: connections * node.weight / weight for node in nodes}


def whole_shares(nodes: Sequence[ObservedNode]) -> dict[str, int]:
    """Return the shares in whole connections, which add up to all of them.

    A share is rounded up where the node has the most above it, so that the fewest clients move.
    """
    connections = sum(node.connections for node in nodes)
    weight = sum(node.weight for node in nodes)
    whole = {node.name: connections * node.weight // weight for node in nodes}
    fractions = [node for node in nodes if connections * node.weight % weight]
    fractions.sort(key=lambda node: (whole[node.name] - node.connections, node.name))
    for node in fractions[: connections - sum(whole.values())]:
        whole[node.name] += 1
    return whole


def is_even(nodes: Sequence[ObservedNode], tolerance: float) -> bool:
    """Return whether no node is further than `tolerance` from its share, and a whole connection."""
    exact = shares(nodes)
    return all(
        math.floor(exact[node.name] * (1 - tolerance))
        <= node.connections
        <= math.ceil(exact[node.name] * (1 + tolerance))
        for node in nodes
    )


def plan(nodes: Sequence[ObservedNode], tolerance: float) -> Round:
    """Return how many clients each node sheds so that all have their share; none if even."""
    uneven = _unevenness(nodes)
    if is_even(nodes, tolerance):
        return Round(f"even: {uneven}, within {tolerance:.0%}")
    whole = whole_shares(nodes)
    surplus = {node.name: node.connections - whole[node.name] for node in nodes}
    return Round(uneven, {name: more for name, more in surplus.items() if more > 0}, whole)


def _unevenness(nodes: Sequence[ObservedNode]) -> str:
    exact = shares(nodes)
    worst = max(nodes, key=lambda node: abs(node.connections - exact[node.name]))
    return f"{worst.name} has {worst.connections:,} clients, its share is {exact[worst.name]:,.1f}"


def decide(
    policy: RebalancePolicy,
    nodes: Sequence[ObservedNode],
    *,
    now: float,
    before: Unevenness | None,
    last: float | None,
) -> tuple[Round, Unevenness | None]:
    """Return the decision, and the value of `before` for the next call.

    `now` and `last`, the time of the last round, are seconds on one clock; None: there was none.
    """
    if reason := obstacle(nodes):
        return Round(reason), None
    members = serving(nodes)
    wanted = plan(members, policy.tolerance)
    if not wanted.shed:
        return wanted, None
    names = tuple(sorted((node.name, node.started, node.weight) for node in members))
    if before is None or before.nodes != names:
        before = Unevenness(names, now)
    if (age := now - before.since) < policy.delay:
        return Round(f"{wanted.reason}, for {age:.0f} s, not {policy.delay:g} s"), before
    if last is not None and (age := now - last) < policy.cooldown:
        return Round(
            f"{wanted.reason}, but the last round is {age:.0f} s old, not {policy.cooldown:g} s"
        ), before
    return wanted, before
