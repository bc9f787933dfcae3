"""Run faults one after the other: the cluster is healthy again before the next one."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any

from wsfleet.cli.measure import delivery_events
from wsfleet.cli.measure.charts import Counts, Course, Mark, Spread
from wsfleet.cli.measure.report import Criterion, Figure, Report, table

from chaos.clients import Clients, effects_by_fault, read_events, timeline
from chaos.cluster import Cluster, CommandError
from chaos.evenness import ClientCounts, Moves, moves
from chaos.faults import FAULTS
from chaos.schedule import Step
from lab.waiting import attempts

#: Seconds until the cluster must be healthy after a fault was healed.
HEALTHY_TIMEOUT = 90.0
#: Seconds in which clients must spread over the nodes, and until they have reconnected.
SPREAD_TIMEOUT, RECONNECT_PAUSE = 30.0, 3.0
#: Counts from verify-delivery's report for the totals of the run; those of `FAULTS` must be 0.
TOTALS = ("acknowledged", "delivered", *delivery_events.FAULTS, "reconnects")
COLUMNS = ("dropped", "reconnect_p50_ms", "reconnect_p99_ms", "delivery_p50_ms", "delivery_p99_ms")


@dataclass(slots=True)
class FaultResult:
    """The result of a fault; `host` is the target, times are Unix times, durations are seconds.

    `hit` is the number of clients that used the target when the fault began. `ended` is the time
    from which what clients see is no effect of the fault any more. `even_after` counts from the
    repair, and `moves` from the fault's start; without --even both are None.
    """

    step: Step
    host: str
    hit: int
    began: float
    ended: float = math.inf
    held: float = 0.0
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
            "rebalancing": None if self.moves is None else asdict(self.moves),
            "problem": self.problem,
        }


def progress(text: str) -> None:
    """Print the progress of the run to stderr."""
    print(text, file=sys.stderr, flush=True)


def wait_until_healthy(
    find_problem: Callable[[], str | None], seconds: float = HEALTHY_TIMEOUT
) -> str | None:
    """Wait until the cluster is healthy; return its problem if the time is over."""
    problem: str | None = None
    for _ in attempts(seconds, 0.5):
        try:
            problem = find_problem()
        except CommandError as error:  # a booting machine answers nothing
            problem = str(error)
        if problem is None:
            break
    return problem


def count_clients(connections: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the number of clients at each host with nodes."""
    return {host: sum(nodes.values()) for host, nodes in connections.items()}


def spread(
    cluster: Cluster, seconds: float = SPREAD_TIMEOUT, pause: float = RECONNECT_PAUSE
) -> dict[str, int]:
    """Spread the clients, and return the number of clients at each host with nodes.

    Clients stay where they are when a node returns. So while a host has less than half of an equal
    share, the connections of the fullest node are closed, and the balancer assigns them again.
    """
    for _ in attempts(seconds, pause):
        connections = cluster.connections()
        clients = count_clients(connections)
        counts = [clients[host] for host, nodes in connections.items() if nodes]
        if min(counts, default=0) and 2 * min(counts) * len(counts) >= sum(counts):
            return clients
        nodes = {name: count for each in connections.values() for name, count in each.items()}
        if any(nodes.values()):
            # A balancer that has just booted may not answer yet: the next attempt asks again.
            with suppress(CommandError):
                cluster.close_connections(max(nodes, key=nodes.__getitem__))
    return count_clients(cluster.connections())


def clients_hit(step: Step, counts: Mapping[str, int]) -> int:
    """Return the number of clients at the target: all of them, unless it is one node's host."""
    if FAULTS[step.name].target == "wsnodes":
        return counts.get(step.target, 0)
    return sum(counts.values())


def run_fault(cluster: Cluster, step: Step, hit: int, stop: threading.Event) -> FaultResult:
    """Inject a fault, hold it, heal it, and wait until the cluster is healthy."""
    roles = {"primary": cluster.primary, "active": cluster.active_balancer}
    host = roles[step.target]() if step.target in roles else step.target
    result = FaultResult(step, host, hit, time.time())
    try:
        with FAULTS[step.name].make(cluster, host):
            stop.wait(step.hold)
            result.held = time.time() - result.began
    except CommandError as error:
        result.problem = str(error)
    healed = time.time()
    problem = wait_until_healthy(cluster.find_problem)
    if problem is None:
        result.healthy_after = time.time() - healed
    elif result.problem is None:
        result.problem = f"the cluster was not healthy after {HEALTHY_TIMEOUT:g} s: {problem}"
    return result


def wait_until_even(
    cluster: Cluster,
    counts: ClientCounts,
    result: FaultResult,
    seconds: float,
    stop: threading.Event,
) -> None:
    """Wait until the cluster has spread the clients by itself, and note what it did for that."""
    healed = result.began + result.held
    if counts.wait_until_even(healed + seconds - time.time(), stop):
        result.even_after = time.time() - healed
    elif result.problem is None and not stop.is_set():
        result.problem = f"the clients were not even after {seconds:g} s"
    result.moves = moves(cluster, result.began, time.time())


