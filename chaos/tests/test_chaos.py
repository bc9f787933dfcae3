"""The schedule of a seed, the healing of faults, and their effects on clients."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chaos.clients import effects_by_fault, timeline
from chaos.cluster import Cluster, CommandError
from chaos.faults import FAULTS
from chaos.schedule import schedule

GROUPS = {
    "loadbalancers": ["lb1", "lb2"],
    "wsnodes": ["node1", "node2"],
    "redis": ["redis1", "redis2", "redis3"],
}


def test_of_the_command_line_only_its_tools_are_used() -> None:
    """Chaos measures and reports as the commands do, but runs them as programs."""
    modules = [
        node.module or ""
        for path in (Path(__file__).parents[1]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    used = {module.split(".")[2] for module in modules if module.startswith("wsfleet.cli.")}
    assert used == {"access", "errors", "measure"}
    assert "wsfleet.cli" not in modules


def test_a_seed_sets_the_schedule() -> None:
    """The same seed gives the same faults, targets and times; another seed gives others."""
    assert schedule(7, 60, GROUPS) == schedule(7, 60, GROUPS)
    assert schedule(7, 60, GROUPS) != schedule(8, 60, GROUPS)
    assert schedule(7, 60, GROUPS)[:10] == schedule(7, 10, GROUPS)


def test_no_fault_is_repeated_before_all_were_used() -> None:
    """A run with as many steps as faults uses each of them."""
    steps = schedule(3, len(FAULTS), GROUPS)
    assert {step.name for step in steps} == set(FAULTS)


def test_targets_and_times_suit_the_fault() -> None:
    """The target is a host of the group, or a role; the duration is between the bounds."""
    for step in schedule(5, 300, GROUPS):
        fault = FAULTS[step.name]
        assert step.target in GROUPS.get(fault.target, [fault.target])
        assert fault.shortest <= step.hold <= fault.longest


def test_a_small_cluster_has_fewer_faults() -> None:
    """Faults that need more hosts are left out; without possible faults the schedule is empty."""
    small = {"loadbalancers": ["lb1"], "wsnodes": ["node1"], "redis": ["redis1"]}
    names = {step.name for step in schedule(1, 100, small)}
    assert "node_process_killed" in names
    assert not names & {"primary_without_replicas", "sentinel_killed", "node_drained"}
    assert schedule(1, 5, small, ["sentinel_killed"]) == []


class Recorder:
    """A cluster that only records the calls, and can fail once."""

    groups = GROUPS

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = False

    def address(self, host: str) -> str:
        """Return the name in place of an address."""
        return host

    def __getattr__(self, name: str) -> Any:
        """Return a function that records its call."""

        def do(*arguments: str | int) -> None:
            self.done.append(" ".join(map(str, (name, *arguments))))
            if self.fails:
                self.fails = False
                raise CommandError(name)

        return do


HEALS = {name for name in FAULTS if not name.endswith(("process_killed", "reloaded", "updated"))}


@pytest.mark.parametrize("name", sorted(HEALS))
@pytest.mark.parametrize("when", ["it began", "it was held"])
def test_a_fault_is_healed_whatever_happens(name: str, when: str) -> None:
    """A fault is healed even if its injection or the block raised."""
    orderly, cluster = Recorder(), Recorder()
    with FAULTS[name].make(_as_cluster(orderly), "redis1"):
        began = len(orderly.done)
    cluster.fails = when == "it began"
    with (
        suppress(CommandError, KeyboardInterrupt),
        FAULTS[name].make(_as_cluster(cluster), "redis1"),
    ):
        raise KeyboardInterrupt
    assert 0 < began < len(orderly.done)
    assert cluster.done[-1] == orderly.done[-1]


def _as_cluster(recorder: Recorder) -> Cluster:
    return recorder  # type: ignore[return-value]


def test_a_one_way_fault_drops_one_direction() -> None:
    """Deaf drops inbound packets, mute outbound ones; a host's own address is not blocked."""
    rules = {}
    for name in ("node_deaf_to_redis", "node_mute_to_redis", "primary_without_replicas"):
        cluster = Recorder()
        with FAULTS[name].make(_as_cluster(cluster), "redis1"):
            rules[name] = cluster.done[0]
    assert "ip saddr { redis2, redis3 } drop" in rules["node_deaf_to_redis"]
    assert "output" not in rules["node_deaf_to_redis"]
    assert "ip daddr { redis2, redis3 } drop" in rules["node_mute_to_redis"]
    assert "input" not in rules["node_mute_to_redis"]
    assert {"saddr", "daddr"} <= set(rules["primary_without_replicas"].split())


def test_effects_are_counted_for_the_right_fault() -> None:
    """A drop counts for the fault in which it began, a latency for that of the first send."""

    def event(kind: str, at: float, **fields: Any) -> dict[str, Any]:
        return {"event": kind, "at": at, **fields}

    message = {"publisher": 0, "sequence": 0}
    later = {"publisher": 0, "sequence": 1}
    log = [
        event("subscribed", 1.0, subscriber=0, recovering=False, recovered=False),
        event("disconnected", 5.0, subscriber=0),  # before the first fault: not counted
        event("subscribed", 6.0, subscriber=0, recovering=True, recovered=False),
        event("sent", 11.0, **message),
        event("disconnected", 12.0, subscriber=0),
        event("acknowledged", 13.0, **message),
        event("sent", 21.0, **later),
        event("acknowledged", 21.5, **later),
        event("subscribed", 22.0, subscriber=0, recovering=True, recovered=False),
        event("received", 23.0, subscriber=0, **message),
        event("received", 24.0, subscriber=0, **message),  # a copy
    ]
    first, second = effects_by_fault(log, [10.0, 20.0])
    assert (first["dropped"], first["unrecovered"]) == (1, 1)
    assert first["reconnect_max_ms"] == pytest.approx(10_000)
    assert first["ack_max_ms"] == pytest.approx(2000)
    assert first["delivery_max_ms"] == pytest.approx(12_000)
    assert (second["dropped"], second["reconnect_p50_ms"]) == (0, None)
    assert second["ack_max_ms"] == pytest.approx(500)
    assert second["delivery_max_ms"] is None
    delivery, dropped_at = timeline(log, 1.0)
    assert dropped_at == [4.0, 11.0]
    assert delivery.whole().count == 1  # not the copy
    assert [round(middle) for middle, _ in delivery.parts()] == [10]
