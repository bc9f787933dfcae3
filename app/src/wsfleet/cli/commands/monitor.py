"""``wsfleet monitor``: the health of a fleet over time, through its load balancer and by node."""

import asyncio
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, Any

import httpx
import typer
import uvloop
from rich.console import Console
from rich.text import Text

from wsfleet.cli.access.endpoint import FleetEndpoint, is_application
from wsfleet.cli.access.fleet_file import Fleet, locate
from wsfleet.cli.access.http import TIMEOUT, trusted
from wsfleet.cli.access.websocket_client import cookie_node, received_cookie
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.health import HealthHistory, HealthReading, judge
from wsfleet.cli.measure.report import Report, emit, table
from wsfleet.cli.options import Ca, CookieName, FleetFile, Json, Message, Protocol, Url
from wsfleet.cli.traffic.probe import WebSocketProbe
from wsfleet.cli.traffic.token_message import TokenMessage, token_message

BALANCER = "balancer"
#: Requests without a cookie to find the nodes; the search ends after this many without a new node.
_DISCOVERY, _DISCOVERY_QUIET = 64, 12
_MEASURED = ("connections", "cpu_usage", "memory_usage", "response_ms", "round_trip_ms")


def command(
    url: Url,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two rounds.")
    ] = 5.0,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", min=1, help="Number of rounds. Default: until Ctrl-C.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            "--limit", min=0, max=100, help="Per cent of CPU or memory above which a check fails."
        ),
    ] = 90.0,
    cookie: CookieName = None,
    protocol: Protocol = None,
    message: Message = None,
    fleet: FleetFile = None,
    ca: Ca = None,
    as_json: Json = False,
) -> int:
    """Watch the health of every node behind URL.

    Plain protocol: /health is read. Application: its WebSocket is opened and closed, and with
    --message a message must come back. With a fleet file, the nodes' /health is read instead.
    Exit code 1 if a check failed.
    """
    endpoint, known = locate(url, fleet, cookie)
    application = is_application(endpoint, protocol, "monitor")
    if message is not None and not application:
        raise CannotRun("--message is for an application: add --protocol application")
    plan = MonitorPlan(interval, count, limit, not as_json, application, token_message(message))
    return emit(run(endpoint, plan, known), as_json=as_json)


@dataclass(frozen=True, slots=True)
class MonitorPlan:
    """A round every `interval` seconds, `count` rounds or until a signal; `live` prints each.

    More than `limit` per cent of CPU or memory is a failure. If the URL is an `application`'s, its
    WebSocket is probed, with the `message` if there is one.
    """

    interval: float = 5.0
    count: int | None = None
    limit: float = 90.0
    live: bool = True
    application: bool = False
    message: TokenMessage | None = None


@dataclass(frozen=True, slots=True)
class MonitorTarget:
    """A URL to ask, and the raw cookie that leads to one node through the load balancer."""

    name: str
    url: str
    cookie: str | None = None


