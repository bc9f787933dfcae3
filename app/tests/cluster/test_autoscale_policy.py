"""The autoscaler's decision: by example, and for whatever fleet and load there may be."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.cluster.autoscale_policy import (
    Action,
    Decision,
    Host,
    Load,
    ObservedNode,
    Place,
    Policy,
    decide,
    hosts_of,
)
from wsfleet.cluster.node_state import NOT_RUNNING

POLICY = Policy(
    min=2,
    max=10,
    desired=2,
    step=1,
    connections_high=100.0,
    connections_low=40.0,
    cpu_high=70.0,
    cpu_low=30.0,
    margin=0.1,
    scale_out_cooldown=60.0,
    scale_in_cooldown=300.0,
)
LONG_AGO = 0.0
NOW = 10_000.0


def host(name: str, connections: int = 0, cpu: float = 0.0, **said: Any) -> Host:
    """A host with one node, which serves unless something else is said."""
    node = ObservedNode(f"{name}-8001", said.pop("state", "ready"), connections, cpu, **said)
    return Host(name, (node,))


def standby(name: str) -> Host:
    """A host of the warm pool."""
    return host(name, state="drained")


def outcome(hosts: list[Host], policy: Policy = POLICY, last: float | None = LONG_AGO) -> Decision:
    """Return the decision."""
    return decide(policy, hosts, now=NOW, last=last)


def names(decision: Decision) -> tuple[Action, list[str]]:
    """A decision without its reason."""
    return decision.action, [host.name for host in decision.hosts]


@pytest.mark.parametrize(
    ("nodes", "place"),
    [
        ([{"state": "ready"}], Place.SERVING),
        ([{"state": "full: 1 connections"}], Place.SERVING),
        ([{"state": "starting"}], Place.SERVING),
        ([{"state": "drained", "wanted": "serve"}], Place.SERVING),
        ([{"state": "ready"}, {"state": "drained"}], Place.SERVING),
        ([{"state": "ready"}, {"state": NOT_RUNNING}], Place.SERVING),
        ([{"state": "drained"}], Place.STANDBY),
        ([{"state": "drained"}, {"state": NOT_RUNNING}], Place.STANDBY),
        ([{"state": "drained", "wanted": "drain", "drained_by_us": True}], Place.STANDBY),
        ([{"state": "ready", "wanted": "drain", "drained_by_us": True}], Place.DRAINING),
        ([{"state": "draining"}], Place.DRAINING),
        ([{"state": "draining"}, {"state": "drained"}], Place.DRAINING),
        ([{"state": "drained", "wanted": "drain"}], Place.HELD),
        ([{"state": "ready"}, {"state": "drained", "wanted": "drain"}], Place.HELD),
    ],
)
def test_where_a_host_is(nodes: list[dict[str, Any]], place: Place) -> None:
    """It follows from the states of its nodes, and from who drained them."""
    (found,) = hosts_of(ObservedNode(f"a-{8001 + n}", **node) for n, node in enumerate(nodes))
    assert found.place is place


def test_a_host_without_a_running_node_is_left_out() -> None:
    """It can neither serve nor be brought in; a name may have a dash in it."""
    nodes = [ObservedNode("web-1-8001", "ready"), ObservedNode("web-2-8001", NOT_RUNNING)]
    assert [host.name for host in hosts_of(nodes)] == ["web-1"]


def test_it_begins_with_the_desired_hosts() -> None:
    """While nothing was ever decided; afterwards the load says how many."""
    hosts = [host("a"), host("b"), standby("c"), standby("d"), standby("e")]
    policy = replace(POLICY, desired=4)
    assert names(outcome(hosts, policy, None)) == (Action.SCALE_OUT, ["c", "d"])
    assert names(outcome(hosts, policy, LONG_AGO)) == (Action.HOLD, [])


def test_a_missing_host_is_replaced_at_once() -> None:
    """The cool-down does not delay it; without a host in standby, that is the reason."""
    decision = outcome([host("a"), standby("b"), standby("c")], last=NOW)
    assert names(decision) == (Action.SCALE_OUT, ["b"])
    assert decision.reason == "1 hosts serve, at least 2 should"
    decision = outcome([host("a")])
    assert names(decision) == (Action.SCALE_OUT, [])
    assert decision.reason.endswith("but no host is in standby")


def test_a_high_load_brings_a_host_in() -> None:
    """Connections or CPU; but only after the cool-down, and never above the maximum."""
    many = [host("a", 150), host("b", 60), standby("c"), standby("d")]
    decision = outcome(many)
    assert names(decision) == (Action.SCALE_OUT, ["c"])
    assert decision.reason == "105.0 connections a node are above 100"
    assert names(outcome(many, replace(POLICY, step=5))) == (Action.SCALE_OUT, ["c", "d"])
    assert names(outcome(many, replace(POLICY, step=5, max=3))) == (Action.SCALE_OUT, ["c"])
    assert names(outcome(many, last=NOW - 59)) == (Action.HOLD, [])
    assert names(outcome(many, last=NOW - 60)) == (Action.SCALE_OUT, ["c"])
    assert names(outcome(many, replace(POLICY, max=2))) == (Action.HOLD, [])
    busy = [host("a", cpu=80), host("b", cpu=70), standby("c")]
    assert outcome(busy).reason == "75.0 % CPU are above 70 %"


def test_a_low_load_drains_the_host_with_fewest_clients() -> None:
    """Only if both loads are low, after the cool-down, with nobody on the way in or out."""
    few = [host("a", 30), host("b", 10), host("c", 20)]
    assert names(outcome(few)) == (Action.SCALE_IN, ["b"])
    assert names(outcome(few, last=NOW - 299)) == (Action.HOLD, [])
    assert names(outcome([*few, host("d", cpu=125.0)])) == (Action.HOLD, [])
    assert names(outcome([*few, host("d", state="draining")])) == (Action.HOLD, [])
    assert names(outcome([*few, host("d", state="drained", wanted="serve")])) == (Action.HOLD, [])


def test_those_that_stay_must_bear_the_load() -> None:
    """With a margin below the high threshold, or the next step were out again."""
    policy = replace(POLICY, connections_low=90.0)
    near = [host("a", 63), host("b", 60), host("c", 60)]
    decision = outcome(near, policy)
    assert names(decision) == (Action.HOLD, [])
    assert "without b 91.5 connections a node are above 90" in decision.reason
    assert names(outcome(near, replace(policy, margin=0.0))) == (Action.SCALE_IN, ["b"])


def test_only_ready_hosts_count_as_remaining() -> None:
    """Two serve, but only one of them takes new clients: both stay, with a minimum of one too."""
    hosts = [host("a"), host("b", state="redis is not reachable")]
    assert names(outcome(hosts, replace(POLICY, min=1, desired=1))) == (Action.HOLD, [])


def test_a_host_that_an_operator_drained_is_left_alone() -> None:
    """It is not brought in, though one is needed."""
    held = host("c", state="drained", wanted="drain")
    assert names(outcome([host("a"), held])) == (Action.SCALE_OUT, [])


def test_too_many_hosts_go() -> None:
    """A maximum that was lowered holds, whatever the load."""
    hosts = [host(name, 1000) for name in "abc"]
    assert names(outcome(hosts, replace(POLICY, max=2))) == (Action.SCALE_IN, ["a"])


@pytest.mark.parametrize(
    "wrong",
    [{"min": 11}, {"desired": 1}, {"desired": 11}, {"connections_low": 101.0}, {"cpu_low": 71.0}],
)
def test_contradictions_are_refused(wrong: dict[str, Any]) -> None:
    """The message names both settings."""
    with pytest.raises(ValueError, match=r"^\w+ \(\S+\) is more than \w+ \(\S+\)$"):
        replace(POLICY, **wrong)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any policy that is not refused."""
    low, desired, high = sorted(draw(st.tuples(*[st.integers(1, 12)] * 3)))
    connections = sorted(draw(st.tuples(*[st.floats(0, 200)] * 2)))
    cpu = sorted(draw(st.tuples(*[st.floats(0, 100)] * 2)))
    return Policy(
        min=low,
        max=high,
        desired=desired,
        step=draw(st.integers(1, 4)),
        connections_low=connections[0],
        connections_high=connections[1],
        cpu_low=cpu[0],
        cpu_high=cpu[1],
        margin=draw(st.floats(0, 1)),
        scale_out_cooldown=draw(st.floats(0, 600)),
        scale_in_cooldown=draw(st.floats(0, 600)),
    )