def run(
    cluster: Cluster,
    steps: list[Step],
    clients: Clients,
    seed: int,
    stop: threading.Event,
    even: float | None = None,
) -> Report:
    """Run all steps while clients publish and subscribe; end early when `stop` is set.

    A step whose target has no clients would prove nothing: it is repeated once, after all others.
    With `even`, the cluster must have spread the clients so many seconds after each repair.

    Raises:
        CommandError: the cluster is not healthy at the start, or clients cannot use it.

    """
    cluster.heal()
    problem = wait_until_healthy(cluster.find_problem)
    if problem is not None:
        raise CommandError(f"the cluster is not healthy at the start: {problem}")
    faults: list[FaultResult] = []
    refused: list[Step] = []
    queue = deque((step, True) for step in steps)
    counts = ClientCounts(cluster) if even else None
    try:
        with clients, counts or nullcontext():
            clients.wait_for_messages()
            while queue:
                step, first = queue.popleft()
                stop.wait(step.pause)
                if stop.is_set() or not clients.running:
                    break
                if faults:
                    faults[-1].ended = min(faults[-1].ended, time.time())
                hit = clients_hit(step, spread(cluster))
                if not hit:
                    progress(f"{step.name:25} {step.target:18} not counted: it has no clients")
                    if first:
                        queue.append((step, False))
                    else:
                        refused.append(step)
                    continue
                result = run_fault(cluster, step, hit, stop)
                faults.append(result)
                if counts is not None and even and result.healthy_after is not None:
                    wait_until_even(cluster, counts, result, even, stop)
                progress(_line(result))
                if result.healthy_after is None:
                    break
            verdict = clients.finish()
    finally:
        cluster.heal()
    report = _report(seed, faults, verdict, clients, len(steps))
    if counts is not None:
        _add_evenness(report, faults, counts)
    report.problems += _refusals(refused)
    report.data["not_counted"] = [{"name": step.name, "target": step.target} for step in refused]
    return report


def _refusals(refused: Iterable[Step]) -> list[str]:
    return [
        f"{step.name} at {step.target}: not counted, because the target had no clients"
        for step in refused
    ]


def _line(result: FaultResult) -> str:
    step = result.step
    target = step.target if step.target == result.host else f"{step.target} ({result.host})"
    health = (
        "not healthy"
        if result.healthy_after is None
        else f"healthy after {result.healthy_after:.1f} s"
    )
    problem = f": {result.problem}" if result.problem else ""
    hit = f"{result.hit:4} clients"
    return f"{step.name:25} {target:18} {hit}, held {result.held:5.1f} s, {health}{problem}"


def _report(
    seed: int, faults: list[FaultResult], verdict: dict[str, Any], clients: Clients, planned: int
) -> Report:
    problems = [f"{h.step.name} at {h.host}: {h.problem}" for h in faults if h.problem]
    if "acknowledged" not in verdict:
        problems.append(f"verify-delivery: {verdict.get('error')}")
    problems += verdict.get("problems", [])
    if len(faults) < planned:
        problems.append(f"only {len(faults)} of {planned} faults were injected")
    events = read_events(clients.events)
    saw = effects_by_fault(events, [(fault.began, fault.ended) for fault in faults])
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
        (f.step.name, f.host, f.hit, round(f.held, 1), f.healthy_after, *(seen[c] for c in COLUMNS))
        for f, seen in zip(faults, saw, strict=True)
    ]
    headers = (
        ">clients hit",
        ">held s",
        ">healthy after s",
        *(f">{column.replace('_', ' ')}" for column in COLUMNS),
    )
    views = [
        table(f"chaos, seed {seed}", ("fault", "host", *headers), rows),
        table("in all", ("", ">value"), [(name, data[name]) for name in TOTALS]),
    ]
    criteria = [
        Criterion("faults injected", len(faults), wanted=planned),
        Criterion(
            f"faults after which the cluster was healthy within {HEALTHY_TIMEOUT:g} s",
            sum(fault.problem is None for fault in faults),
            wanted=planned,
        ),
        *(
            Criterion(f"{name.replace('_', ' ')}: {delivery_events.FAULTS[name]}", data[name])
            for name in delivery_events.FAULTS
        ),
        Criterion("messages without an acknowledgement", verdict.get("unacknowledged")),
        Criterion("subscribers that did not reconnect", verdict.get("absent")),
    ]
    began = events[0]["at"] if events else 0.0
    marks = _marks(faults, began)
    delivery, dropped_at = timeline(events, began)
    figures: list[Figure] = [
        Course("Delivery over time", delivery, marks, dropped_at),
        Spread("Delivery latency", delivery.whole()),
    ]
    return Report(data, list(views), problems, criteria, figures, f"Chaos, seed {seed}")


def _marks(faults: Iterable[FaultResult], began: float) -> list[Mark]:
    return [
        Mark(f"{f.step.name} at {f.host}", f.began - began, f.began - began + f.held)
        for f in faults
    ]


def _add_evenness(report: Report, faults: list[FaultResult], counts: ClientCounts) -> None:
    """Add when the clients were even after each fault, and the clients of each node over time."""
    rows = [
        (f.step.name, f.host, f.even_after, f.moves.rounds, f.moves.clients)
        for f in faults
        if f.moves
    ]
    headers = ("fault", "host", ">even after s", ">rounds", ">clients moved")
    report.views.append(table("rebalancing", headers, rows))
    even = sum(fault.even_after is not None for fault in faults)
    report.criteria.append(
        Criterion("faults after which the clients were even", even, wanted=len(faults))
    )
    began = min((line[0][0] for line in counts.lines.values()), default=0.0)
    lines = {
        name: [(at - began, count) for at, count in line]
        for name, line in sorted(counts.lines.items())
    }
    report.figures.append(Counts("Clients of each node over time", lines, _marks(faults, began)))
