"""``wsfleet status``: nodes, load balancers and Redis of a fleet, at one glance."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import httpx
import uvloop
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from wsfleet.cli import CannotRun
from wsfleet.cli.access.fleet_file import Fleet, trusted
from wsfleet.cli.access.redis import DRAIN_STATES, connected, registry, server_infos, shown
from wsfleet.cli.measure.report import Report, table, verdict
from wsfleet.cluster import haproxy_stats
from wsfleet.config.redis_url import RedisURL
from wsfleet.redis import key_names

_TIMEOUT = 3.0  # seconds for one HTTP answer
_HEADERS = {"User-Agent": "wsfleet"}

T = TypeVar("T")
Answer = tuple[T | None, str | None]
"""What somebody said, or why nothing was heard."""


def run(fleet: Fleet) -> Report:
    """Ask everybody once and report.

    Raises:
        CannotRun: nobody answers at all: neither a node, nor a load balancer, nor Redis.

    """
    report = Report({})
    redis = _redis(fleet)
    registered: dict[str, dict[str, Any]] = redis.pop("registry")
    urls = {name: str(said["url"]) for name, said in registered.items() if said.get("url")}
    urls |= fleet.nodes
    health, balancers = uvloop.run(_ask(urls, fleet))
    reached = [answer for answer, _ in (*health.values(), *balancers.values())]
    if not redis["reachable"] and not any(reached):
        raise CannotRun(
            f"nobody of the fleet answers: not Redis ({redis['error']}), no node, no load "
            "balancer. Check that it runs and that this host reaches it; `--fleet` names another."
        )
    nodes = [
        _node(
            name,
            urls.get(name),
            registered.get(name),
            *health.get(name, (None, None)),
            known=redis["reachable"],
        )
        for name in sorted(urls | registered)
    ]
    servers = [
        {"loadbalancer": name, **row}
        for name, (rows, _) in balancers.items()
        for row in haproxy_stats.servers(rows or [])
    ]
    virtual = {
        name: haproxy_stats.has_virtual_address(rows or []) for name, (rows, _) in balancers.items()
    }
    report.data.update(
        nodes=nodes,
        loadbalancers=[
            {
                "name": name,
                "url": fleet.loadbalancers[name],
                "reachable": rows is not None,
                "error": error,
                "virtual_address": virtual[name],
                "servers": haproxy_stats.servers(rows or []),
            }
            for name, (rows, error) in balancers.items()
        ],
        redis=redis,
    )
    report.problems += [
        f"node {node['name']}: {node['problem']}" for node in nodes if node["problem"]
    ]
    # A balancer sees a node that drains as one that is down: that is how it is meant.
    drained = {node["name"] for node in nodes if node["health"] in DRAIN_STATES}
    report.problems += [
        f"load balancer {name}: {error}" for name, (_, error) in balancers.items() if error
    ]
    report.problems += [
        f"load balancer {row['loadbalancer']}: server {row['server']} is {row['status']}"
        + (f" ({row['check']})" if row["check"] else "")
        for row in servers
        if not row["well"] and row["server"] not in drained
    ]
    report.problems += _virtual_address_problems(virtual)
    if len(drained) == len(nodes):
        report.problems.append("no node takes clients: all of them are drained")
    if redis["error"]:
        report.problems.append(f"redis {redis['url']}: {redis['error']}")
    report.views = _views(nodes, servers, redis)
    return report


def watch(fleet: Fleet, interval: float) -> Report:
    """Look again every `interval` seconds, until Ctrl-C; returns what was seen last.

    Raises:
        CannotRun: nobody answers at the first look; later that is one more thing to see.

    """
    console = Console(highlight=False)
    report = run(fleet)
    # A screen of its own, as of top(1): what was on the terminal is back afterwards.
    screen = Live(console=console, screen=console.is_terminal, auto_refresh=False)
    with _interrupts() as interrupted, screen as live:
        while not interrupted():
            now = datetime.now().astimezone().strftime("%H:%M:%S")
            head = Text(f"{now}, every {interval:g} s; Ctrl-C ends", style="dim")
            # What is wrong stands first: a low terminal shows no more than the beginning.
            live.update(Group(head, *verdict(report), *report.views), refresh=True)
            until = time.monotonic() + interval
            while not interrupted() and (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
            if not interrupted():
                report = _look_again(fleet, report)
        live.update(Text(), refresh=True)
    return report


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed; as an exception, an event loop may swallow it."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _look_again(fleet: Fleet, before: Report) -> Report:
    try:
        return run(fleet)
    except CannotRun as error:
        return Report(before.data, [], [error.message])


def _redis(fleet: Fleet) -> dict[str, Any]:
    """Read what Redis says of itself and of the nodes; an unreachable one is a finding."""
    result: dict[str, Any] = {
        "url": shown(fleet.redis_url),
        "reachable": False,
        "error": None,
        "role": None,
        "replicas": None,
        "version": None,
        "used_memory": None,
        "max_memory": None,
        "connected_clients": None,
        "operations_per_second": None,
        "state_keys": None,
        "connection_keys": None,
        "registry": {},
    }
    try:
        with connected(fleet.redis_url) as client:
            infos = server_infos(client)
            problems = [problem for info in infos if (problem := _redis_problem(info))]
            replicas = _sum(infos, "connected_slaves")
            if RedisURL.parse(fleet.redis_url).kind == "sentinel" and not replicas:
                problems.append("its primary has no replica: a failure would lose its data")
            result |= {
                "reachable": True,
                "role": infos[0]["role"] if len(infos) == 1 else f"cluster of {len(infos)}",
                "replicas": replicas,
                "version": infos[0]["redis_version"],
                "used_memory": _sum(infos, "used_memory"),
                "max_memory": _sum(infos, "maxmemory") or None,
                "connected_clients": _sum(infos, "connected_clients"),
                "operations_per_second": _sum(infos, "instantaneous_ops_per_sec"),
                "error": "; ".join(problems) or None,
                **_counted_keys(client),
            }
            result["registry"] = registry(client)
    except CannotRun as error:
        result["error"] = str(error.message)
    return result


def _sum(infos: list[dict[str, Any]], field: str) -> int:
    return sum(info.get(field) or 0 for info in infos)


def _redis_problem(info: Mapping[str, Any]) -> str | None:
    """Name the first thing that is wrong with a Redis that answers."""
    if info.get("loading"):
        return "still loading its data"
    for name, what in (
        ("rdb_last_bgsave_status", "the last snapshot failed"),
        ("aof_last_write_status", "the last write to the append-only file failed"),
        ("aof_last_bgrewrite_status", "the last rewrite of the append-only file failed"),
    ):
        if info.get(name, "ok") != "ok":
            return what
    if info["role"] == "slave" and info.get("master_link_status") != "up":
        return "a replica without its primary"
    return None


def _counted_keys(client: Any) -> dict[str, int]:
    state, connection = key_names.state(""), key_names.connection("")
    counts = {"state_keys": 0, "connection_keys": 0}
    for key in client.scan_iter(count=1000):
        if key.startswith(state):
            counts["state_keys"] += 1
        elif key.startswith(connection):
            counts["connection_keys"] += 1
    return counts


async def _ask(
    nodes: Mapping[str, str], fleet: Fleet
) -> tuple[dict[str, Answer[dict[str, Any]]], dict[str, Answer[haproxy_stats.Rows]]]:
    """Fetch every node's /health and every load balancer's statistics, all at once."""
    balancers = fleet.loadbalancers
    async with httpx.AsyncClient(
        timeout=_TIMEOUT, headers=_HEADERS, trust_env=False, verify=trusted(fleet)
    ) as client:
        health, stats = await asyncio.gather(
            asyncio.gather(*(_health(client, url) for url in nodes.values())),
            asyncio.gather(*(_statistics(client, url) for url in balancers.values())),
        )
    return dict(zip(nodes, health, strict=True)), dict(zip(balancers, stats, strict=True))


async def _health(client: httpx.AsyncClient, url: str) -> Answer[dict[str, Any]]:
    try:
        answer = (await client.get(f"{url}/health")).json()
    except httpx.HTTPError as error:
        return None, str(error) or type(error).__name__
    except ValueError:
        return None, "not JSON"
    return (answer, None) if isinstance(answer, dict) else (None, "no JSON object")


async def _statistics(client: httpx.AsyncClient, url: str) -> Answer[haproxy_stats.Rows]:
    try:
        rows = await haproxy_stats.statistics(client, url)
    except httpx.HTTPError as error:
        return None, f"no statistics from {url}: {str(error) or type(error).__name__}"
    return rows, None if haproxy_stats.servers(rows) else "it has no servers"


def _virtual_address_problems(balancers: Mapping[str, bool | None]) -> list[str]:
    """Say who has the virtual address if not one balancer alone has it."""
    known = {name: has for name, has in balancers.items() if has is not None}
    having = [name for name, has in known.items() if has]
    if not known or len(having) == 1:
        return []
    if having:
        return [
            f"load balancers {' and '.join(having)} have the virtual address at the same time: "
            "VRRP (IP protocol 112) does not pass between them"
        ]
    # One that was not reached may have it.
    return ["no load balancer has the virtual address"] if len(known) == len(balancers) else []


def _node(
    name: str,
    url: str | None,
    said: dict[str, Any] | None,
    health: dict[str, Any] | None,
    error: str | None,
    *,
    known: bool,
) -> dict[str, Any]:
    """Join what the registry and the node itself say; `known` tells whether Redis was readable."""
    said, answer = said or {}, health or {}
    connections = answer.get("connections", said.get("connections"))
    node = {
        "name": name,
        "url": url,
        "live": said.get("live", False) if known else None,
        "state": said.get("state"),
        "health": answer.get("status"),
        "reachable": health is not None,
        "error": error,
        "connections": None if connections is None else int(connections),
        "version": answer.get("version", said.get("version")),
        "uptime": answer.get("uptime", said.get("uptime")),
        "heartbeat_age": said.get("heartbeat_age"),
    }
    return {**node, "problem": _node_problem(node, registered=bool(said), known=known)}


def _node_problem(node: dict[str, Any], *, registered: bool, known: bool) -> str | None:
    if not node["reachable"]:
        return f"{node['url'] or 'it'} does not answer /health" + (
            f": {node['error']}" if node["error"] else ""
        )
    if known and not registered:
        return "it is not in the registry"
    if known and not node["live"]:
        return f"no sign of life for {node['heartbeat_age']} s"
    if node["health"] not in ("healthy", *DRAIN_STATES):
        return f"it says that it is {node['health']}"
    if node["state"] not in (None, "ready", *DRAIN_STATES):
        return f"it takes no new clients: {node['state']}"
    return None


def _views(
    nodes: list[dict[str, Any]], servers: list[dict[str, Any]], redis: dict[str, Any]
) -> list[Any]:
    node_columns = ("name", "live", "health", "state", "connections", "version", "uptime")
    megabytes = redis["used_memory"] / 2**20 if redis["reachable"] else None
    return [
        table(
            "nodes",
            ("node", "live", "health", "state", ">connections", "version", ">uptime s"),
            ([node[column] for column in node_columns] for node in nodes),
        ),
        table(
            "load balancers",
            ("balancer", "backend/server", "status", ">sessions", "last check", ">since s"),
            (
                (
                    row["loadbalancer"],
                    f"{row['backend']}/{row['server']}",
                    row["status"],
                    row["sessions"],
                    row["check"],
                    row["seconds_in_status"],
                )
                for row in servers
            ),
        ),
        table(
            "redis",
            (
                "role",
                ">replicas",
                "version",
                ">memory MB",
                ">clients",
                ">ops/s",
                ">state:*",
                ">connection:*",
            ),
            [
                (
                    redis["role"],
                    redis["replicas"],
                    redis["version"],
                    megabytes,
                    redis["connected_clients"],
                    redis["operations_per_second"],
                    redis["state_keys"],
                    redis["connection_keys"],
                )
            ],
        ),
    ]