STATES = ["ready", "starting", "draining", "drained", "full: 1 connections", NOT_RUNNING]
NODES = st.builds(
    ObservedNode,
    name=st.builds("{}-{}".format, st.sampled_from("abcdefgh"), st.integers(8001, 8002)),
    state=st.sampled_from(STATES),
    connections=st.integers(0, 300),
    cpu=st.floats(0, 100),
    wanted=st.sampled_from([None, "serve", "drain"]),
    drained_by_us=st.booleans(),
)
FLEETS = st.lists(NODES, max_size=16, unique_by=lambda node: node.name).map(hosts_of)
LAST = st.none() | st.floats(0, NOW)


@given(policies(), FLEETS, LAST)
def test_bounds_hold_for_any_fleet(policy: Policy, hosts: list[Host], last: float | None) -> None:
    """Out only from standby, up to the maximum; in one at a time, and the minimum stays ready."""
    decision = decide(policy, hosts, now=NOW, last=last)
    size = sum(host.place is Place.SERVING for host in hosts)
    if decision.action is Action.SCALE_OUT:
        assert all(host.place is Place.STANDBY for host in decision.hosts)
        assert size + len(decision.hosts) <= policy.max
    if decision.action is Action.SCALE_IN:
        (chosen,) = decision.hosts
        ready = [host for host in hosts if host.place is Place.SERVING and host.ready]
        assert chosen in ready
        assert len(ready) - 1 >= policy.min >= 1


