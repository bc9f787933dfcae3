"""``wsfleet check stickiness``: does a client that keeps its cookie come back to its node?"""

import asyncio
import secrets
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import orjson
import uvloop

from wsfleet.cli.access.websocket_client import (
    ANSWER_TIMEOUT,
    COOKIE,
    Asker,
    Client,
    ConnectError,
    DisconnectedError,
    Endpoint,
    cookie_node,
    unreachable,
)
from wsfleet.cli.measure.histogram import Histogram, Timeline
from wsfleet.cli.measure.page import Bars, Course, Spread
from wsfleet.cli.measure.report import Criterion, Report, table

#: Of the time that is given, this part is spent waiting; the rest is for the network.
_PAUSED = 0.9


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `seconds` for everything; `jars` says for each pass whether cookies are kept."""

    clients: int = 20
    connections: int = 5
    messages: int = 3
    seconds: float = 10.0
    jars: tuple[bool, ...] = (True, False)

    @property
    def pause(self) -> float:
        """Seconds between two messages of a client."""
        return self.seconds * _PAUSED / (len(self.jars) * self.connections * self.messages)


@dataclass
class Visitor:
    """One client and where it landed: `servers` has the node of each connection, in order."""

    client_id: str
    server: str | None = None
    connections: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    broadcasts_received: int = 0
    moves: int = 0
    servers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Cookie:
    """The stickiness cookie as a node's 101 set it, its attributes as they came."""

    value: str
    node: str
    path: str
    max_age: str | None
    expires: str | None
    httponly: bool
    secure: bool
    samesite: str | None


class Pass:
    """All clients once, either with cookie jars or without."""

    def __init__(self, endpoint: Endpoint, plan: Plan, *, jar: bool) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.jar = jar
        self.cookies: list[Cookie] = []
        self.answers = Timeline()
        self._began = time.perf_counter()
        run = secrets.token_hex(2)
        kind = "jar" if jar else "plain"
        self.visitors = [Visitor(f"{kind}-{run}-{index}") for index in range(plan.clients)]

    async def execute(self) -> None:
        """Let all clients visit at the same time."""
        self._began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index, visitor in enumerate(self.visitors):
                # The clients start evenly spread over one pause: a modest, even load.
                offset = self.plan.pause * index / len(self.visitors)
                group.create_task(self._visit(visitor, offset))

    async def _visit(self, visitor: Visitor, offset: float) -> None:
        await asyncio.sleep(offset)
        kept: str | None = None
        for _ in range(self.plan.connections):
            client = Asker()
            try:
                await client.connect(self.endpoint, cookie=kept if self.jar else None)
            except ConnectError as error:
                visitor.errors.append(str(error))
                await asyncio.sleep(self.plan.pause * self.plan.messages)
                continue
            visitor.connections += 1
            if client.cookie is not None:
                kept = client.cookie.value
                self.cookies.append(_cookie(client))
            try:
                await self._talk(client, visitor)
            finally:
                visitor.broadcasts_received += client.broadcasts
                await client.close()

    async def _talk(self, client: Asker, visitor: Visitor) -> None:
        """Send the messages of one connection and enter which node answered."""
        servers = set()
        for _ in range(self.plan.messages):
            question = {
                "type": "stickiness",
                "client_id": visitor.client_id,
                "timestamp": datetime.now(UTC).isoformat(),
                "number": visitor.messages_sent,
            }
            visitor.messages_sent += 1
            asked = time.perf_counter()
            try:
                answer = await client.ask(orjson.dumps(question))
            except DisconnectedError as error:
                visitor.errors.append(str(error))
                break
            except TimeoutError:
                visitor.errors.append(f"no answer within {ANSWER_TIMEOUT:g} s")
                break
            self.answers.add(asked - self._began, time.perf_counter() - asked)
            if answer.get("type") == "ack":
                visitor.messages_received += 1
                servers.add(str(answer.get("hostname")))
            else:
                visitor.errors.append(f"error {answer.get('code')}: {answer.get('message')}")
            await asyncio.sleep(self.plan.pause)
        if len(servers) > 1:
            visitor.errors.append(f"one connection was answered by {sorted(servers)}")
        for server in sorted(servers)[:1]:
            if visitor.servers and visitor.servers[-1] != server:
                visitor.moves += 1
            visitor.servers.append(server)
            visitor.server = visitor.server or server


