"""The report of a run: the effects of each fault on clients, and the account of all messages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from wsfleet.cli.measure import delivery_events
from wsfleet.cli.measure.charts import Counts, Course, Mark, Spread
from wsfleet.cli.measure.report import Criterion, Figure, Report, table

from chaos.clients import effects_by_fault, find_effects, timeline
from chaos.disconnects import Disconnects
from chaos.evenness import ClientCounts, Moves
from chaos.faults import CONTROL
from chaos.schedule import Step

#: Seconds until the cluster must be healthy after a fault was healed.
HEALTHY_TIMEOUT = 90.0
#: Counts from verify-delivery's report for the totals of the run; those of `FAULTS` must be 0.
TOTALS = ("acknowledged", "delivered", *delivery_events.FAULTS, "reconnects")
DELAYS = ("reconnect_p50_ms", "reconnect_p99_ms", "delivery_p50_ms", "delivery_p99_ms")


@dataclass(slots=True)
class FaultResult:
    """The result of a fault; `host` is the target, times are Unix times, durations are seconds.

    `hit` is the number of clients that used the target when the fault began. `held` ends when its
    repair begins, and `healed` is when this is done. After `ended`, events at clients
    are no effects of the fault any more. `even_after` counts from the repair, and `moves` from the
    fault's start; without --even both are None.
    """

    step: Step
    host: str
    hit: int
    began: float
    ended: float = math.inf
    held: float = 0.0
    healed: float = 0.0
    healthy_after: float | None = None
    even_after: float | None = None
    moves: Moves | None = None
    problem: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the result for the report."""
        return {
            "name": self.step.name,
            "target": self.step.target,
            "host": self.host,
            "hit": self.hit,
            "began": round(self.began, 3),
            "held": round(self.held, 3),
            "healthy_after": None if self.healthy_after is None else round(self.healthy_after, 3),
            "even_after": None if self.even_after is None else round(self.even_after, 3),
            "rebalancing": None if self.moves is None else dataclasses.asdict(self.moves),
            "problem": self.problem,
        }

    def __str__(self) -> str:
        """Return the result as a line."""
        step = self.step
        target = step.target if step.target == self.host else f"{step.target} ({self.host})"
        health = (
            "not healthy"
            if self.healthy_after is None
            else f"healthy after {self.healthy_after:.1f} s"
        )
        problem = f": {self.problem}" if self.problem else ""
        hit = f"{self.hit:4} clients"
        return f"{step.name:25} {target:18} {hit}, held {self.held:5.1f} s, {health}{problem}"


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """The clients of one channel: the report of verify-delivery, and the events in its file."""

    channel: str
    verdict: dict[str, Any]
    file: Path
    events: Sequence[dict[str, Any]]

    def problems(self) -> list[str]:
        """Return the problems of the deliveries."""
        found = self.verdict.get("problems", [])
        if "acknowledged" not in self.verdict:
            found = [f"verify-delivery: {self.verdict.get('error')}", *found]
        return [f"{self.channel}: {problem}" for problem in found]

    def document(self) -> dict[str, Any]:
        """Return the result for the report."""
        return {
            **{name: self.verdict.get(name) for name in TOTALS},
            "errors": self.verdict.get("errors", {}),
            "examples": self.verdict.get("examples", {}),
            "events": str(self.file),
        }


@dataclass(slots=True)
class Outcome:
    """The results of a run of `planned` steps.

    `refused` are the steps whose target had no clients. `counts` is None without --even, and
    `disconnects` without handlers.
    """

    seed: int
    planned: int
    faults: list[FaultResult] = field(default_factory=list)
    refused: list[Step] = field(default_factory=list)
    channels: list[ChannelResult] = field(default_factory=list)
    counts: ClientCounts | None = None
    disconnects: Disconnects | None = None

    def effects(self) -> Iterable[tuple[str, float, float]]:
        """Yield the effects on all clients, channel by channel."""
        for channel in self.channels:
            yield from find_effects(channel.events)

    def total(self, name: str) -> int | None:
        """Return a count of all channels; None if one of them has no account."""
        counts = [channel.verdict.get(name) for channel in self.channels]
        return None if None in counts else sum(count for count in counts if count is not None)


def report_of(outcome: Outcome) -> Report:
    """Return the report of a run."""
    faults = outcome.faults
    saw = effects_by_fault(outcome.effects(), [(fault.began, fault.ended) for fault in faults])
    dropped = sum(
        max(0, seen["dropped"] - (fault.moves.clients if fault.moves else 0))
        for fault, seen in zip(faults, saw, strict=True)
        if fault.step.name == CONTROL
    )
    told = outcome.disconnects
    data: dict[str, Any] = {
        "seed": outcome.seed,
        "faults": [
            fault.document() | {"clients": seen} for fault, seen in zip(faults, saw, strict=True)
        ],
        "not_counted": [{"name": step.name, "target": step.target} for step in outcome.refused],
        "dropped_without_a_fault": dropped,
        **{name: outcome.total(name) for name in TOTALS},
        "channels": {each.channel: each.document() for each in outcome.channels},
        "disconnects": None if told is None else dataclasses.asdict(told),
    }
    return Report(
        data,
        _views(outcome, saw, data),
        _problems(outcome, dropped),
        _criteria(outcome, dropped),
        _figures(outcome),
        f"Chaos, seed {outcome.seed}",
    )


