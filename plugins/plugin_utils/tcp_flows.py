"""Where the services of a cluster listen, and which hosts connect to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from .addresses import netloc
from .inventory_hosts import GROUPS, Groups, Host, HostVars, hosts_of


def listening_ports(host: Host, groups: Groups) -> list[tuple[int, str]]:
    """Return the TCP ports that a host's services listen on, with the variable of each."""
    wanted: list[tuple[int, str]] = []
    if host.name in groups.get("wsnodes", ()):
        wanted += [(port, "wsnode_port") for port in host.wsnode_ports]
        wanted += [(port, "wsnode_internal_port") for port in host.wsnode_internal_ports]
    replicated = len(list(groups.get("redis", ()))) > 1
    for group, variables in {
        "redis": ["redis_port", *(["sentinel_port"] if replicated else [])],
        "loadbalancers": [
            "haproxy_port",
            "haproxy_stats_port",
            *(["haproxy_tls_port"] if host.has_tls else []),
            *(["haproxy_acme_port"] if host.get("haproxy_acme_port") else []),
            *(["autoscale_metrics_port"] if host.get("autoscale_enabled") else []),
        ],
        "monitoring": [
            "monitoring_prometheus_port",
            "monitoring_alertmanager_port",
            "monitoring_redis_exporter_port",
            "journal_port",
        ],
    }.items():
        if host.name in groups.get(group, ()):
            wanted += [(int(host.get(variable)), variable) for variable in variables]
    if groups.get("monitoring"):
        wanted.append((int(host.get("node_exporter_port")), "node_exporter_port"))
    return wanted


def targets(
    nodes: list[dict[str, Any]], groups: Groups, hostvars: HostVars
) -> dict[str, list[dict[str, str]]]:
    """Return the targets of Prometheus, by job: names, the same in all jobs, and addresses."""

    def ports(group: str, variable: str, only: str = "") -> list[dict[str, str]]:
        return [
            {"name": host.name, "address": netloc(host.address, host.get(variable))}
            for host in hosts_of(groups, group, hostvars)
            if not only or host.get(only)
        ]

    def servers(variable: str) -> list[dict[str, str]]:
        return [
            {
                "name": host.name,
                "address": f"{host.redis_scheme}://{netloc(host.address, host.get(variable))}",
            }
            for host in hosts_of(groups, "redis", hostvars)
        ]

    redis = servers("redis_port")
    machines = {
        target["name"]: target
        for group in (*GROUPS, "monitoring")
        for target in ports(group, "node_exporter_port")
    }
    return {
        "wsfleet": [
            {
                "name": node["name"],
                "address": netloc(node["address"], node["internal_port"]),
                "scheme": urlsplit(node["url"]).scheme,
            }
            for node in nodes
        ],
        "haproxy": ports("loadbalancers", "haproxy_stats_port"),
        "autoscale": ports("loadbalancers", "autoscale_metrics_port", only="autoscale_enabled"),
        "redis": redis,
        "sentinel": servers("sentinel_port") if len(redis) > 1 else [],
        "node": list(machines.values()),
    }


def flows(groups: Groups, hostvars: HostVars) -> dict[str, list[dict[str, Any]]]:
    """Return, by host, its open TCP ports and the addresses that may connect to them."""
    members = {group: hosts_of(groups, group, hostvars) for group in (*GROUPS, "monitoring")}

    def addresses(hosts: Iterable[Host]) -> list[str]:
        return [host.address for host in hosts]

    watchers, redis = addresses(members["monitoring"]), addresses(members["redis"])
    balancers = addresses(members["loadbalancers"])
    scalers = [host for host in members["loadbalancers"] if host.get("autoscale_enabled")]
    rebalancers = [host for host in members["loadbalancers"] if host.get("rebalance_enabled")]
    # Where wsfleet is, which asks everybody.
    commands = addresses([*members["wsnodes"], *scalers, *rebalancers])
    flows: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def open_ports(host: Host, what: str, ports: Iterable[Any], sources: list[str] | None) -> None:
        flows[host.name].append(
            {
                "what": what,
                "ports": [int(port) for port in ports],
                "public": sources is None,
                "sources": sources or [],
            }
        )

    for host in members["loadbalancers"]:
        public = ["haproxy_port", *(["haproxy_tls_port"] if host.has_tls else [])]
        open_ports(host, "clients", map(host.get, public), None)
        if port := host.get("haproxy_acme_port"):
            open_ports(host, "ACME client", [port], balancers)
        open_ports(host, "HAProxy's stats", [host.get("haproxy_stats_port")], watchers + commands)
    for host in scalers:
        open_ports(host, "autoscaler", [host.get("autoscale_metrics_port")], watchers)
    for host in members["wsnodes"]:
        open_ports(host, "nodes", host.wsnode_ports, balancers + commands)
        private = balancers + watchers + commands
        open_ports(host, "nodes' private ports", host.wsnode_internal_ports, private)
    for host in members["redis"]:
        ports = ["redis_port", *(["sentinel_port"] if len(redis) > 1 else [])]
        open_ports(host, "Redis", map(host.get, ports), redis + watchers + commands)
    for host in members["monitoring"]:
        ports = ["monitoring_prometheus_port", "monitoring_alertmanager_port"]
        open_ports(host, "Prometheus", map(host.get, ports), [])
    everybody = {host.name: host for hosts in members.values() for host in hosts}.values()
    for host in members["monitoring"][:1]:
        open_ports(host, "journals", [host.get("journal_port")], addresses(everybody))
    for host in everybody:
        if watchers:
            open_ports(host, "machine", [host.get("node_exporter_port")], watchers)
        flows.setdefault(host.name, [])
    return dict(flows)


def talks(groups: Groups, hostvars: HostVars) -> dict[str, list[dict[str, Any]]]:
    """Return, by host, the addresses and ports of other hosts that it connects to."""
    by_host = flows(groups, hostvars)
    addresses = {name: Host(name, hostvars[name]).address for name in by_host}
    talks: dict[str, list[dict[str, Any]]] = {}
    for name, address in addresses.items():
        ports = {
            other: {port for flow in theirs if address in flow["sources"] for port in flow["ports"]}
            for other, theirs in by_host.items()
            if other != name
        }
        talks[name] = [
            {"address": addresses[other], "ports": sorted(open_to)}
            for other, open_to in ports.items()
            if open_to
        ]
    return talks


def listens(groups: Groups, hostvars: HostVars) -> dict[str, dict[str, str]]:
    """Return, by host, the addresses that its services listen on, each with its variable."""
    variables = {
        "loadbalancers": ["haproxy_bind", "haproxy_stats_bind"],
        "redis": ["redis_bind", "sentinel_bind"],
        "monitoring": ["monitoring_bind"],
    }
    everybody = [name for group in (*GROUPS, "monitoring") for name in groups.get(group, ())]
    listens = {
        name: {Host(name, hostvars[name]).address: "fleet_address"}
        for name in dict.fromkeys(everybody)
    }
    for group, names in variables.items():
        for host in hosts_of(groups, group, hostvars):
            virtual = host.get("keepalived_virtual_address")
            for name in (*names, "node_exporter_bind"):
                for address in host.addresses(name):
                    if address != virtual:
                        listens[host.name].setdefault(address, name)
    return listens
