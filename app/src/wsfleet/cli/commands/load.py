"""``wsfleet load``: many clients, a steady rate of messages, and a verdict on every delivery."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from wsfleet.cli.access.endpoint import FleetEndpoint, is_application
from wsfleet.cli.access.fleet_file import locate
from wsfleet.cli.access.http import describe
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.charts import Bars, Course, Spread
from wsfleet.cli.measure.load_ledger import Verdict
from wsfleet.cli.measure.page import check, write
from wsfleet.cli.measure.report import Criterion, Figure, Report, emit, table
from wsfleet.cli.options import Ca, CookieName, Json, Message, Page, Protocol, Url
from wsfleet.cli.traffic.application_load import ApplicationRun, run_application_load
from wsfleet.cli.traffic.generator import Generator
from wsfleet.cli.traffic.load import LoadPlan, LoadRun, run_load
from wsfleet.cli.traffic.token_message import token_message

LATENCY_COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")
#: The close code that asks a client to reconnect, with which a node drains.
SERVICE_RESTART = 1012


def command(
    url: Url,
    clients: Annotated[int, typer.Option("--clients", min=2, help="Open connections.")] = 100,
    rate: Annotated[
        float,
        typer.Option("--rate", min=0.01, help="Messages a second of ALL clients together."),
    ] = 20.0,
    duration: Annotated[
        float,
        typer.Option(
            "--duration",
            min=0.1,
            help="Seconds of measured sending; without messages, of open connections.",
        ),
    ] = 20.0,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup", min=0, help="Seconds of sending before that: checked, but not timed."
        ),
    ] = 0.0,
    size: Annotated[
        int,
        typer.Option(
            "--size", min=0, max=1_000_000, help="Bytes of padding in a message (plain protocol)."
        ),
    ] = 0,
    connect_rate: Annotated[
        float, typer.Option("--connect-rate", min=1, help="New connections a second.")
    ] = 500.0,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds to wait at the end for the last deliveries."),
    ] = 10.0,
    protocol: Protocol = None,
    message: Message = None,
    cookie: CookieName = None,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> int:
    """Load the cluster and account for every message.

    Plain protocol: each message is broadcast, and every other client must receive each acknowledged
    message exactly once. Application: connections are opened, held and closed. A disconnected
    client reconnects with its cookie. With --message each message must come back to its sender.
    Latency counts from when a message was due, so that it includes the delay of a generator that
    falls behind. Exit code 1 if a client was refused or disconnected (an application's clients:
    with another code than 1012), or if a message was lost, duplicated or failed.
    """
    check(page)
    endpoint, _ = locate(url, cookie=cookie)
    plan = LoadPlan(clients, rate, duration, warmup, size, connect_rate, drain)
    report = _run(endpoint, plan, protocol, message)
    if page is not None:
        write(report, page, "wsfleet", describe(endpoint))
    return emit(report, as_json=as_json)


def _run(
    endpoint: FleetEndpoint, plan: LoadPlan, protocol: str | None, message: str | None
) -> Report:
    if not is_application(endpoint, protocol, "load"):
        if message is not None:
            raise CannotRun(
                "--message is for an application, and the plain protocol has messages of its own: "
                "add --protocol application, or leave --message out"
            )
        return report_of(run_load(endpoint, plan))
    if plan.size:
        raise CannotRun("--size is for the plain protocol: make the text of --message longer")
    return application_report(run_application_load(endpoint, plan, token_message(message)))


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
    """Return how often each fault happened to a message."""
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
    latencies = [(name, data[f"{name}_latency"]) for name in ("connect", "ack", "delivery")]
    return [
        table("load", ("", ">value"), overview),
        _latency_table(latencies),
        table("nodes", ("node", ">clients"), data["nodes"].items()),
        *_notes(load, data, "the messages sent"),
    ]


def _latency_table(summaries: Sequence[tuple[str, dict[str, Any]]]) -> RenderableType:
    rows = [(name, *(summary[column] for column in LATENCY_COLUMNS)) for name, summary in summaries]
    return table("latency", ("", ">p50 ms", ">p95 ms", ">p99 ms", ">max ms", ">n"), rows)


def _notes(run: Generator, data: dict[str, Any], measured: str) -> list[str]:
    """Return the reasons why the figures are limited, if any."""
    notes = []
    if run.cpu_share > 0.9:
        notes.append("The generator used a whole core: the latencies include its own delays.")
    if data["interrupted"]:
        notes.append(f"Interrupted: the figures are those of {measured} until then.")
    return notes


def _problems(load: LoadRun, faults: Sequence[tuple[str, int]]) -> list[str]:
    tally = load.tally
    return [
        *(f"{count} x {reason}" for reason, count in tally.refused.items()),
        *(f"{count} disconnected, close code {code}" for code, count in tally.disconnected.items()),
        *(f"{count} x error {code!r}" for code, count in tally.errors.items()),
        *(f"{count:,} {what}" for what, count in faults if count),
        *(
            ["no broadcast arrived: if an application serves the path, add --protocol application"]
            if load.ledger.sent and not load.ledger.deliveries
            else []
        ),
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


def application_report(load: ApplicationRun) -> Report:
    """Return the report of a finished run on an application."""
    data = _application_data(load)
    faults = _application_faults(load)
    tally = load.tally
    problems = [f"{count} x {reason}" for reason, count in tally.refused.items()]
    problems += [
        f"{count} disconnected, close code {code}"
        for code, count in tally.disconnected.items()
        if code != SERVICE_RESTART
    ]
    if load.unreturned and not tally.returned:
        problems.append(
            f"nothing came back of {tally.sent:,} messages: the application does not send a "
            "message, or its {token}, back to the sender. Change --message, or leave it out."
        )
    elif load.unreturned:
        messages = "message" if load.unreturned == 1 else "messages"
        problems.append(f"{load.unreturned:,} {messages} did not come back")
    if load.missing:
        clients = "client" if load.missing == 1 else "clients"
        problems.append(f"{load.missing:,} {clients} had no connection at the end")
    figures: list[Figure] = [Bars("Clients by node", data["nodes"])]
    if load.message is not None:
        round_trip = tally.round_trip
        figures.append(Course("Round trip over time", round_trip, dropped_at=tally.dropped_at))
        figures.append(Spread("Round trip", round_trip.whole()))
    criteria = [Criterion(what, count) for what, count in faults]
    return Report(data, _application_views(load, data), problems, criteria, figures, "Load")


def _application_faults(load: ApplicationRun) -> Sequence[tuple[str, int]]:
    tally = load.tally
    faults = [
        ("handshakes refused", tally.refused.total()),
        (
            f"clients disconnected, other than with {SERVICE_RESTART}",
            tally.disconnected.total() - tally.disconnected[SERVICE_RESTART],
        ),
        ("clients without a connection at the end", load.missing),
    ]
    if load.message is not None:
        faults.append(("messages that did not come back", load.unreturned))
    return faults


def _application_data(load: ApplicationRun) -> dict[str, Any]:
    tally, plan = load.tally, load.plan
    nodes = Counter(visitor.node for visitor in load.visitors)
    return {
        "url": load.endpoint.websocket,
        "protocol": "application",
        "clients": plan.clients,
        "connected": len(load.visitors),
        "duration": plan.duration,
        "interrupted": load.stopped.is_set(),
        "refused": dict(tally.refused),
        "disconnected": {str(code): count for code, count in tally.disconnected.items()},
        "reconnects": tally.reconnects,
        "most_reconnects": max(visitor.reconnects for visitor in load.visitors),
        "same_node": tally.same_node,
        "other_node": tally.other_node,
        "without_connection": load.missing,
        "sent": tally.sent,
        "returned": tally.returned,
        "unreturned": load.unreturned,
        "cut": tally.cut,
        "unsent": tally.unsent,
        "connect_latency": tally.connect_time.summary(),
        "round_trip": tally.round_trip.whole().summary(),
        "nodes": dict(sorted(nodes.items())),
        "generator_cpu_percent": round(load.cpu_share * 100, 1),
    }


def _application_views(load: ApplicationRun, data: dict[str, Any]) -> list[RenderableType]:
    named = data["same_node"] + data["other_node"]
    overview: list[tuple[str, object]] = [
        ("clients connected", f"{data['connected']:,} of {data['clients']:,}"),
        ("handshakes refused", load.tally.refused.total()),
        *((f"closed with {code}", count) for code, count in data["disconnected"].items()),
        ("reconnects", f"{data['reconnects']:,} (of one client: {data['most_reconnects']:,})"),
    ]
    if named:
        overview.append(("  to the same node", f"{data['same_node']:,} of {named:,}"))
    rows = [("connect", data["connect_latency"])]
    if load.message is not None:
        overview += [
            ("messages sent", data["sent"]),
            ("came back", data["returned"]),
            ("on their way when the connection ended", data["cut"]),
            ("not sent, as the client was away", data["unsent"]),
        ]
        rows.append(("round trip", data["round_trip"]))
    return [
        table("load on an application", ("", ">value"), overview),
        _latency_table(rows),
        table("nodes at the end", ("node", ">clients"), data["nodes"].items()),
        *_notes(load, data, "the run"),
    ]
