"""The rebalancing policy: by example, and for any fleet."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.cluster.autoscale_policy import ObservedNode
from wsfleet.cluster.node_state import NOT_RUNNING
from wsfleet.cluster.rebalance_policy import (
    RebalancePolicy,
    Round,
    decide,
    is_even,
    obstacle,
    plan,
    serving,
    shares,
    whole_shares,
)

POLICY = RebalancePolicy(tolerance=0.1, delay=30.0, cooldown=60.0, rate=50.0)


def node(name: str, connections: int = 0, state: str = "ready", **said: Any) -> ObservedNode:
    """Return a node."""
    return ObservedNode(name, state, connections, **said)


def fleet(*connections: int) -> list[ObservedNode]:
    """Return ready nodes a, b, … with these connections."""
    return [node(name, count) for name, count in zip("abcdefgh", connections, strict=False)]


def decided(nodes: list[ObservedNode], *times: float, last: float | None = None) -> list[Round]:
    """Return the decisions of looks at these times."""
    before, rounds = None, []
    for now in times:
        wanted, before = decide(POLICY, nodes, now=now, before=before, last=last)
        rounds.append(wanted)
    return rounds


def test_the_surplus_is_shed() -> None:
    """Each node that has more than its share sheds the rest."""
    assert plan(fleet(200, 0), 0.1).shed == {"a": 100}
    assert plan(fleet(150, 120, 30), 0.1).shed == {"a": 50, "b": 20}
    assert plan(fleet(106, 94), 0.1).shed == {}


def test_an_empty_node_is_filled_though_no_other_has_too_many() -> None:
    """A node far below its share is uneven, even if the others are within the tolerance."""
    wanted = plan([*(node(f"n{number}", 100) for number in range(19)), node("new")], 0.1)
    assert wanted.clients == 95
    assert max(wanted.shed.values()) == 5


def test_a_few_clients_are_even_where_they_cannot_be_evener() -> None:
    """One client more than another node does not count as surplus."""
    assert plan(fleet(2, 1), 0.0).shed == {}
    assert plan(fleet(1, 0, 0), 0.0).shed == {}
    assert plan(fleet(0, 0), 0.1).shed == {}
    assert plan(fleet(3, 1), 0.0).shed == {"a": 1}


def test_weights_are_shares() -> None:
    """A node of double weight has twice as many clients."""
    nodes = [node("a", 150, weight=1), node("b", 150, weight=2)]
    assert plan(nodes, 0.1).shed == {"a": 50}
    assert plan([node("a", 100, weight=1), node("b", 200, weight=2)], 0.0).shed == {}


def test_a_round_waits_for_the_delay_and_the_cooldown() -> None:
    """The nodes are uneven for 30 s, and the last round is 60 s old."""
    first, still, then = decided(fleet(200, 0), 1000, 1029, 1030)
    assert (first.shed, still.shed) == ({}, {})
    assert "for 29 s, not 30 s" in still.reason
    assert then.shed == {"a": 100}
    assert "the last round is 59 s old" in decided(fleet(200, 0), 1000, 1030, last=971)[1].reason
    assert decided(fleet(200, 0), 1000, 1030, last=970)[1].shed == {"a": 100}


@pytest.mark.parametrize(
    "changed",
    [
        [node("a", 200), node("b", 0), node("c", 0)],
        [node("a", 200), node("b", 0, started="later")],
        [node("a", 200), node("b", 0, weight=2)],
        [node("a", 100), node("b", 100)],
        [node("a", 200), node("b", 0, "redis is not reachable")],
    ],
)
def test_the_delay_begins_again_with_other_nodes(changed: list[ObservedNode]) -> None:
    """A node that came, went or restarted, and a moment of evenness, begin it again."""
    before = None
    for now, nodes in ((1000, fleet(200, 0)), (1029, changed), (1030, fleet(200, 0))):
        wanted, before = decide(POLICY, nodes, now=now, before=before, last=None)
        assert not wanted.shed


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (node("b", 5, "draining"), "b is not ready: draining"),
        (node("b", 5, wanted="drain"), "b is about to drain"),
        (node("b", 0, "drained", wanted="serve"), "b is about to serve"),
        (node("b", 0, "starting"), "b is not ready: starting"),
        (node("b", 5, "redis is not reachable"), "b is not ready: redis is not reachable"),
        (node("b", 5, shedding=3), "b sheds 3 clients"),
    ],
)
def test_nothing_is_moved_while_clients_move_anyway(other: ObservedNode, reason: str) -> None:
    """A drain, a roll, a failover, an outage of Redis and a round forbid another round."""
    nodes = [*fleet(200), other, node("c", 0)]
    assert obstacle(nodes) == reason
    assert not any(wanted.shed for wanted in decided(nodes, 0, 1000))


def test_a_node_that_is_gone_or_in_standby_is_no_obstacle() -> None:
    """The others are spread over; a full node is one of them."""
    nodes = [
        *fleet(100, 0),
        node("c", 0, NOT_RUNNING),
        node("d", 0, "drained"),
        node("e", 0, "drained", wanted="drain"),
        node("f", 200, "full: 200 connections"),
    ]
    assert obstacle(nodes) is None
    assert decided(nodes, 0, 30)[1].shed == {"f": 100}
    assert obstacle([*fleet(200), node("b", 0, NOT_RUNNING)]) == "fewer than two nodes are ready"


NODES = st.lists(
    st.builds(
        ObservedNode,
        name=st.sampled_from([f"n{number}" for number in range(12)]),
        state=st.just("ready"),
        connections=st.integers(0, 500),
        weight=st.integers(1, 8),
    ),
    min_size=2,
    max_size=12,
    unique_by=lambda found: found.name,
)
TOLERANCES = st.floats(0, 0.9)


@given(NODES, TOLERANCES)
def test_no_node_sheds_more_than_its_surplus(nodes: list[ObservedNode], tolerance: float) -> None:
    """It keeps its whole share, and the surpluses are what the other nodes lack."""
    wanted, exact, whole = plan(nodes, tolerance), shares(nodes), whole_shares(nodes)
    by_name = {found.name: found for found in nodes}
    assert sum(whole.values()) == sum(found.connections for found in nodes)
    assert all(abs(whole[name] - exact[name]) < 1 for name in whole)
    for name, count in wanted.shed.items():
        assert 0 < count <= by_name[name].connections - exact[name] + 1
        assert by_name[name].connections - count == wanted.shares[name]
    if wanted.shed:
        lack = sum(max(0, whole[found.name] - found.connections) for found in nodes)
        assert wanted.clients == lack


@given(NODES, TOLERANCES, TOLERANCES)
def test_a_round_that_reaches_its_nodes_is_the_last_one(
    nodes: list[ObservedNode], tolerance: float, other: float
) -> None:
    """Nodes that have their whole shares are even, with any tolerance."""
    wanted = plan(nodes, tolerance)
    if wanted.shed:
        after = [replace(found, connections=wanted.shares[found.name]) for found in nodes]
        assert not plan(after, other).shed
    else:
        assert is_even(nodes, tolerance)


@given(NODES, TOLERANCES, st.data())
def test_no_oscillation_wherever_the_clients_go(
    nodes: list[ObservedNode], tolerance: float, data: st.DataObject
) -> None:
    """Shed clients go to any nodes: the sum of all distances from the shares never grows."""
    wanted = plan(nodes, tolerance)
    counts = {found.name: found.connections for found in nodes}
    for name, count in wanted.shed.items():
        first, second = data.draw(st.lists(st.sampled_from(sorted(counts)), min_size=2, max_size=2))
        part = data.draw(st.integers(0, count))
        counts[name] -= count
        counts[first] += part
        counts[second] += count - part
    whole = whole_shares(nodes)

    def distance(connections: dict[str, int]) -> int:
        return sum(abs(connections[name] - whole[name]) for name in whole)

    assert distance(counts) <= distance({found.name: found.connections for found in nodes})


@given(NODES, st.floats(0.05, 0.9))
def test_clients_that_leastconn_places_are_even_after_a_few_rounds(
    nodes: list[ObservedNode], tolerance: float
) -> None:
    """HAProxy's leastconn sends each shed client to another node, by connections and weight."""
    sizes = []
    for _ in range(4):
        wanted = plan(nodes, tolerance)
        sizes.append(wanted.clients)
        counts = {found.name: found.connections for found in nodes}
        weights = {found.name: found.weight for found in nodes}
        for name, count in wanted.shed.items():
            for _ in range(count):
                counts[name] -= 1
                others = sorted(counts.keys() - {name})
                counts[min(others, key=lambda other: counts[other] / weights[other])] += 1
        nodes = [replace(found, connections=counts[found.name]) for found in nodes]
    assert sizes[-1] == 0, sizes


@given(NODES, TOLERANCES)
def test_each_client_is_moved_at_most_once(nodes: list[ObservedNode], tolerance: float) -> None:
    """No node sheds more clients than it has, and none sheds and lacks clients."""
    wanted = plan(nodes, tolerance)
    for found in nodes:
        count = wanted.shed.get(found.name, 0)
        assert count <= found.connections
        assert not count or found.connections > wanted.shares[found.name]


def test_nodes_that_drain_have_no_share() -> None:
    """Shares are those of the nodes that take clients."""
    nodes = [*fleet(10, 20), node("c", 5, wanted="drain"), node("d", 0, "drained")]
    assert [found.name for found in serving(nodes)] == ["a", "b"]
