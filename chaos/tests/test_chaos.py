"""The schedule of a seed, faults that are healed whatever happens, and what clients saw."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from chaos.clients import over_time, what_clients_saw
from chaos.cluster import Cluster, CommandError
from chaos.faults import FAULTS
from chaos.schedule import schedule

GROUPS = {
    "loadbalancers": ["lb1", "lb2"],
    "wsnodes": ["node1", "node2"],
    "redis": ["redis1", "redis2", "redis3"],
}


def test_a_seed_is_a_sequence() -> None:
    """The same one gives the same faults, targets and times; another one others."""
    assert schedule(7, 60, GROUPS) == schedule(7, 60, GROUPS)
    assert schedule(7, 60, GROUPS) != schedule(8, 60, GROUPS)
    assert schedule(7, 60, GROUPS)[:10] == schedule(7, 10, GROUPS)


def test_every_fault_comes_before_any_comes_again() -> None:
    """A run of as many faults as there are kinds leaves none out."""
    steps = schedule(3, len(FAULTS), GROUPS)
    assert {step.name for step in steps} == set(FAULTS)


def test_targets_and_times_are_those_of_the_fault() -> None:
    """A host of its group, or a role; held for as long as is said."""
    for step in schedule(5, 300, GROUPS):
        fault = FAULTS[step.name]
        assert step.target in GROUPS.get(fault.target, [fault.target])
        assert fault.shortest <= step.hold <= fault.longest


def test_a_small_cluster_has_fewer_faults() -> None:
    """Without replicas nothing can be cut off from them; with nothing left there is no step."""
    small = {"loadbalancers": ["lb1"], "wsnodes": ["node1"], "redis": ["redis1"]}
    names = {step.name for step in schedule(1, 100, small)}
    assert "node_process_killed" in names
    assert not names & {"primary_without_replicas", "sentinel_killed", "node_drained"}
    assert schedule(1, 5, small, ["sentinel_killed"]) == []


class Recorder:
    """A cluster on which nothing happens; it knows what was asked of it, and can fail once."""

    groups = GROUPS

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = False

    def address(self, host: str) -> str:
        """A name is as good as an address."""
        return host

    def __getattr__(self, name: str) -> Any:
        """Anything else is written down."""

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
    """What ends it is done once more than what began it, also if that or the rest failed."""
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


def test_one_way_drops_one_way() -> None:
    """Deaf does not hear, mute does not speak; nobody is cut off from itself."""
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


def test_what_clients_saw_is_told_by_fault() -> None:
    """A drop belongs to the fault in which it began, a latency to that in which it was sent."""

    def event(kind: str, at: float, **fields: Any) -> dict[str, Any]:
        return {"event": kind, "at": at, **fields}

    message = {"publisher": 0, "sequence": 0}
    later = {"publisher": 0, "sequence": 1}
    log = [
        event("subscribed", 1.0, subscriber=0, recovering=False, recovered=False),
        event("disconnected", 5.0, subscriber=0),  # before the first fault: nobody's
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
    first, second = what_clients_saw(log, [10.0, 20.0])
    assert (first["dropped"], first["unrecovered"]) == (1, 1)
    assert first["reconnect_max_ms"] == pytest.approx(10_000)
    assert first["ack_max_ms"] == pytest.approx(2000)
    assert first["delivery_max_ms"] == pytest.approx(12_000)
    assert (second["dropped"], second["reconnect_p50_ms"]) == (0, None)
    assert second["ack_max_ms"] == pytest.approx(500)
    assert second["delivery_max_ms"] is None
    delivery, dropped_at = over_time(log, 1.0)
    assert dropped_at == [4.0, 11.0]
    assert delivery.whole().count == 1  # not the copy
    assert [round(middle) for middle, _ in delivery.parts()] == [10]