@given(policies(), FLEETS, st.floats(0, NOW))
def test_nothing_flaps_within_the_cool_down(policy: Policy, hosts: list[Host], last: float) -> None:
    """Only a host that is missing from the minimum is brought in earlier."""
    decision = decide(policy, hosts, now=NOW, last=last)
    size = sum(host.place is Place.SERVING for host in hosts)
    if decision.action is Action.SCALE_IN:
        assert NOW - last >= policy.scale_in_cooldown
    if decision.action is Action.SCALE_OUT and size >= policy.min:
        assert NOW - last >= policy.scale_out_cooldown


ORDER = [Action.SCALE_IN, Action.HOLD, Action.SCALE_OUT]


@given(policies(), FLEETS, LAST, st.integers(1, 5), st.floats(1, 5))
def test_a_higher_load_never_means_fewer_hosts(
    policy: Policy, hosts: list[Host], last: float | None, clients: int, work: float
) -> None:
    """Of two fleets that differ in load alone, the busier one gets no smaller."""
    busier = hosts_of(
        replace(node, connections=node.connections * clients, cpu=node.cpu * work)
        for host in hosts
        for node in host.nodes
    )
    calm, busy = (decide(policy, fleet, now=NOW, last=last) for fleet in (hosts, busier))
    assert ORDER.index(calm.action) <= ORDER.index(busy.action)


def settle(policy: Policy, pool: int, size: int, connections: int, cpu: float) -> list[int]:
    """The sizes of a fleet that obeys at once, and whose load is shared out evenly and stays."""
    sizes = [size]
    for _ in range(25):
        share, rest = divmod(connections, sizes[-1])
        hosts = [
            host(f"h{n:02}", share + (n < rest), cpu / sizes[-1])
            if n < sizes[-1]
            else standby(f"h{n:02}")
            for n in range(pool)
        ]
        decision = outcome(hosts, policy)
        change = 0 if decision.action is Action.HOLD else len(decision.hosts)
        sizes.append(sizes[-1] + (change if decision.action is Action.SCALE_OUT else -change))
    return sizes


@given(policies(), st.integers(1, 15), st.integers(0, 3000), st.floats(0, 1000), st.data())
def test_a_load_that_stays_is_settled_upon(
    policy: Policy, pool: int, connections: int, cpu: float, data: st.DataObject
) -> None:
    """After some steps nothing changes any more, within the bounds of policy and pool."""
    size = data.draw(st.integers(1, pool))
    sizes = settle(policy, pool, size, connections, cpu)
    assert len(set(sizes[-5:])) == 1
    assert min(policy.min, pool) <= sizes[-1] <= policy.max
    if policy.min < sizes[-1] < min(policy.max, pool):
        load = Load(connections, cpu, sizes[-1], sizes[-1])
        assert not load.above(policy.connections_high, policy.cpu_high)