class Monitor:
    """The targets and their readings."""

    def __init__(self, endpoint: FleetEndpoint, plan: MonitorPlan, fleet: Fleet | None) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.balancer = MonitorTarget(BALANCER, endpoint.http)
        self._fleet = fleet
        nodes = fleet.nodes if fleet else {}
        self.targets = {name: MonitorTarget(name, url) for name, url in nodes.items()}
        self.own_urls = fleet is not None
        self.histories: dict[str, HealthHistory] = {}
        self.ticks = 0
        self.events: list[dict[str, str]] = []
        self.stopped = asyncio.Event()
        self._tls = trusted(fleet)
        self._probe = WebSocketProbe(endpoint, self._tls)

    async def execute(self) -> None:
        """Watch until the last round or a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stopped.set)
        # Requests share nothing: a kept connection or cookie would always lead to the same node.
        limits = httpx.Limits(max_keepalive_connections=0)
        no_jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        async with httpx.AsyncClient(
            timeout=TIMEOUT,
            limits=limits,
            cookies=no_jar,
            trust_env=False,
            verify=self._tls,
        ) as client:
            if not self.own_urls:
                await self._discover(client)
            begin = time.monotonic()
            while not self.stopped.is_set():
                await self._tick(client)
                if self.plan.count is not None and self.ticks >= self.plan.count:
                    break
                pause = begin + self.ticks * self.plan.interval - time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, pause)):
                        await self.stopped.wait()
                except TimeoutError:
                    continue

    async def _discover(self, client: httpx.AsyncClient) -> None:
        """Find the nodes behind a load balancer: ask without a cookie until no new node answers."""
        quiet = 0
        for _ in range(_DISCOVERY):
            known = len(self.targets)
            self._learn(await self._read(client, self.balancer, None))
            quiet = 0 if len(self.targets) > known else quiet + 1
            if quiet >= _DISCOVERY_QUIET or self.stopped.is_set():
                break

    async def _read(
        self, client: httpx.AsyncClient, target: MonitorTarget, message: TokenMessage | None
    ) -> HealthReading:
        if self.plan.application and target.url == self.endpoint.http:
            reading = await self._probe.read(target.cookie, message)
        else:
            reading = await read(client, target, self.endpoint.cookie, self.plan.limit)
        if target.name not in (BALANCER, reading.node) and reading.status is not None:
            # The load balancer sends clients of a node that is down to another node.
            reading.problems.append(f"does not answer: {reading.node} answered instead")
            reading.status = None
        return reading

    def _learn(self, reading: HealthReading) -> None:
        """Remember a node with the cookie that leads to it.

        The cookie's value is kept unchanged: it may have dates after the node's name.
        """
        if not self.own_urls and reading.node and reading.set_cookie:
            name = cookie_node(reading.set_cookie)
            self.targets.setdefault(
                name, MonitorTarget(name, self.endpoint.http, reading.set_cookie)
            )

    async def _tick(self, client: httpx.AsyncClient) -> None:
        targets = [self.balancer, *self.targets.values()]
        message = self.plan.message
        readings = await asyncio.gather(
            *(self._read(client, target, message) for target in targets)
        )
        self.ticks += 1
        if self.ticks == 1 and all(reading.status is None for reading in readings):
            asked = f"{self.endpoint.http}/health"
            if self.plan.application:
                asked = self.endpoint.websocket
            raise CannotRun(
                f"no answer from {asked}: {readings[0].problems[0]}. "
                "Check the URL, and that the fleet runs."
            )
        line = Text(datetime.now().astimezone().strftime("%H:%M:%S"))
        marks: list[tuple[str, str]] = []
        for target, reading in zip(targets, readings, strict=True):
            self._learn(reading)
            changes = self.histories.setdefault(target.name, HealthHistory()).add(reading)
            line.append_text(_shown(target, reading, changed=bool(changes)))
            for kind, texts in (("problem", reading.problems), ("change", changes)):
                marks += [(kind, f"{target.name}: {text}") for text in texts]
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        self.events += [{"timestamp": now, "kind": kind, "text": text} for kind, text in marks]
        if self.plan.live:
            console = Console(highlight=False, soft_wrap=True)
            console.print(line)
            for kind, text in marks:
                style = "red" if kind == "problem" else "yellow"
                console.print(Text(f"         {'✗' if kind == 'problem' else '→'} {text}", style))

    def report(self) -> Report:
        """Return the report of all rounds."""
        failures = sum(history.failures for history in self.histories.values())
        targets = {
            name: {
                "checks": history.checks,
                "failures": history.failures,
                "last_status": history.last.status if history.last else None,
                **{key: span.summary() for key, span in history.spans.items()},
            }
            for name, history in self.histories.items()
        }
        data: dict[str, Any] = {
            "url": self.endpoint.http,
            "ticks": self.ticks,
            "failures": failures,
            "targets": targets,
            "events": self.events,
        }
        measured = _MEASURED if self.plan.message is not None else _MEASURED[:-1]
        rows = [
            (name, history.checks, history.failures, *(_span(history, key) for key in measured))
            for name, history in self.histories.items()
        ]
        units = (">connections", ">cpu %", ">memory %", ">ms", ">round trip ms")
        columns = ("", ">checks", ">failures", *units[: len(measured)])
        problems = [
            f"{name}: {history.failures} of {history.checks} checks failed"
            for name, history in self.histories.items()
            if history.failures
        ]
        title = f"{self.ticks} rounds, {failures} failures (min/avg/max)"
        return Report(data, [table(title, columns, rows)], problems)


async def read(
    client: httpx.AsyncClient, target: MonitorTarget, cookie: str, limit: float
) -> HealthReading:
    """Ask one target for its health; `cookie` is the name of the load balancer's cookie."""
    headers = {"Cookie": f"{cookie}={target.cookie}"} if target.cookie else {}
    begin = time.perf_counter()
    try:
        answer = await client.get(f"{target.url}/health", headers=headers)
        health = answer.json()
    except httpx.HTTPError as error:
        return HealthReading(problems=[f"no answer: {str(error) or type(error).__name__}"])
    except ValueError:
        return HealthReading(problems=[f"HTTP {answer.status_code}, not JSON"])
    milliseconds = (time.perf_counter() - begin) * 1000
    if not isinstance(health, dict):
        return HealthReading(problems=[f"HTTP {answer.status_code}, not a JSON object"])
    reading = judge(health, milliseconds, limit)
    morsel = received_cookie(answer.headers.get_list("set-cookie"), cookie)
    reading.set_cookie = morsel.value if morsel else None
    return reading


def run(endpoint: FleetEndpoint, plan: MonitorPlan, fleet: Fleet | None) -> Report:
    """Watch, and return the report.

    Raises:
        CannotRun: nothing answers in the first round.

    """
    return uvloop.run(_execute(endpoint, plan, fleet)).report()


async def _execute(endpoint: FleetEndpoint, plan: MonitorPlan, fleet: Fleet | None) -> Monitor:
    monitor = Monitor(endpoint, plan, fleet)
    await monitor.execute()
    return monitor


def _shown(target: MonitorTarget, reading: HealthReading, *, changed: bool) -> Text:
    label = target.name if target.name != BALANCER else f"{BALANCER}→{reading.node or '?'}"
    values = reading.values
    text = Text(f" | {label} ")
    status = (reading.status or "no answer") + ("*" if changed else "")
    text.append(status, style="red" if reading.problems else "green")
    if "connections" in values:
        text.append(f" {values['connections']:.0f} conn")
        if target.name != BALANCER:
            usage = (values.get("cpu_usage", 0), values.get("memory_usage", 0))
            text.append(" cpu {:.0f}% mem {:.0f}%".format(*usage))
    if reading.status is not None:
        text.append(f" {reading.response_ms:.0f} ms")
    if "round_trip_ms" in values:
        text.append(f" round trip {values['round_trip_ms']:.0f} ms")
    return text


def _span(history: HealthHistory, key: str) -> str | None:
    if key not in history.spans:
        return None
    summary = history.spans[key].summary()
    return "/".join(f"{summary[part]:.0f}" for part in ("min", "avg", "max"))
