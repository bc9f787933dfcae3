"""The mistakes in an inventory."""

from __future__ import annotations

import re
from collections import defaultdict

from .address_mistakes import address_mistakes, virtual_address_mistakes
from .application_variables import application_mistakes, key_mistakes
from .balancer_mistakes import certificate_mistakes, front_mistakes
from .cluster_members import loadbalancer, node_processes, redis_server
from .inventory_hosts import GROUPS, Groups, Host, HostVars, listed
from .tcp_flows import listening_ports
from .tls_mistakes import tls_mistakes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,57}")
"""A node name becomes a cookie value and a HAProxy server name; `-PORT` follows it."""
SHORTEST_PASSWORD = 16
"""All passwords are derived from one: with one user's, that one can be guessed offline."""
OPEN_FILES = 1_048_576
"""The most open files that the kernel allows a process (fs.nr_open)."""
SPARE_FILES = 5000
"""As `fleet_spare_files`."""
SOURCE_PORTS = 54_000
"""Of one balancer to one node process, by net.ipv4.ip_local_port_range of the role `base`."""
_TOO_MANY_FILES = f"a process may have {OPEN_FILES} open files (fs.nr_open)"
LIMITS = (
    ("loadbalancers", "haproxy_maxconn", (OPEN_FILES - SPARE_FILES) // 2, _TOO_MANY_FILES),
    (
        "wsnodes",
        "wsnode_max_connections",
        SOURCE_PORTS,
        "a balancer has no more ports for its connections to one process",
    ),
    ("wsnodes", "wsnode_weight", 256, "HAProxy has no greater weight"),
    ("redis", "redis_maxclients", OPEN_FILES - SPARE_FILES, _TOO_MANY_FILES),
)
"""By group: the variable with the number of connections, its maximum, and the reason."""


def fleet_mistakes(groups: Groups, hostvars: HostVars) -> list[str]:
    """List the mistakes in the inventory, each with the change that mends it."""
    others = sorted(set(groups) - {*GROUPS, "monitoring", "all", "ungrouped"})
    hint = f" The inventory has the groups {listed(others)}." if others else ""
    mistakes = [
        f"The group '{group}' has no host ({purpose}): add one to the inventory.{hint}"
        for group, purpose in GROUPS.items()
        if not groups.get(group)
    ]
    count = len(list(groups.get("redis", ())))
    if count and count % 2 == 0:
        mistakes.append(
            f"The group 'redis' has {count} hosts: the failure of {count // 2} leaves no majority, "
            f"and stops Redis. Use {count - 1} or {count + 1} hosts."
        )
    readable: list[Host] = []
    used = (*GROUPS, "monitoring")
    for name in dict.fromkeys(name for group in used for name in groups.get(group, ())):
        host = Host(name, hostvars[name])
        mistakes += host.removed_mistakes
        if wrong := host.type_mistakes:
            mistakes += wrong
            continue
        try:
            node_processes(host), loadbalancer(host), redis_server(host)
        except Exception as error:  # templates and int() fail in many ways
            mistakes.append(f"A variable of the host '{name}' cannot be read: {error}")
        else:
            readable.append(host)
    nodes, redis = (
        [host for host in readable if host.name in groups.get(group, ())]
        for group in ("wsnodes", "redis")
    )
    return [
        *mistakes,
        *address_mistakes(readable),
        *virtual_address_mistakes(readable, groups),
        *_name_mistakes(nodes),
        *application_mistakes(
            {host.name: host.get for host in nodes},
            {host.name: str(host.variables.get("inventory_dir") or "") for host in nodes},
        ),
        *key_mistakes({host.name: host.get for host in redis}),
        *_port_mistakes(readable, groups),
        *_limit_mistakes(readable, groups),
        *_password_mistakes(redis),
        *certificate_mistakes(
            [host for host in readable if host.name in groups.get("loadbalancers", ())]
        ),
        *tls_mistakes(readable, groups),
        *front_mistakes(
            [host for host in readable if host.name in groups.get("loadbalancers", ())]
        ),
    ]


def _name_mistakes(nodes: list[Host]) -> list[str]:
    mistakes = [
        f"The wsnode_host_name '{host.wsnode_host_name}' of the host '{host.name}' is not valid in "
        "a cookie: use up to 58 letters, digits, '.', '_' and '-'."
        for host in nodes
        if not NAME.fullmatch(host.wsnode_host_name)
    ]
    by_name = defaultdict(list)
    for host in nodes:
        for port in host.wsnode_ports:
            by_name[f"{host.wsnode_host_name}-{port}"].append(host.name)
    shared = {tuple(hosts): name for name, hosts in by_name.items() if len(hosts) > 1}
    mistakes += [
        f"The hosts {listed(hosts)} have the same cookie, {name}: give each its own "
        "wsnode_host_name."
        for hosts, name in shared.items()
    ]
    return mistakes


def _port_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    mistakes = []
    for host in hosts:
        if host.name in groups.get("wsnodes", ()) and len(host.wsnode_ports) < 1:
            mistakes.append(f"wsnode_processes of the host '{host.name}' must be 1 or more.")
        users = defaultdict(list)
        for port, variable in listening_ports(host, groups):
            users[port].append(variable)
            if not 0 < port < 65536:
                mistakes.append(f"{variable} of the host '{host.name}' is no port: {port}.")
        mistakes += [
            f"Port {port} of the host '{host.name}' is wanted twice, by {listed(variables)}: "
            "change one of them."
            for port, variables in users.items()
            if len(variables) > 1
        ]
    return mistakes


def _limit_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    """List limits that the kernel or another setting does not allow."""
    mistakes = []
    for host in hosts:
        for group, variable, most, why in LIMITS:
            if host.name in groups.get(group, ()) and not 0 < host.get(variable) <= most:
                mistakes.append(
                    f"{variable} of the host '{host.name}' is {host.get(variable)}, and must be "
                    f"between 1 and {most}: {why}."
                )
        if host.get("autoscale_enabled") and host.name in groups.get("loadbalancers", ()):
            nodes = [node for node in hosts if node.name in groups.get("wsnodes", ())]
            least = min((node.get("wsnode_max_connections") for node in nodes), default=None)
            high = host.get("autoscale_connections_high")
            if least is not None and high >= least:
                mistakes.append(
                    f"autoscale_connections_high of the host '{host.name}' is {high}, but a node "
                    f"accepts {least} connections (wsnode_max_connections): use a lower value."
                )
    return mistakes


def _password_mistakes(redis: list[Host]) -> list[str]:
    mistakes = [
        f"redis_password is empty for the host '{host.name}': set it (with ansible-vault), or set "
        "redis_allow_no_password: true where no other machine can reach Redis."
        for host in redis
        if not host.get("redis_password") and not host.get("redis_allow_no_password")
    ]
    mistakes += [
        f"redis_password of the host '{host.name}' is too short: use at least {SHORTEST_PASSWORD} "
        "random characters, for instance from `openssl rand -base64 24`."
        for host in redis
        if 0 < len(host.get("redis_password") or "") < SHORTEST_PASSWORD
    ]
    for variable in ("redis_password", "sentinel_master"):
        if len({host.get(variable) for host in redis}) > 1:
            mistakes.append(
                f"{variable} differs between the hosts of the group 'redis': set it once, for the "
                "group."
            )
    return mistakes