def run(endpoint: Endpoint, plan: Plan) -> Report:
    """Execute the plan and report.

    Raises:
        CannotRun: not one connection came about.

    """
    passes = uvloop.run(_execute(endpoint, plan))
    visitors = [visitor for each in passes for visitor in each.visitors]
    if not any(visitor.connections for visitor in visitors):
        raise unreachable(endpoint, visitors[0].errors[0])
    return report(endpoint, passes)


async def _execute(endpoint: Endpoint, plan: Plan) -> list[Pass]:
    try:
        first = Client()
        await first.connect(endpoint)
        await first.close()
    except ConnectError as error:
        # A full fleet's 503 is a finding; a wrong URL is none, and need not be tried all along.
        if error.status != HTTPStatus.SERVICE_UNAVAILABLE:
            raise unreachable(endpoint, error) from error
    passes = [Pass(endpoint, plan, jar=jar) for jar in plan.jars]
    for each in passes:
        await each.execute()
    return passes


def report(endpoint: Endpoint, passes: list[Pass]) -> Report:
    """Draw up what the passes found."""
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
        if each.jar:
            result.views.append(_cookie_line(data["cookie"]))
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
            "failed": sum(len(visitor.errors) for visitor in visitors),
        },
    }


def _problems(each: Pass, endpoint: Endpoint) -> list[str]:
    problems = [
        f"{visitor.client_id}: {error}" for visitor in each.visitors for error in visitor.errors
    ]
    if not each.jar:
        return problems  # without its cookie a client may land anywhere
    problems += [
        f"{visitor.client_id} has a cookie and moved: {' → '.join(visitor.servers)}"
        for visitor in each.visitors
        if visitor.moves
    ]
    if not each.cookies:
        problems.append(f"no {COOKIE} cookie was set: is this URL a load balancer's?")
    elif not _comes_back(each.cookies[0], endpoint):
        problems.append(
            f"the {COOKIE} cookie is Secure, but the URL is not TLS: "
            "a browser would not send it back"
        )
    return problems


def _criteria(each: Pass, endpoint: Endpoint) -> list[Criterion]:
    errors = sum(len(visitor.errors) for visitor in each.visitors)
    if not each.jar:
        return [Criterion("errors, without cookie jar", errors)]
    moved = sum(visitor.moves > 0 for visitor in each.visitors)
    criteria = [
        Criterion("clients that have a cookie and moved", moved),
        Criterion("errors, with cookie jar", errors),
        Criterion(f"the {COOKIE} cookie is set", bool(each.cookies), wanted=True),
    ]
    if each.cookies:
        back = _comes_back(each.cookies[0], endpoint)
        criteria.append(Criterion("a browser would send it back to this URL", back, wanted=True))
    return criteria


def _comes_back(cookie: Cookie, endpoint: Endpoint) -> bool:
    """Whether a browser sends the cookie to this URL."""
    return endpoint.secure or not cookie.secure


def _cookie(client: Asker) -> Cookie:
    morsel = client.cookie
    assert morsel is not None  # noqa: S101  # the caller asked
    return Cookie(
        value=morsel.value,
        node=cookie_node(morsel.value),
        path=morsel["path"],
        max_age=morsel["max-age"] or None,
        expires=morsel["expires"] or None,
        httponly=bool(morsel["httponly"]),
        secure=bool(morsel["secure"]),
        samesite=morsel["samesite"] or None,
    )


def _cookie_line(cookie: dict[str, Any] | None) -> str:
    if cookie is None:
        return f"cookie: {COOKIE} was not set"
    limits = [f"max-age {cookie['max_age']}" if cookie["max_age"] else "no max-age"]
    if cookie["expires"]:
        limits.append(f"expires {cookie['expires']}")
    if cookie["value"] != cookie["node"]:
        limits.append("dated by the balancer (maxidle/maxlife)")
    flags = [name for name in ("httponly", "secure") if cookie[name]]
    if cookie["samesite"]:
        flags.append(f"samesite {cookie['samesite']}")
    return f"cookie: {COOKIE}={cookie['node']}, path {cookie['path']}, " + ", ".join(limits + flags)


def _counted(servers: list[str]) -> str:
    return _counted_map(dict(sorted(Counter(servers).items())))


def _counted_map(servers: dict[str, int]) -> str:
    return ", ".join(f"{server}: {count}" for server, count in servers.items()) or "none"
