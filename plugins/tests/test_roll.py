"""The plan of a rolling update: the order of the hosts, and how often a client moves."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.wsfleet.wsfleet.plugins.filter.roll import roll_plan
from hypothesis import given
from hypothesis import strategies as st

Hosts = list[dict[str, Any]]


def hosts(*names: str, unchanged: str = "") -> Hosts:
    """Return hosts; the part of their nodes' names differs from their name."""
    return [
        {"name": name, "host": name.upper(), "changed": changed, "moves": changed}
        for name in names
        for changed in [name not in unchanged.split()]
    ]


def places(**given: str) -> dict[str, str]:
    """Return the places of hosts."""
    return {name.upper(): place for name, place in given.items()}


def test_without_a_host_in_standby_a_client_moves_twice() -> None:
    """The order is the inventory's, in batches of `serial`."""
    serving = places(a="serving", b="serving", c="serving")
    plan = roll_plan(hosts("a", "b", "c"), serving, 2)
    assert (plan["order"], plan["batches"]) == (["a", "b", "c"], [2, 1])
    assert (plan["joins"], plan["leaves"], plan["moves"]) == ([], [], 2)
    assert plan["text"].endswith("so a client moves at most twice.")
    assert "2 at a time: a, b, c." in plan["text"]


def test_a_host_in_standby_serves_first() -> None:
    """It is rolled alone, before any client moves; the last host is in standby afterwards."""
    plan = roll_plan(hosts("a", "b", "spare"), places(a="serving", b="serving", spare="standby"))
    assert plan["order"] == ["spare", "a", "b"]
    assert (plan["joins"], plan["leaves"], plan["moves"]) == (["spare"], ["b"], 1)
    assert (
        "First spare of the warm pool serves; afterwards b is in the pool instead" in plan["text"]
    )
    assert plan["text"].endswith("Each client moves once.")


def test_a_host_in_standby_serves_though_it_is_not_changed() -> None:
    """A changed setting of one host moves its clients to the spare host."""
    plan = roll_plan(
        hosts("a", "b", "spare", unchanged="a spare"),
        places(a="serving", b="serving", spare="standby"),
    )
    assert (plan["order"], plan["joins"], plan["leaves"]) == (["spare", "b"], ["spare"], ["b"])


def test_too_few_hosts_in_standby_help_nothing() -> None:
    """Two hosts at once need two spare hosts."""
    known = places(a="serving", b="serving", c="serving", spare="standby")
    plan = roll_plan(hosts("a", "b", "c", "spare"), known, 2)
    assert (plan["joins"], plan["moves"]) == ([], 2)
    assert plan["order"] == ["spare", "a", "b", "c"]
    assert plan["batches"] == [1, 2, 1]


def test_a_host_that_an_operator_drained_is_not_brought_in() -> None:
    """It is restarted first, and stays drained."""
    plan = roll_plan(hosts("a", "b", "held"), places(a="serving", b="serving", held="held"))
    assert plan["order"] == ["held", "a", "b"]
    assert (plan["joins"], plan["moves"]) == ([], 2)


def test_the_only_serving_host_leaves_nothing_to_spread() -> None:
    """Its clients return to it, or stay on the host in standby that serves in its place."""
    alone = roll_plan(hosts("a"), places(a="serving"))
    assert (alone["moves"], alone["uneven"]) == (1, False)
    assert alone["text"].endswith("so a client moves at most once.")
    replaced = roll_plan(hosts("a", "spare"), places(a="serving", spare="standby"))
    assert (replaced["joins"], replaced["moves"], replaced["uneven"]) == (["spare"], 1, False)
    assert roll_plan(hosts("a", "b"), places(a="serving", b="serving"))["uneven"]


def test_processes_of_the_application_move_nobody() -> None:
    """A host whose nodes stay is done first, and no host of the warm pool serves for it."""
    handlers = [host | {"moves": False} for host in hosts("a", "b")]
    plan = roll_plan([*handlers, *hosts("spare", unchanged="spare")], places(spare="standby"))
    assert (plan["order"], plan["joins"], plan["moves"]) == (["a", "b"], [], 0)


def test_nothing_changed_is_no_roll() -> None:
    """No host restarts, and none joins."""
    plan = roll_plan(hosts("a", "spare", unchanged="a spare"), places(a="serving", spare="standby"))
    assert (plan["order"], plan["batches"], plan["joins"], plan["moves"]) == ([], [], [], 0)


def test_the_first_installation_moves_nobody() -> None:
    """Nothing is known of the hosts: the order is the inventory's."""
    plan = roll_plan(hosts("a", "b"), {})
    assert (plan["order"], plan["joins"], plan["moves"]) == (["a", "b"], [], 0)


@pytest.mark.parametrize(("serial", "batches"), [("50%", [2, 2]), ("10%", [1] * 4), ("3", [3, 1])])
def test_serial_may_be_text(serial: str, batches: list[int]) -> None:
    """It is a number, or per cent of the hosts that restart, as Ansible has it."""
    known = places(a="serving", b="serving", c="serving", d="serving")
    assert roll_plan(hosts("a", "b", "c", "d"), known, serial)["batches"] == batches


HOSTS = st.lists(
    st.tuples(
        st.booleans(),
        st.booleans(),
        st.sampled_from(["serving", "standby", "draining", "held", ""]),
    ),
    max_size=8,
)


@given(HOSTS, st.integers(1, 4))
def test_each_changed_host_restarts_once(found: list[tuple[bool, bool, str]], serial: int) -> None:
    """The batches are the order; hosts without clients come first; as many join as leave."""
    all_hosts: Hosts = [
        {"name": f"h{number}", "host": f"H{number}", "changed": changed, "moves": moves}
        for number, (changed, moves, _) in enumerate(found)
    ]
    known = {f"H{number}": place for number, (*_, place) in enumerate(found) if place}
    plan = roll_plan(all_hosts, known, serial)
    changed = {host["name"] for host in all_hosts if host["changed"]}
    assert len(plan["order"]) == len(set(plan["order"])) == sum(plan["batches"])
    assert set(plan["order"]) == changed | set(plan["joins"])
    assert max(plan["batches"], default=0) <= serial
    assert len(plan["joins"]) == len(plan["leaves"])
    moves = {host["name"]: host["moves"] for host in all_hosts}
    serving = [
        moves[name] and known.get(name.upper(), "serving") == "serving" for name in plan["order"]
    ]
    assert serving == sorted(serving)
    assert all(known[name.upper()] == "standby" for name in plan["joins"])
