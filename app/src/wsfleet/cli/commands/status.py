"""``wsfleet status``: nodes, load balancers and Redis of a fleet, at one glance."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from wsfleet.cli.access import autoscaling
from wsfleet.cli.access.fleet_file import Fleet, load_fleet
from wsfleet.cli.access.http import Answer, Health, ask_all
from wsfleet.cli.access.redis import connected, handler_processes
from wsfleet.cli.access.redis_summary import redis_summary
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.report import Report, emit, table, verdict
from wsfleet.cli.options import FleetFile, Json
from wsfleet.cluster import haproxy_stats
from wsfleet.cluster.autoscale_policy import hosts_of
from wsfleet.cluster.node_state import DRAIN_STATES, READY
from wsfleet.config.settings import NODE_DEAD_AFTER

Registry = dict[str, dict[str, Any]]
Statistics = Mapping[str, Answer[haproxy_stats.Rows]]


def command(
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two updates of --watch.")
    ] = 2.0,
    fleet: FleetFile = None,
    as_json: Json = False,
) -> int:
    """Show nodes, balancers and Redis.

    Exit code 1 if one of them has a problem; with --watch, the last time.
    """
    if watch and as_json:
        raise CannotRun("--watch cannot print JSON: remove --json, or repeat the command")
    where = load_fleet(fleet)
    return emit(watched(where, interval) if watch else run(where), as_json=as_json)


def run(fleet: Fleet) -> Report:
    """Ask nodes, load balancers and Redis once, and return the report.

    Raises:
        CannotRun: nothing answers: no node, no load balancer, and not Redis.

    """
    redis, registered = redis_summary(fleet.redis_url)
    urls = {name: str(said["url"]) for name, said in registered.items() if said.get("url")}
    urls |= fleet.nodes
    health, balancers = uvloop.run(ask_all(urls, fleet))
    reached = [answer for answer, _ in (*health.values(), *balancers.values())]
    if not redis["reachable"] and not any(reached):
        raise CannotRun(
            f"nothing of the fleet answers: not Redis ({redis['error']}), no node, no load "
            "balancer. Check that the fleet runs and that this host reaches it, or name another "
            "fleet file with --fleet."
        )
    nodes = _nodes(urls, registered, health, known=redis["reachable"])
    handlers = _handlers(fleet)
    return Report(
        {
            "nodes": nodes,
            "hosts": _hosts(fleet),
            "handlers": handlers,
            "loadbalancers": _balancers(fleet, balancers),
            "redis": redis,
        },
        _views(nodes, handlers, balancers, redis),
        [*_problems(nodes, balancers, redis), *_handler_problems(handlers)],
    )


def watched(fleet: Fleet, interval: float) -> Report:
    """Show the status every `interval` seconds until Ctrl-C, and return the last report.

    Raises:
        CannotRun: nothing answers the first time; later this is one more problem to show.

    """
    console = Console(highlight=False)
    report = run(fleet)
    # The alternate screen, as top(1) uses it: the terminal's content returns afterwards.
    screen = Live(console=console, screen=console.is_terminal, auto_refresh=False)
    with _interrupts() as interrupted, screen as live:
        while not interrupted():
            now = datetime.now().astimezone().strftime("%H:%M:%S")
            head = Text(f"{now}, every {interval:g} s; Ctrl-C ends", style="dim")
            # Problems come first: a small terminal shows only the beginning.
            live.update(Group(head, *verdict(report), *report.views), refresh=True)
            until = time.monotonic() + interval
            while not interrupted() and (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
            if not interrupted():
                report = _run_again(fleet, report)
        live.update(Text(), refresh=True)
    return report


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed.

    An event loop may swallow KeyboardInterrupt.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _run_again(fleet: Fleet, before: Report) -> Report:
    try:
        return run(fleet)
    except CannotRun as error:
        return Report(before.data, [], [error.message])


def _hosts(fleet: Fleet) -> dict[str, str]:
    """Return the place of each host in the pool; none without Redis."""
    try:
        with connected(fleet.redis_url) as client:
            hosts = hosts_of(autoscaling.nodes(client, fleet))
    except CannotRun:
        return {}
    return {host.name: host.place.value for host in hosts}


def _handlers(fleet: Fleet) -> list[dict[str, Any]]:
    """Return the processes that run the application's handlers; none without Redis."""
    if not fleet.handlers:
        return []
    try:
        with connected(fleet.redis_url) as client:
            ages = handler_processes(client)
    except CannotRun:
        return []
    return [
        {
            "name": name,
            "live": name in ages and ages[name] <= NODE_DEAD_AFTER,
            "heartbeat_age": ages.get(name),
        }
        for name in fleet.handlers
    ]


def _handler_problems(handlers: list[dict[str, Any]]) -> list[str]:
    return [
        f"handlers {each['name']}: "
        + (
            "the process does not run"
            if each["heartbeat_age"] is None
            else f"no heartbeat for {each['heartbeat_age']} s"
        )
        for each in handlers
        if not each["live"]
    ]


