"""``wsfleet check stickiness``: the cookie, and nothing else, leads a client back to its node."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from wsfleet.cli.access.endpoint import FleetEndpoint
from wsfleet.cli.access.fleet_file import locate
from wsfleet.cli.access.http import describe
from wsfleet.cli.measure.charts import Bars, Course, Spread
from wsfleet.cli.measure.histogram import Histogram
from wsfleet.cli.measure.page import check, write
from wsfleet.cli.measure.report import Criterion, Report, emit, table
from wsfleet.cli.options import Ca, CookieName, FleetFile, Json, Page, Url
from wsfleet.cli.traffic.stickiness import Cookie, Pass, Returns, StickinessPlan, run_stickiness


def command(
    url: Url,
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Clients at a time.")] = 20,
    connections: Annotated[
        int, typer.Option(min=1, max=1000, help="Connections of each client, one after the other.")
    ] = 5,
    messages: Annotated[
        int, typer.Option(min=1, max=1000, help="Messages on each connection.")
    ] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that the check takes; 0 means no pauses.")
    ] = 10.0,
    jar: Annotated[
        bool | None,
        typer.Option(
            "--jar/--no-jar",
            help="Only clients that keep cookies, or only clients that do not. Default: both.",
            show_default=False,
        ),
    ] = None,
    cookie: CookieName = None,
    fleet: FleetFile = None,
    page: Page = None,
    ca: Ca = None,
    as_json: Json = False,
) -> int:
    """Check that a client with a cookie comes back to its node.

    Exit code 1 if a client with a cookie moved, if clients without one return more often than by
    chance, or if any client failed.
    """
    check(page)
    endpoint, _ = locate(url, fleet, cookie)
    jars = (True, False) if jar is None else (jar,)
    plan = StickinessPlan(clients, connections, messages, seconds, jars)
    report = report_of(endpoint, run_stickiness(endpoint, plan))
    if page is not None:
        write(report, page, "wsfleet", describe(endpoint))
    return emit(report, as_json=as_json)


def report_of(endpoint: FleetEndpoint, passes: list[Pass]) -> Report:
    """Return the report of all passes."""
    result = Report({"url": endpoint.websocket}, title="Stickiness")
    for each in passes:
        name = "with_cookie" if each.jar else "without_cookie"
        result.data[name] = data = _pass_data(each)
        summary = data["summary"]
        title = "with cookie jar" if each.jar else "without cookie jar"
        rows = [
            (
                visitor.client_id,
                visitor.server if each.jar and not visitor.moves else _counted(visitor.servers),
                visitor.connections,
                visitor.messages_sent,
                visitor.messages_received,
                "; ".join(visitor.errors),
            )
            for visitor in each.visitors
        ]
        columns = ("client", "server", ">connections", ">sent", ">received", "errors")
        result.views.append(table(title, columns, rows))
        result.views.append(
            f"{summary['clients']} clients, {summary['connections']} connections, "
            f"{summary['moves']} moves, {summary['failed']} failed; "
            f"nodes: {_counted_map(summary['servers'])}"
        )
        result.views.append(_returns_line(each))
        if each.jar:
            result.views.append(_cookie_line(endpoint.cookie, data["cookie"]))
        result.problems += _problems(each, endpoint)
        result.criteria += _criteria(each, endpoint)
        result.figures += [
            Bars(f"Connections by node, {title}", summary["servers"]),
            Course(f"Answers over time, {title}", each.answers),
        ]
    whole = Histogram()
    for each in passes:
        whole.merge(each.answers.whole())
    result.figures.append(Spread("Answer latency", whole))
    return result


def _pass_data(each: Pass) -> dict[str, Any]:
    visitors = each.visitors
    returns = each.returns
    landed = Counter(server for visitor in visitors for server in visitor.servers)
    return {
        "clients": [asdict(visitor) for visitor in visitors],
        "cookie": asdict(each.cookies[0]) if each.cookies else None,
        "summary": {
            "clients": len(visitors),
            "connections": sum(visitor.connections for visitor in visitors),
            "messages_sent": sum(visitor.messages_sent for visitor in visitors),
            "messages_received": sum(visitor.messages_received for visitor in visitors),
            "servers": dict(sorted(landed.items())),
            "moves": sum(visitor.moves for visitor in visitors),
            "reconnects": returns.reconnects,
            "returned": returns.returned,
            "returned_share": returns.share,
            "expected_share": returns.expected_share,
            "conclusive": returns.conclusive,
            "failed": sum(len(visitor.errors) for visitor in visitors),
        },
    }


def _problems(each: Pass, endpoint: FleetEndpoint) -> list[str]:
    problems = [
        f"{visitor.client_id}: {error}" for visitor in each.visitors for error in visitor.errors
    ]
    if not each.jar:
        if each.returns.more_than_chance:
            problems.append(
                f"clients without a cookie return to their node: {_shares(each.returns)}; "
                "something other than the cookie leads them back"
            )
        return problems
    problems += [
        f"{visitor.client_id} has a cookie and moved: {' → '.join(visitor.servers)}"
        for visitor in each.visitors
        if visitor.moves
    ]
    if not each.cookies:
        problems.append(
            f"no {endpoint.cookie} cookie was set: use the URL of a load balancer, or name the "
            "cookie, which is its variable haproxy_cookie, with --cookie"
        )
    elif not _comes_back(each.cookies[0], endpoint):
        problems.append(
            f"the {endpoint.cookie} cookie is Secure, but the URL is not TLS: "
            "a browser would not send it back"
        )
    return problems


def _criteria(each: Pass, endpoint: FleetEndpoint) -> list[Criterion]:
    errors = sum(len(visitor.errors) for visitor in each.visitors)
    if not each.jar:
        criteria = [Criterion("errors, without cookie jar", errors)]
        if each.returns.conclusive:
            what = "clients without a cookie return more often than by chance"
            criteria.append(Criterion(what, each.returns.more_than_chance, wanted=False))
        return criteria
    moved = sum(visitor.moves > 0 for visitor in each.visitors)
    criteria = [
        Criterion("clients that have a cookie and moved", moved),
        Criterion("errors, with cookie jar", errors),
        Criterion(f"the {endpoint.cookie} cookie is set", bool(each.cookies), wanted=True),
    ]
    if each.cookies:
        back = _comes_back(each.cookies[0], endpoint)
        criteria.append(Criterion("a browser would send it back to this URL", back, wanted=True))
    return criteria


def _returns_line(each: Pass) -> str:
    returns = each.returns
    if not returns.reconnects:
        return "returns to the same node: no client reconnected"
    line = f"returns to the same node: {_shares(returns)}"
    if returns.conclusive:
        return line
    if returns.returned == returns.reconnects == round(returns.expected):
        reason = "each round reached one node alone"
    else:
        reason = "use more --clients and --connections"
    return f"{line}; this cannot show that the cookie makes a difference: {reason}"


def _shares(returns: Returns) -> str:
    return (
        f"{returns.returned} of {returns.reconnects} reconnects, {returns.share:.0%} "
        f"(by chance about {returns.expected_share:.0%})"
    )


def _comes_back(cookie: Cookie, endpoint: FleetEndpoint) -> bool:
    """Return whether a browser sends the cookie to this URL."""
    return endpoint.secure or not cookie.secure


def _cookie_line(name: str, cookie: dict[str, Any] | None) -> str:
    if cookie is None:
        return f"cookie: {name} was not set"
    limits = [f"max-age {cookie['max_age']}" if cookie["max_age"] else "no max-age"]
    if cookie["expires"]:
        limits.append(f"expires {cookie['expires']}")
    if cookie["value"] != cookie["node"]:
        limits.append("dated by the load balancer (maxidle/maxlife)")
    flags = [flag for flag in ("httponly", "secure") if cookie[flag]]
    if cookie["samesite"]:
        flags.append(f"samesite {cookie['samesite']}")
    return f"cookie: {name}={cookie['node']}, path {cookie['path']}, " + ", ".join(limits + flags)


def _counted(servers: list[str]) -> str:
    return _counted_map(dict(sorted(Counter(servers).items())))


def _counted_map(servers: dict[str, int]) -> str:
    return ", ".join(f"{server}: {count}" for server, count in servers.items()) or "none"
