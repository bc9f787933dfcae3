"""A run: faults one after the other, each healed and the cluster well before the next."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsfleet.cli.measure import delivery_events
from wsfleet.cli.measure.charts import Course, Mark, Spread
from wsfleet.cli.measure.report import Criterion, Figure, Report, table

from chaos.clients import Clients, over_time, read_events, what_clients_saw
from chaos.cluster import Cluster, CommandError
from chaos.faults import FAULTS
from chaos.schedule import Step
from lab.waiting import attempts

#: Seconds for the cluster to become well again after a fault was healed.
WELL_WITHIN = 90.0
#: Counts of verify-delivery's report that are the run's own totals; those of `FAULTS` must be 0.
TOTALS = ("acknowledged", "delivered", *delivery_events.FAULTS, "reconnects")
COLUMNS = ("dropped", "reconnect_p50_ms", "reconnect_p99_ms", "delivery_p50_ms", "delivery_p99_ms")


@dataclass(slots=True)
class Happened:
    """A fault that happened; `host` had the role that was its target, times are unix times."""

    step: Step
    host: str
    began: float
    held: float = 0.0
    well_after: float | None = None
    problem: str | None = None

    def document(self) -> dict[str, Any]:
        """The same for the report."""
        return {
            "name": self.step.name,
            "target": self.step.target,
            "host": self.host,
            "began": round(self.began, 3),
            "held": round(self.held, 3),
            "well_after": None if self.well_after is None else round(self.well_after, 3),
            "problem": self.problem,
        }


def say(text: str) -> None:
    """Tell on stderr how far the run is."""
    print(text, file=sys.stderr, flush=True)


def until_well(unwell: Callable[[], str | None], seconds: float = WELL_WITHIN) -> str | None:
    """Wait until all is well; gives what is not when the time is over."""
    problem: str | None = None
    for _ in attempts(seconds, 0.5):
        try:
            problem = unwell()
        except CommandError as error:  # a machine that boots answers nothing
            problem = str(error)
        if problem is None:
            break
    return problem


def happen(cluster: Cluster, step: Step, stop: threading.Event) -> Happened:
    """Let a fault happen, hold it, heal it, and wait until the cluster is well."""
    roles = {"primary": cluster.primary, "active": cluster.active_balancer}
    host = roles[step.target]() if step.target in roles else step.target
    happened = Happened(step, host, time.time())
    try:
        with FAULTS[step.name].make(cluster, host):
            stop.wait(step.hold)
            happened.held = time.time() - happened.began
    except CommandError as error:
        happened.problem = str(error)
    healed = time.time()
    problem = until_well(cluster.unwell)
    if problem is None:
        happened.well_after = time.time() - healed
    elif happened.problem is None:
        happened.problem = f"the cluster was not well after {WELL_WITHIN:g} s: {problem}"
    return happened


def run(
    cluster: Cluster, steps: list[Step], clients: Clients, seed: int, stop: threading.Event
) -> Report:
    """Let all of it happen while clients publish and listen; ends early when `stop` is set.

    Raises:
        CommandError: the cluster is not well to begin with, or clients cannot use it.

    """
    cluster.heal()
    problem = until_well(cluster.unwell)
    if problem is not None:
        raise CommandError(f"the cluster is not well to begin with: {problem}")
    faults: list[Happened] = []
    try:
        with clients:
            clients.wait_for_messages()
            for step in steps:
                stop.wait(step.pause)
                if stop.is_set() or not clients.running:
                    break
                happened = happen(cluster, step, stop)
                faults.append(happened)
                say(_line(happened))
                if happened.well_after is None:
                    break
            verdict = clients.finish()
    finally:
        cluster.heal()
    return _report(seed, faults, verdict, clients, len(steps))


def _line(happened: Happened) -> str:
    step = happened.step
    who = step.target if step.target == happened.host else f"{step.target} ({happened.host})"
    well = "not well" if happened.well_after is None else f"well {happened.well_after:.1f} s later"
    problem = f": {happened.problem}" if happened.problem else ""
    return f"{step.name:25} {who:18} held {happened.held:5.1f} s, {well}{problem}"


def _report(
    seed: int, faults: list[Happened], verdict: dict[str, Any], clients: Clients, planned: int
) -> Report:
    problems = [f"{h.step.name} at {h.host}: {h.problem}" for h in faults if h.problem]
    if "acknowledged" not in verdict:
        problems.append(f"verify-delivery: {verdict.get('error')}")
    problems += verdict.get("problems", [])
    if len(faults) < planned:
        problems.append(f"only {len(faults)} of {planned} faults happened")
    events = read_events(clients.events)
    saw = what_clients_saw(events, [fault.began for fault in faults])
    data: dict[str, Any] = {
        "seed": seed,
        "faults": [
            fault.document() | {"clients": seen} for fault, seen in zip(faults, saw, strict=True)
        ],
        **{name: verdict.get(name) for name in TOTALS},
        "errors": verdict.get("errors", {}),
        "examples": verdict.get("examples", {}),
        "events": str(clients.events),
    }
    rows = [
        (f.step.name, f.host, round(f.held, 1), f.well_after, *(seen[c] for c in COLUMNS))
        for f, seen in zip(faults, saw, strict=True)
    ]
    headers = (">held s", ">well after s", *(f">{column.replace('_', ' ')}" for column in COLUMNS))
    views = [
        table(f"chaos, seed {seed}", ("fault", "host", *headers), rows),
        table("in all", ("", ">value"), [(name, data[name]) for name in TOTALS]),
    ]
    criteria = [
        Criterion("faults that happened", len(faults), wanted=planned),
        Criterion(
            f"faults after which the cluster was well within {WELL_WITHIN:g} s",
            sum(fault.problem is None for fault in faults),
            wanted=planned,
        ),
        *(
            Criterion(f"{name.replace('_', ' ')}: {delivery_events.FAULTS[name]}", data[name])
            for name in delivery_events.FAULTS
        ),
        Criterion("messages that were not acknowledged", verdict.get("unacknowledged")),
        Criterion("subscribers that did not come back", verdict.get("absent")),
    ]
    began = events[0]["at"] if events else 0.0
    marks = [
        Mark(f"{f.step.name} at {f.host}", f.began - began, f.began - began + f.held)
        for f in faults
    ]
    delivery, dropped_at = over_time(events, began)
    figures: list[Figure] = [
        Course("Delivery over time", delivery, marks, dropped_at),
        Spread("Delivery latency", delivery.whole()),
    ]
    return Report(data, list(views), problems, criteria, figures, f"Chaos, seed {seed}")