def _nodes(
    urls: Mapping[str, str],
    registered: Registry,
    health: Mapping[str, Answer[Health]],
    *,
    known: bool,
) -> list[dict[str, Any]]:
    """Join the registry and the nodes' own answers; `known` tells whether Redis was readable."""
    nodes = []
    for name in sorted({*urls, *registered}):
        said = registered.get(name, {})
        found, error = health.get(name, (None, None))
        answer = found or {}
        connections = answer.get("connections", said.get("connections"))
        node = {
            "name": name,
            "url": urls.get(name),
            "live": said.get("live", False) if known else None,
            "state": said.get("state"),
            "health": answer.get("status"),
            "reachable": found is not None,
            "error": error,
            "connections": None if connections is None else int(connections),
            "version": answer.get("version", said.get("version")),
            "uptime": answer.get("uptime", said.get("uptime")),
            "heartbeat_age": said.get("heartbeat_age"),
        }
        nodes.append({**node, "problem": _node_problem(node, registered=bool(said), known=known)})
    return nodes


def _node_problem(node: dict[str, Any], *, registered: bool, known: bool) -> str | None:
    if not node["reachable"]:
        return f"{node['url'] or 'it'} does not answer /health" + (
            f": {node['error']}" if node["error"] else ""
        )
    if known and not registered:
        return "it is not in the registry"
    if known and not node["live"]:
        return f"no heartbeat for {node['heartbeat_age']} s"
    if node["health"] not in ("healthy", *DRAIN_STATES):
        return f"its health is {node['health']}"
    if node["state"] not in (None, READY, *DRAIN_STATES):
        return f"it takes no new clients: {node['state']}"
    return None


def _balancers(fleet: Fleet, balancers: Statistics) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "url": fleet.loadbalancers[name],
            "reachable": rows is not None,
            "error": error,
            "virtual_address": haproxy_stats.has_virtual_address(rows or []),
            "servers": haproxy_stats.servers(rows or []),
        }
        for name, (rows, error) in balancers.items()
    ]


def _servers(balancers: Statistics) -> list[dict[str, Any]]:
    """Return each server of each load balancer."""
    return [
        {"loadbalancer": name, **row}
        for name, (rows, _) in balancers.items()
        for row in haproxy_stats.servers(rows or [])
    ]


def _problems(
    nodes: list[dict[str, Any]], balancers: Statistics, redis: dict[str, Any]
) -> list[str]:
    problems = [f"node {node['name']}: {node['problem']}" for node in nodes if node["problem"]]
    problems += [
        f"load balancer {name}: {error}" for name, (_, error) in balancers.items() if error
    ]
    # A load balancer shows a drained node as down, which is intended.
    drained = {node["name"] for node in nodes if node["health"] in DRAIN_STATES}
    problems += [
        f"load balancer {row['loadbalancer']}: server {row['server']} is {row['status']}"
        + (f" ({row['check']})" if row["check"] else "")
        for row in _servers(balancers)
        if not row["well"] and row["server"] not in drained
    ]
    problems += _virtual_address_problems(balancers)
    if len(drained) == len(nodes):
        problems.append("no node takes clients: all of them are drained")
    if redis["error"]:
        problems.append(f"redis {redis['url']}: {redis['error']}")
    return problems


def _virtual_address_problems(balancers: Statistics) -> list[str]:
    """Return the problem that none or several of the load balancers have the virtual address."""
    known = {
        name: has
        for name, (rows, _) in balancers.items()
        if (has := haproxy_stats.has_virtual_address(rows or [])) is not None
    }
    having = [name for name, has in known.items() if has]
    if not known or len(having) == 1:
        return []
    if having:
        return [
            f"load balancers {' and '.join(having)} have the virtual address at the same time: "
            "VRRP (IP protocol 112) does not pass between them"
        ]
    # A load balancer that did not answer may have it.
    return ["no load balancer has the virtual address"] if len(known) == len(balancers) else []


def _views(
    nodes: list[dict[str, Any]],
    handlers: list[dict[str, Any]],
    balancers: Statistics,
    redis: dict[str, Any],
) -> list[Any]:
    node_fields = ("name", "live", "health", "state", "connections", "version", "uptime")
    server_fields = ("status", "sessions", "check", "seconds_in_status")
    redis_fields = ("connected_clients", "operations_per_second", "state_keys", "connection_keys")
    megabytes = redis["used_memory"] / 2**20 if redis["reachable"] else None
    return [
        table(
            "nodes",
            ("node", "live", "health", "state", ">connections", "version", ">uptime s"),
            ([node[field] for field in node_fields] for node in nodes),
        ),
        *(
            [
                table(
                    "processes of the application's handlers",
                    ("process", "live", ">last heartbeat s"),
                    ((each["name"], each["live"], each["heartbeat_age"]) for each in handlers),
                )
            ]
            if handlers
            else []
        ),
        table(
            "load balancers",
            ("balancer", "backend/server", "status", ">sessions", "last check", ">since s"),
            (
                (
                    row["loadbalancer"],
                    f"{row['backend']}/{row['server']}",
                    *(row[field] for field in server_fields),
                )
                for row in _servers(balancers)
            ),
        ),
        table(
            "redis",
            (
                *("role", ">replicas", "version", ">memory MB", ">clients", ">ops/s"),
                *(">state:*", ">connection:*"),
            ),
            [
                (
                    *(redis["role"], redis["replicas"], redis["version"], megabytes),
                    *(redis[field] for field in redis_fields),
                )
            ],
        ),
    ]