def _problems(outcome: Outcome, dropped: int) -> list[str]:
    faults, told = outcome.faults, outcome.disconnects
    problems = [
        f"{fault.step.name} at {fault.host}: {fault.problem}" for fault in faults if fault.problem
    ]
    for channel in outcome.channels:
        problems += channel.problems()
    if dropped:
        problems.append(f"{dropped:,} connections were dropped without a fault")
    if told is not None and told.untold:
        problems.append(f"{len(told.untold):,} connections whose end the application was not told")
    if len(faults) < outcome.planned:
        problems.append(f"only {len(faults)} of {outcome.planned} steps were run")
    return problems + [
        f"{step.name} at {step.target}: not counted, because the target had no clients"
        for step in outcome.refused
    ]


def _views(
    outcome: Outcome, saw: list[dict[str, Any]], data: dict[str, Any]
) -> list[RenderableType]:
    effects = list(zip(outcome.faults, saw, strict=True))
    faults = [
        (f.step.name, f.host, f.hit, seen["dropped"], round(f.held, 1), f.healthy_after)
        for f, seen in effects
    ]
    headers = (">clients hit", ">dropped", ">held s", ">healthy after s")
    delays = [(f.step.name, f.host, *(seen[name] for name in DELAYS)) for f, seen in effects]
    delay_headers = (f">{name.replace('_', ' ')}" for name in DELAYS)
    channels = data["channels"]
    counts = [(name, *(channels[each][name] for each in channels)) for name in TOTALS]
    views: list[RenderableType] = [
        table(f"chaos, seed {outcome.seed}", ("fault", "host", *headers), faults),
        table("delays", ("fault", "host", *delay_headers), delays),
        table("in all", ("", *(f">{channel}" for channel in channels)), counts),
    ]
    if (told := outcome.disconnects) is not None:
        figures = dataclasses.asdict(told) | {"untold": len(told.untold)}
        views.append(table("disconnects", ("", ">value"), list(figures.items())))
    if outcome.counts is not None:
        views.append(_rebalancing(outcome.faults))
    return views


def _rebalancing(faults: Iterable[FaultResult]) -> Table:
    """Return when the clients were even after each fault, and the rounds that this took."""
    rows = [
        (f.step.name, f.host, f.even_after, f.moves.rounds, f.moves.clients)
        for f in faults
        if f.moves
    ]
    headers = ("fault", "host", ">even after s", ">rounds", ">clients moved")
    return table("rebalancing", headers, rows)


def _criteria(outcome: Outcome, dropped: int) -> list[Criterion]:
    healthy = sum(fault.problem is None for fault in outcome.faults)
    told = outcome.disconnects
    criteria = [
        Criterion("steps run", len(outcome.faults), wanted=outcome.planned),
        Criterion(
            f"steps after which the cluster was healthy within {HEALTHY_TIMEOUT:g} s",
            healthy,
            wanted=outcome.planned,
        ),
        *(
            Criterion(f"{name.replace('_', ' ')}: {meaning}", outcome.total(name))
            for name, meaning in delivery_events.FAULTS.items()
        ),
        Criterion("messages without an acknowledgement", outcome.total("unacknowledged")),
        Criterion("subscribers that did not reconnect", outcome.total("absent")),
        Criterion("connections dropped without a fault", dropped),
    ]
    if told is not None:
        what = "connections whose end the application was not told"
        criteria.append(Criterion(what, len(told.untold)))
    if outcome.counts is not None:
        # Not where Ctrl-C ended the wait.
        judged = [fault for fault in outcome.faults if fault.moves]
        even = sum(fault.even_after is not None for fault in judged)
        what = "steps after which the clients were even"
        criteria.append(Criterion(what, even, wanted=len(judged)))
    return criteria


def _figures(outcome: Outcome) -> list[Figure]:
    began = min((each.events[0]["at"] for each in outcome.channels if each.events), default=0.0)
    delivery, dropped_at = timeline(outcome.effects(), began)
    figures: list[Figure] = [
        Course("Delivery over time", delivery, _marks(outcome, began), sorted(dropped_at)),
        Spread("Delivery latency", delivery.whole()),
    ]
    if outcome.counts is not None:
        counted = sorted(outcome.counts.lines.items())
        began = min((line[0][0] for _, line in counted), default=0.0)
        lines = {name: [(at - began, count) for at, count in line] for name, line in counted}
        marks = _marks(outcome, began)
        figures.append(Counts("Clients of each node over time", lines, marks))
    return figures


def _marks(outcome: Outcome, began: float) -> list[Mark]:
    return [
        Mark(f"{f.step.name} at {f.host}", f.began - began, f.healed - began)
        for f in outcome.faults
    ]
