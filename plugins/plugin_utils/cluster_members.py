"""The members of a cluster, as its inventory describes them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.loader import connection_loader

from .addresses import netloc
from .inventory_hosts import GROUPS, Groups, Host, HostVars, ReadOnce, hosts_of
from .redis_access import passwords_of, redis_url
from .tcp_flows import flows, listening_ports, listens, talks, targets


def fleet_members(groups: Groups, hostvars: HostVars, ca: str = "") -> dict[str, Any]:
    """Describe the cluster: node processes, balancers and Redis servers, and where they are.

    `ca` is where those who speak TLS with it find the CA. Only `hostnames` come from the
    machines: those that this run has read (fleet_machine).
    """
    hostvars = ReadOnce(hostvars, ReadOnce)
    redis = hosts_of(groups, "redis", hostvars)
    loadbalancers = hosts_of(groups, "loadbalancers", hostvars)
    collectors = hosts_of(groups, "monitoring", hostvars)[:1]
    first = loadbalancers[0].get("keepalived_virtual_address") if loadbalancers else ""
    everybody = [
        host for group in (*GROUPS, "monitoring") for host in hosts_of(groups, group, hostvars)
    ]
    nodes = [
        node for host in hosts_of(groups, "wsnodes", hostvars) for node in node_processes(host)
    ]
    return {
        "virtual_address": str(first or ""),
        "targets": targets(nodes, groups, hostvars),
        "flows": flows(groups, hostvars),
        "listens": listens(groups, hostvars),
        "talks": talks(groups, hostvars),
        "ports": {
            name: dict(sorted(listening_ports(Host(name, hostvars[name]), groups)))
            for name in cluster_hosts(groups)
        },
        "roles": {
            name: host_roles(Host(name, hostvars[name]), groups) for name in cluster_hosts(groups)
        },
        "base_url": _base_url(loadbalancers),
        "cookie": loadbalancers[0].get("haproxy_cookie") if loadbalancers else "",
        "stickiness": loadbalancers[0].get("haproxy_stickiness") if loadbalancers else "",
        "nodes": nodes,
        "handlers": [
            name for host in hosts_of(groups, "wsnodes", hostvars) for name in handlers(host)
        ],
        "loadbalancers": [loadbalancer(host) for host in loadbalancers],
        "redis": [redis_server(host) for host in redis],
        "tls": any(
            host.get("fleet_tls") for group in GROUPS for host in hosts_of(groups, group, hostvars)
        ),
        "redis_urls": {user: redis_url(redis, user, ca) for user in ("cli", "node")},
        "redis_passwords": passwords_of(redis, ("app", "proxy")),
        "journal": netloc(collectors[0].address, collectors[0].get("journal_port"))
        if collectors
        else "",
        "logs": _shell(collectors[0]) if collectors else [],
        "hostnames": {
            host.name: str(machine["hostname"])
            for host in everybody
            if (machine := host.get("fleet_machine")) and "hostname" in machine
        },
    }


def fleet_hostnames(found: Mapping[str, str], path: str, hosts: Iterable[str]) -> dict[str, str]:
    """Add the hostnames that this run does not gather, as the fleet file on this machine has them.

    A host that is not in the inventory is left out.
    """
    try:
        before = json.loads(Path(path).read_text())["hosts"]
        known = {**before, **found}
    except (OSError, ValueError, KeyError, TypeError):  # the first run, or a file that is replaced
        known = dict(found)
    return {host: known[host] for host in hosts if host in known}


def cluster_hosts(groups: Groups) -> list[str]:
    """Return the names of all hosts of the cluster, with its monitoring."""
    names = [name for group in (*GROUPS, "monitoring") for name in groups.get(group, ())]
    return list(dict.fromkeys(names))


def host_roles(host: Host, groups: Groups) -> list[str]:
    """Return the roles with packages that `playbooks/site.yml` uses on a host."""

    def holds(group: str) -> bool:
        return host.name in groups.get(group, ())

    balances, monitored = holds("loadbalancers"), bool([*groups.get("monitoring", ())])
    commands = balances and (host.get("autoscale_enabled") or host.get("rebalance_enabled"))
    used = {
        "firewall": host.get("firewall_enabled"),
        "redis": holds("redis"),
        "sentinel": holds("redis") and len([*groups["redis"]]) > 1,
        "wsnode": holds("wsnodes") or commands,
        "haproxy": balances or (holds("wsnodes") and host.get("wsnode_app_redis")),
        "keepalived": balances and host.get("keepalived_virtual_address"),
        "node_exporter": monitored,
        "journal": monitored,
        "monitoring": holds("monitoring"),
    }
    return [role for role, is_used in used.items() if is_used]


def node_processes(host: Host) -> list[dict[str, Any]]:
    """Describe a host's node processes; `url` is where the cluster's own requests go."""
    tls = bool(host.get("fleet_tls"))
    return [
        {
            "name": f"{host.wsnode_host_name}-{port}",
            "host": host.wsnode_host_name,
            "address": host.address,
            "port": port,
            "internal_port": internal_port,
            "tls": tls,
            "weight": int(host.get("wsnode_weight")),
            "url": f"{'https' if tls else 'http'}://{netloc(host.address, internal_port)}",
        }
        for port, internal_port in zip(host.wsnode_ports, host.wsnode_internal_ports, strict=True)
    ]


def handlers(host: Host) -> list[str]:
    """Return the names of a host's processes of the application's handlers."""
    count = int(host.get("wsnode_app_processes")) if host.get("wsnode_app") else 0
    return [f"{host.wsnode_host_name}-app-{number}" for number in range(1, count + 1)]


def loadbalancer(host: Host) -> dict[str, Any]:
    """Describe a balancer."""
    return {
        "name": host.name,
        "address": host.address,
        "url": _http(host.address, host.get("haproxy_port")),
        "stats_url": _http(host.address, host.get("haproxy_stats_port")),
    }


def redis_server(host: Host) -> dict[str, Any]:
    """Describe a host's Redis and Sentinel."""
    return {
        "name": host.name,
        "address": host.address,
        "port": int(host.get("redis_port")),
        "sentinel_port": int(host.get("sentinel_port")),
        "sentinel_master": str(host.get("sentinel_master")),
        "tls": bool(host.get("fleet_tls")),
        "min_replicas": int(host.get("redis_min_replicas_to_write")),
    }


