"""``wsfleet load``: a steady rate of messages, and a verdict on every delivery."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from wsfleet.cli.access.fleet_file import locate
from wsfleet.cli.access.http import describe
from wsfleet.cli.measure.charts import Bars, Course, Spread
from wsfleet.cli.measure.load_ledger import Verdict
from wsfleet.cli.measure.page import check, write
from wsfleet.cli.measure.report import Criterion, Figure, Report, emit, table
from wsfleet.cli.options import Ca, CookieName, Json, Page, Url
from wsfleet.cli.traffic.load import LoadPlan, LoadRun, run_load

LATENCY_COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")


def command(
    url: Url,
    clients: Annotated[int, typer.Option("--clients", min=2, help="Open connections.")] = 100,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0.01, help="Messages a second of ALL clients together."),
    ] = 20.0,
    duration: Annotated[
        float, typer.Option("--duration", min=0.1, help="Seconds of sending that are measured.")
    ] = 20.0,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup", min=0, help="Seconds of sending before that: checked, but not timed."
        ),
    ] = 0.0,
    size: Annotated[
        int, typer.Option("--size", min=0, max=1_000_000, help="Bytes of padding in a message.")
    ] = 0,
    connect_rate: Annotated[
        float, typer.Option("--connect-rate", min=1, help="New connections a second.")
    ] = 500.0,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds to wait at the end for the last deliveries."),
    ] = 10.0,
    cookie: CookieName = None,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> int:
    """Load the fleet and account for every message.

    Each message is broadcast: every other client must receive each acknowledged message exactly
    once. Latency counts from when a message was due, so that it includes the delay of a generator
    that falls behind. Exit code 1 if a message was lost, duplicated or failed.
    """
    check(page)
    endpoint, _ = locate(url, cookie=cookie)
    plan = LoadPlan(clients, rate, duration, warmup, size, connect_rate, drain)
    report = report_of(run_load(endpoint, plan))
    if page is not None:
        write(report, page, "wsfleet", describe(endpoint))
    return emit(report, as_json=as_json)


def report_of(load: LoadRun) -> Report:
    """Return the report of a finished run."""
    verdict = load.ledger.verdict()
    faults = _faults(load, verdict)
    data = _data(load, verdict)
    return Report(
        data,
        _views(load, data),
        _problems(load, faults),
        _criteria(load, faults),
        _figures(load, data),
        "Load",
    )


def _faults(load: LoadRun, verdict: Verdict) -> Sequence[tuple[str, int]]:
    """Return what must not happen to a message, and how often it did."""
    return (
        ("deliveries of acknowledged messages lost", verdict.lost),
        ("deliveries duplicated", verdict.duplicated),
        ("deliveries out of their sender's order", verdict.reordered),
        ("messages came back to their own sender", verdict.echoed),
        ("messages without acknowledgement", verdict.sent - verdict.acknowledged),
        ("messages not sent: their client was disconnected", load.tally.unsent),
    )


def _data(load: LoadRun, verdict: Verdict) -> dict[str, Any]:
    tally, ledger, plan = load.tally, load.ledger, load.plan
    failures = (tally.refused.total(), tally.disconnected.total(), tally.errors.total())
    nodes = Counter(loader.node for loader in load.loaders)
    return {
        "url": load.endpoint.websocket,
        "clients": plan.clients,
        "connected": len(load.loaders),
        "rate": plan.rate,
        "duration": plan.duration,
        "interrupted": load.stopped.is_set(),
        "sent": verdict.sent,
        "acknowledged": verdict.acknowledged,
        "unacknowledged": verdict.sent - verdict.acknowledged,
        "deliveries": verdict.deliveries,
        "expected": verdict.expected,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "reordered": verdict.reordered,
        "echoed": verdict.echoed,
        "failed": sum(failures) + tally.unsent + verdict.echoed,
        "refused": dict(tally.refused),
        "disconnected": dict(tally.disconnected),
        "errors": dict(tally.errors),
        "unsent": tally.unsent,
        "messages_per_second": round(verdict.sent / load.sending_time, 1),
        "deliveries_per_second": round(verdict.deliveries / load.delivery_time, 1),
        "connect_latency": tally.connect_time.summary(),
        "ack_latency": ledger.ack_latency.whole().summary(),
        "delivery_latency": ledger.delivery_latency.whole().summary(),
        "nodes": dict(sorted(nodes.items())),
        "generator_cpu_percent": round(load.cpu_share * 100, 1),
    }


def _views(load: LoadRun, data: dict[str, Any]) -> list[RenderableType]:
    overview = [
        ("clients connected", f"{data['connected']:,} of {data['clients']:,}"),
        ("messages sent", f"{data['sent']:,} ({data['messages_per_second']:,.1f}/s)"),
        ("acknowledged", data["acknowledged"]),
        ("deliveries", f"{data['deliveries']:,} of {data['expected']:,}"),
        ("deliveries/s", data["deliveries_per_second"]),
        ("lost", data["lost"]),
        ("duplicated", data["duplicated"]),
        ("reordered", data["reordered"]),
        ("failed", data["failed"]),
        ("generator CPU", f"{load.cpu_share:.0%} of one core"),
    ]
    latencies = [
        (name, *(data[f"{name}_latency"][column] for column in LATENCY_COLUMNS))
        for name in ("connect", "ack", "delivery")
    ]
    views: list[RenderableType] = [
        table("load", ("", ">value"), overview),
        table("latency", ("", ">p50 ms", ">p95 ms", ">p99 ms", ">max ms", ">n"), latencies),
        table("nodes", ("node", ">clients"), data["nodes"].items()),
    ]
    if load.cpu_share > 0.9:
        views.append("The generator used a whole core: the latencies include its own delays.")
    if data["interrupted"]:
        views.append("Interrupted: the figures are those of the messages sent until then.")
    return views


def _problems(load: LoadRun, faults: Sequence[tuple[str, int]]) -> list[str]:
    tally = load.tally
    return [
        *(f"{count} x {reason}" for reason, count in tally.refused.items()),
        *(f"{count} disconnected, close code {code}" for code, count in tally.disconnected.items()),
        *(f"{count} x error {code!r}" for code, count in tally.errors.items()),
        *(f"{count:,} {what}" for what, count in faults if count),
    ]


def _criteria(load: LoadRun, faults: Sequence[tuple[str, int]]) -> list[Criterion]:
    tally = load.tally
    return [
        Criterion("clients that were refused", tally.refused.total()),
        Criterion("clients that were disconnected", tally.disconnected.total()),
        Criterion("errors", tally.errors.total()),
        *(Criterion(what, count) for what, count in faults),
    ]


def _figures(load: LoadRun, data: dict[str, Any]) -> list[Figure]:
    ledger, dropped_at = load.ledger, load.tally.dropped_at
    return [
        Bars("Clients by node", data["nodes"]),
        Course("Delivery over time", ledger.delivery_latency, dropped_at=dropped_at),
        Spread("Delivery latency", ledger.delivery_latency.whole()),
        Spread("Acknowledgement latency", ledger.ack_latency.whole()),
    ]
