"""A summary of the fleet's Redis: role, replicas, memory, number of keys, and the registry."""

from collections.abc import Mapping
from typing import Any

from wsfleet.cli.access.redis import connected, registry, server_infos, shown
from wsfleet.cli.errors import CannotRun
from wsfleet.config.redis_url import RedisURL
from wsfleet.redis import key_names

_UNKNOWN: Mapping[str, Any] = {
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
}


def redis_summary(url: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the summary of a Redis, and its registry of nodes by name.

    If Redis is unreachable, the summary's `error` is the reason and the registry is empty.
    """
    summary: dict[str, Any] = {"url": shown(url), **_UNKNOWN}
    try:
        with connected(url) as client:
            infos = server_infos(client)
            problems = [problem for info in infos if (problem := _problem(info))]
            replicas = _sum(infos, "connected_slaves")
            if RedisURL.parse(url).kind == "sentinel" and not replicas:
                problems.append("its primary has no replica: a failure would lose its data")
            summary |= {
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
            return summary, registry(client)
    except CannotRun as error:
        return summary | {"error": str(error.message)}, {}


def _sum(infos: list[dict[str, Any]], field: str) -> int:
    return sum(info.get(field) or 0 for info in infos)


def _problem(info: Mapping[str, Any]) -> str | None:
    """Return the first problem that INFO shows, or None."""
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
