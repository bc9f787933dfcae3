"""``wsfleet verify-delivery``: check the delivery contract while the cluster is under fault."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType

from wsfleet.cli.access.endpoint import FleetEndpoint, parse_url
from wsfleet.cli.access.http import describe
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.charts import Course, Spread
from wsfleet.cli.measure.delivery_account import Findings
from wsfleet.cli.measure.delivery_events import FAULTS
from wsfleet.cli.measure.page import check, write
from wsfleet.cli.measure.report import Criterion, Figure, Report, emit, table
from wsfleet.cli.options import Ca, Json, Page
from wsfleet.cli.traffic.delivery import run_delivery
from wsfleet.cli.traffic.delivery_run import DeliveryPlan, DeliveryRun
from wsfleet.protocol.centrifuge import negotiation
from wsfleet.protocol.plain import CHANNEL, PATH

#: Examples of each kind of fault in the table; --json has more.
SHOWN_EXAMPLES = 5

Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="http(s)://HOST[:PORT] or ws(s)://HOST[:PORT]. A path after it is the one of "
        "--protocol plain; it defaults to /ws.",
        show_default=False,
    ),
]


def command(
    url: Url,
    publishers: Annotated[int, typer.Option(min=1, max=1000, help="Clients that publish.")] = 4,
    subscribers: Annotated[int, typer.Option(min=1, max=5000, help="Clients that subscribe.")] = 20,
    messages: Annotated[int, typer.Option(min=1, help="Messages of each publisher.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0.01, help="The most messages a second of each publisher.")
    ] = 20.0,
    protocol: Annotated[
        Literal["centrifuge", "plain"],
        typer.Option(help="centrifuge: /connection/websocket. plain: /ws, which has no recovery."),
    ] = "centrifuge",
    channel: Annotated[
        str, typer.Option(help="A channel that every client may subscribe and publish to.")
    ] = CHANNEL,
    timeout: Annotated[float, typer.Option(min=1, help="The most seconds for the run.")] = 300.0,
    keyed: Annotated[
        bool,
        typer.Option(
            "--keyed",
            help="The channel's publish handler publishes each message with its "
            "`idempotency_key`: no copy is allowed.",
        ),
    ] = False,
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            metavar="FILE",
            help="Write every event to a file, one JSON object a line. The first event has the "
            "time, and `at` of the others counts the seconds since then.",
            show_default=False,
        ),
    ] = None,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> int:
    """Check that every publication is delivered once, in order.

    Run it while the cluster is under fault. Publishers repeat a message until it is acknowledged;
    subscribers reconnect and recover. An acknowledged message must not be lost, duplicated or out
    of order, and a recovery must be complete. Ctrl-C ends the publishing; the messages published
    until then are accounted for. Exit code 1 if the contract was broken.
    """
    check(page)
    endpoint = parse_url(url)
    _check_path(endpoint, protocol)
    plan = DeliveryPlan(
        *(publishers, subscribers, messages, rate, protocol, channel, timeout, keyed, events)
    )
    report = report_of(run_delivery(endpoint, plan))
    if page is not None:
        write(report, page, "wsfleet", describe(endpoint))
    return emit(report, as_json=as_json)


def _check_path(endpoint: FleetEndpoint, protocol: str) -> None:
    """Check that the path is not an application's, which has no acknowledgements and positions.

    Raises:
        CannotRun: it is.

    """
    if protocol == "centrifuge" and endpoint.path not in (PATH, negotiation.PATH):
        raise CannotRun(
            f"{endpoint.path} is an application's path, and verify-delivery needs the "
            "acknowledgements and positions of the Centrifuge protocol, which every node serves "
            f"at {negotiation.PATH}: write {endpoint.http}{negotiation.PATH}. If the plain "
            "protocol has this path (WSFLEET_PLAIN_PATH), add --protocol plain."
        )


def report_of(run: DeliveryRun) -> Report:
    """Return the report of a finished run; every count in `data` is exact."""
    plan, findings = run.plan, run.account.findings()
    published = findings.sent if run.finishing else plan.publishers * plan.messages
    data = _data(run, findings, published)
    title = f"Delivery, {plan.protocol}"
    return Report(
        data,
        _views(data, published),
        _problems(run, findings, published),
        _criteria(findings, published),
        _figures(findings),
        title,
    )


def _problems(run: DeliveryRun, findings: Findings, published: int) -> list[str]:
    problems = [
        f"{fault.count:,} {_words(name)}: {FAULTS[name]}"
        for name, fault in findings.faults.items()
        if fault.count
    ]
    if not published:
        problems.append("nothing was published")
    if unacknowledged := published - findings.acknowledged:
        problems.append(f"{unacknowledged:,} not acknowledged: {run.last_error}")
    if findings.absent:
        problems.append(f"{len(findings.absent):,} subscribers did not return: {run.last_error}")
    return problems


def _data(run: DeliveryRun, findings: Findings, published: int) -> dict[str, Any]:
    plan, faults = run.plan, findings.faults
    examples = faults | {"missed_while_away": findings.missed_while_away}
    return {
        "protocol": plan.protocol,
        "channel": plan.channel,
        "publishers": plan.publishers,
        "subscribers": plan.subscribers,
        "messages": plan.messages,
        "acknowledged": findings.acknowledged,
        "unacknowledged": published - findings.acknowledged,
        "delivered": findings.delivered,
        **{name: fault.count for name, fault in faults.items()},
        "reconnects": findings.reconnects,
        "recovered": findings.recovered,
        "unrecovered": findings.unrecovered,
        "missed_while_away": findings.missed_while_away.count,
        "retried_copies": findings.retried,
        "absent": len(findings.absent),
        "longest_away_seconds": round(max(findings.longest_away, default=0.0), 3),
        "longest_wait_seconds": round(max(findings.longest_wait, default=0.0), 3),
        "errors": run.errors,
        "examples": {name: fault.examples for name, fault in examples.items() if fault.count},
        "ack_latency": findings.ack_latency.whole().summary(),
        "delivery_latency": findings.delivery_latency.whole().summary(),
    }


def _views(data: dict[str, Any], published: int) -> list[RenderableType]:
    overview = [
        ("published", f"{published:,} by {data['publishers']:,} publishers"),
        ("acknowledged", data["acknowledged"]),
        ("delivered", f"{data['delivered']:,} to {data['subscribers']:,} subscribers"),
        *((_words(name), data[name]) for name in FAULTS),
        ("copies, sent again without a key", data["retried_copies"]),
        ("reconnects of subscribers", data["reconnects"]),
        ("recovered", data["recovered"]),
        ("not recovered, and told so", data["unrecovered"]),
        ("missed while away, and told so", data["missed_while_away"]),
        ("longest time without a subscription", f"{data['longest_away_seconds']:,.3f} s"),
        ("longest wait for an acknowledgement", f"{data['longest_wait_seconds']:,.3f} s"),
    ]
    columns = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")
    latencies = [
        (name, *(data[f"{name}_latency"][column] for column in columns))
        for name in ("ack", "delivery")
    ]
    views: list[RenderableType] = [
        table(f"delivery, {data['protocol']}, {data['channel']}", ("", ">value"), overview),
        table("latency", ("", ">p50 ms", ">p95 ms", ">p99 ms", ">max ms", ">n"), latencies),
    ]
    if data["errors"]:
        views.append(
            table("", ("errors, followed by a retry", ">times"), sorted(data["errors"].items()))
        )
    if data["examples"]:
        views.append(_examples(data["examples"]))
    return views


def _examples(kinds: dict[str, list[dict[str, Any]]]) -> RenderableType:
    shown = [(name, each) for name, examples in kinds.items() for each in examples[:SHOWN_EXAMPLES]]
    fields = list(dict.fromkeys(field for _, example in shown for field in example))
    rows = [
        (_words(name), *(str(example.get(field, "")) for field in fields))
        for name, example in shown
    ]
    return table("examples (--json has more)", ("", *map(_words, fields)), rows)


def _criteria(findings: Findings, published: int) -> list[Criterion]:
    return [
        Criterion("something was published", published > 0, wanted=True),
        *(
            Criterion(f"{_words(name)}: {FAULTS[name]}", fault.count)
            for name, fault in findings.faults.items()
        ),
        Criterion("messages that were not acknowledged", published - findings.acknowledged),
        Criterion("subscribers that did not return", len(findings.absent)),
    ]


def _figures(findings: Findings) -> list[Figure]:
    dropped_at = findings.dropped_at
    return [
        Course("Delivery over time", findings.delivery_latency, dropped_at=dropped_at),
        Course("Acknowledgement over time", findings.ack_latency, dropped_at=dropped_at),
        Spread("Delivery latency", findings.delivery_latency.whole()),
        Spread("Acknowledgement latency", findings.ack_latency.whole()),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")