def _base_url(loadbalancers: list[Host]) -> str:
    """Return the URL that clients connect to."""
    if not loadbalancers:
        return ""
    first = loadbalancers[0]
    address = first.get("keepalived_virtual_address") or first.address
    if first.get("fleet_base_url"):
        return str(first.get("fleet_base_url"))
    if first.has_tls and first.get("haproxy_tls_redirect"):
        return f"https://{netloc(address, first.get('haproxy_tls_port'))}".removesuffix(":443")
    return _http(address, first.get("haproxy_port"))


def _http(address: str, port: Any) -> str:
    return f"http://{netloc(address, port)}".removesuffix(":80")


def _shell(host: Host) -> list[str]:
    """Return a command that runs a shell command on a host, over the connection of Ansible.

    Ansible computes the options: from the host's variables by all their names, the command line,
    the environment and ansible.cfg.
    """
    if host.get("ansible_connection") == "local":
        return ["sh", "-c"]
    connection_loader.get("ssh", class_only=True)  # which makes its options known

    def option(name: str) -> Any:
        return constants.config.get_config_value(
            name, plugin_type="connection", plugin_name="ssh", variables=host.variables
        )

    command = [str(option("ssh_executable")), "-o", "BatchMode=yes"]
    command += shlex.split(option("ssh_args") or "")
    if option("host_key_checking") is False:
        command += ["-o", "StrictHostKeyChecking=no"]
    if port := option("port"):
        command += ["-p", str(port)]
    if key := option("private_key_file"):
        command += ["-i", str(Path(key).expanduser().absolute())]
    if user := option("remote_user"):
        command += ["-l", str(user)]
    command += ["-o", f"ConnectTimeout={option('timeout')}"]
    for name in ("ssh_common_args", "ssh_extra_args"):
        command += shlex.split(option(name) or "")
    return [*command, str(option("host"))]
