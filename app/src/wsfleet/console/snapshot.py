"""The state of the cluster, read from Redis, the balancers and the Sentinels by one node."""

import asyncio
import ssl
import time
from functools import cached_property
from typing import Any

import httpx
from pydantic import ValidationError
from redis.exceptions import RedisError

from wsfleet.cluster import haproxy_stats
from wsfleet.cluster.node_state import DRAIN, DRAIN_STATES, READY, NodeState
from wsfleet.config.fleet_file import Hosts
from wsfleet.config.redis_url import Address
from wsfleet.console import samples
from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.store import AnyPrimary, UnavailableError

TIMEOUT = 3.0
"""Timeout of a balancer's answer, in seconds."""

MAINT, DOWN, NOT_READY, UNKNOWN = "maint", "down", "not ready", "unknown"
STATES = (READY, NodeState.STARTING.value, *DRAIN_STATES)
"""States in the registry; any other text there is the reason why a node is not ready."""

Answer = dict[str, Any]


class LastReadyNodeError(Exception):
    """A refusal to drain the last ready node: its clients would have no other node."""


class Cluster:
    """A reader of the cluster's state, without a cache; a server that is down is in the result."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._topology = node.store.topology

    async def look(self) -> Answer:
        """Return the data of the page."""
        hosts = self._hosts()
        registry, redis, balancers, dead_handlers = await asyncio.gather(
            self._registry(hosts), self._redis(), self._balancers(hosts), self._dead_handlers()
        )
        names = {*registry["nodes"], *(hosts.nodes if hosts else ())}
        names |= {name for balancer in balancers for name in balancer["servers"]}
        nodes = [_node(name, registry, balancers) for name in sorted(names)]
        problems = [
            *(
                f"{node['name']} is {node['reason'] or node['state']}"
                for node in nodes
                if _ill(node)
            ),
            *(
                f"{balancer['name']}: {balancer['error']}"
                for balancer in balancers
                if balancer["error"]
            ),
            *dead_handlers,
            *redis["problems"],
        ]
        if nodes and all(node["state"] in DRAIN_STATES for node in nodes):
            problems.append("no node takes clients: all of them are drained")
        return {
            "problems": problems,
            "balancers": balancers,
            "nodes": nodes,
            "redis": redis,
            "series": samples.series(registry["samples"]),
        }

    async def want(self, name: str, wanted: str, *, force: bool) -> None:
        """Set the desired state of a node, `DRAIN` or `SERVE`.

        Raises:
            KeyError: the node is unknown.
            LastReadyNodeError: no other node is ready to take its clients, and `force` is off.
            UnavailableError: Redis is unavailable.
        """
        known, hosts = await self._node.registry.nodes(), self._hosts()
        if name not in known and (hosts is None or name not in hosts.nodes):
            raise KeyError(name)
        if wanted == DRAIN and not force:
            ready = [other for other, said in known.items() if said.get("state") == READY]
            if not set(ready) - {name}:
                raise LastReadyNodeError
        await self._node.registry.want(name, wanted)

    def _hosts(self) -> Hosts | None:
        """Read the file of hosts, which changes at run time; None if it is missing or invalid."""
        try:
            return Hosts.model_validate_json(self._node.settings.hosts.read_bytes())
        except (OSError, ValidationError):
            return None

    async def _registry(self, hosts: Hosts | None) -> Answer:
        """Read each node's reported state, desired state and samples."""
        answer: Answer = {"known": True, "nodes": {}, "wanted": {}, "dead": set(), "samples": {}}
        registry = self._node.registry
        try:
            nodes, wanted = await asyncio.gather(registry.nodes(), registry.wanted())
            dead, history = await asyncio.gather(
                asyncio.gather(*(registry.is_dead(name) for name in nodes)),
                samples.read(self._node.store, sorted({*nodes, *(hosts.nodes if hosts else ())})),
            )
        except (UnavailableError, RedisError):
            return answer | {"known": False}
        return answer | {
            "nodes": nodes,
            "wanted": wanted,
            "dead": {name for name, gone in zip(nodes, dead, strict=True) if gone},
            "samples": history,
        }

    async def _dead_handlers(self) -> list[str]:
        """Return a line for each process of handlers that died; Redis knows it for an hour."""
        store, key = self._node.store, key_names.HANDLERS
        try:
            names = [name.decode() for name in await store.call("ZRANGE", key, 0, -1)]
            silences = await asyncio.gather(
                *(store.function("silence", [key], name) for name in names)
            )
        except (UnavailableError, RedisError):
            return []  # as `_redis` says
        return [
            f"handlers {name}: no heartbeat for {silence // 1000} s"
            for name, silence in zip(names, silences, strict=True)
            if silence > 1000 * self._node.settings.node_dead_after
        ]

    async def _balancers(self, hosts: Hosts | None) -> list[Answer]:
        urls = hosts.loadbalancers if hosts else {}
        if not urls:
            return []
        async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, verify=self._tls) as client:
            return await asyncio.gather(
                *(_balancer(client, name, url) for name, url in urls.items())
            )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def _redis(self) -> Answer:
        """Return the state of the servers that this node's URL leads to."""
        primaries = self._node.store.primaries
        servers: list[Answer] = []
        problems: list[str] = []
        try:
            for shard in await asyncio.gather(*(_shard(primary) for primary in primaries)):
                servers += shard
        except (UnavailableError, RedisError) as error:
            problems.append(f"Redis: {error}")
        if not self._node.store.connected:
            problems = ["Redis: this node has no connection to a primary"]
        sentinels = await self._sentinels(servers)
        problems += [
            f"Redis {server['address']} is {server['state']}"
            for server in servers
            if server["state"] != "up"
        ]
        problems += [
            f"Sentinel {each['address']} does not answer" for each in sentinels if not each["up"]
        ]
        return {
            "kind": self._topology.url.kind,
            "servers": servers,
            "sentinels": sentinels,
            "problems": problems,
        }

    async def _sentinels(self, servers: list[Answer]) -> list[Answer]:
        """Return the Sentinels' state; add replicas that only the Sentinels know to the servers."""
        if self._topology.url.kind != "sentinel":
            return []
        addresses = self._topology.url.addresses
        answers = await asyncio.gather(
            *(self._topology.replicas(address) for address in addresses), return_exceptions=True
        )
        known: dict[Address, None] = {}
        for answer in answers:
            if not isinstance(answer, BaseException):
                known |= dict.fromkeys(answer)
        seen = {server["address"] for server in servers}
        servers += [
            {"address": str(address), "role": "replica", "state": "down"}
            for address in known
            if str(address) not in seen
        ]
        return [
            {"address": str(address), "up": not isinstance(answer, BaseException)}
            for address, answer in zip(addresses, answers, strict=True)
        ]


async def _shard(primary: AnyPrimary) -> list[Answer]:
    """Return the state of a primary and its replicas, from the primary's INFO."""
    info = await primary.info()
    replicas = [info[f"slave{n}"] for n in range(info["connected_slaves"])]
    return [
        {
            "address": str(primary),
            "role": "primary",
            "state": "loading its data" if info.get("loading") else "up",
            "version": info["redis_version"],
            "memory": info["used_memory"],
            "operations": info["instantaneous_ops_per_sec"],
            "clients": info["connected_clients"],
        },
        *(
            {
                "address": str(Address(replica["ip"], replica["port"])),
                "role": "replica",
                "state": "up" if replica["state"] == "online" else "not in sync yet",
                "lag": replica["lag"],
            }
            for replica in replicas
        ),
    ]


async def _balancer(client: httpx.AsyncClient, name: str, url: str) -> Answer:
    answer: Answer = {"name": name, "error": None, "sessions": None, "servers": {}}
    try:
        rows = await haproxy_stats.statistics(client, url)
    except httpx.HTTPError as error:
        return answer | {"error": f"no statistics: {str(error) or type(error).__name__}"}
    servers = {row["server"]: row["status"] for row in haproxy_stats.servers(rows)}
    return answer | {"sessions": haproxy_stats.sessions(rows), "servers": servers}


def _node(name: str, registry: Answer, balancers: list[Answer]) -> Answer:
    """Return a node's state, joined from its own report and the balancers' checks."""
    said = registry["nodes"].get(name, {})
    checks = {
        balancer["name"]: balancer["servers"][name]
        for balancer in balancers
        if name in balancer["servers"]
    }
    state, reason = UNKNOWN, ""
    if registry["known"]:
        state = said.get("state", DOWN)
        if name in registry["dead"]:
            state = DOWN
        elif state not in (*STATES, DOWN):
            state, reason = NOT_READY, state
    if checks and all(status.startswith("MAINT") for status in checks.values()):
        state = MAINT
    history = registry["samples"].get(name)
    last = history[max(history)] if history and state not in (DOWN, UNKNOWN) else None
    return {
        "name": name,
        "state": state,
        "reason": reason,
        "wanted": registry["wanted"].get(name),
        "connections": 0 if state == DOWN else int(said.get("connections", 0)),
        "shedding": 0 if state == DOWN else int(said.get("shedding", 0)),
        "limit": last.limit if last else None,
        "received": round(last.received / last.seconds, 1) if last else None,
        "delivered": round(last.delivered / last.seconds, 1) if last else None,
        "cpu": float(said["cpu"]) if "cpu" in said and state != DOWN else None,
        "version": said.get("version"),
        "uptime": max(0, round(time.time() - float(said["started"])))
        if "started" in said
        else None,
        "balancers": checks,
    }


def _ill(node: Answer) -> bool:
    return node["state"] in (DOWN, NOT_READY)
