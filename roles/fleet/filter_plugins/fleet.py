"""The members of a cluster, and the mistakes in its inventory.

All values come from inventory variables. A variable that the inventory does not set has the role's
default: it is read from the role's file, because Ansible knows it only while that role runs.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

# Ansible loads a filter by its file: modules that filters share are not found without this.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plugin_utils"))

from addresses import (
    all_addresses,
    interface_of,
    interface_towards,
    is_ip,
    missing_addresses,
    netloc,
)
from ansible import constants
from ansible.plugins.loader import connection_loader
from application_variables import application_mistakes, key_mistakes
from refusal import refusal
from role_variables import REMOVED, WrongTypeError, defaults, options, typed

GROUPS = {
    "loadbalancers": "HAProxy",
    "wsnodes": "the WebSocket nodes",
    "redis": "the shared state",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,57}")
"""A node name becomes a cookie value and a HAProxy server name; `-PORT` follows it."""

REDIS_USERS = ("admin", "app", "cli", "exporter", "node", "proxy", "replica", "sentinel")
"""What each may do is in the vars of the roles `redis` and `sentinel`."""
SHORTEST_PASSWORD = 16
"""All passwords are derived from one: with one user's, that one can be guessed offline."""

OPEN_FILES = 1_048_576
"""What the kernel allows a process (fs.nr_open)."""
SPARE_FILES = 5000
"""As `fleet_spare_files`."""
INTERNAL_PORTS = 1000
"""From `wsnode_port` to `wsnode_internal_port`, as in the defaults of the role `wsnode`."""
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
    ("redis", "redis_maxclients", OPEN_FILES - SPARE_FILES, _TOO_MANY_FILES),
)
"""By group: the variable with the number of connections, its maximum, and the reason."""

SAME_ON_BALANCERS = (
    "haproxy_acme_port",
    "haproxy_cookie",
    "haproxy_cookie_samesite",
    "haproxy_cookie_secure",
    "haproxy_stickiness",
)
STICKINESS = re.compile(
    r"cookie|source|path( [1-9]\d?)?|header [A-Za-z0-9!#$&'*+.^_`|~-]+|query [A-Za-z0-9._~-]+"
)
"""Header names are tokens of RFC 9110, section 5.6.2; `%` HAProxy would not take."""
PATH = re.compile(r"/[A-Za-z0-9._~!$&*+,;=:@/%-]*")

Groups = Mapping[str, Iterable[str]]
Variables = Mapping[str, Any]
HostVars = Mapping[str, Variables]


class Host:
    """One host's variables, with the roles' defaults."""

    def __init__(self, name: str, variables: Variables) -> None:
        self.name = name
        self.variables = variables

    def get(self, key: str) -> Any:
        """The host's own value, or the default, in its type; never a default that is a template.

        Raises:
            WrongTypeError: the value is not, and cannot be converted to, the variable's type.
        """
        if key in self.variables:
            value = self.variables[key]
            return typed(value, key, self.name) if key in options() else value
        value = defaults().get(key)
        return None if isinstance(value, str) and "{{" in value else value

    @property
    def type_mistakes(self) -> list[str]:
        """The mistakes in the types of its variables."""
        mistakes = []
        for name in options().keys() & set(self.variables):
            try:
                typed(self.variables[name], name, self.name)
            except WrongTypeError as error:
                mistakes.append(str(error))
            except Exception:  # noqa: S112 - a template of what is known in the role alone
                continue
        return sorted(mistakes)

    @property
    def removed_mistakes(self) -> list[str]:
        """The mistakes of variables that no role has any more."""
        return [
            f"The variable {name} of the host '{self.name}' does not exist any more: remove it; "
            f"{hint}."
            for name, hint in REMOVED.items()
            if name in self.variables
        ]

    @property
    def address(self) -> str:
        """Its address for the other hosts."""
        return str(self.get("fleet_address") or self.get("ansible_host") or self.name)

    def addresses(self, key: str) -> list[str]:
        """Return the addresses in a variable, without those that are templates of a role."""
        try:
            value = self.get(key) or []
            found = [value] if isinstance(value, str) else list(value)
        except WrongTypeError:
            raise
        except Exception:  # a template of what is known in the role alone
            return []
        return [address for address in found if "{{" not in address]

    @property
    def has_tls(self) -> bool:
        """Whether its HAProxy has a certificate."""
        return bool(
            self.get("haproxy_tls_certificates") or self.get("haproxy_tls_acme_certificates")
        )

    @property
    def tls_files(self) -> dict[str, Path]:
        """The files on the control machine that it needs for TLS, by name."""
        folder = self.get("fleet_tls_directory") or f"{self.variables.get('inventory_dir')}/tls"
        return {
            name: Path(folder, name) for name in ("ca.pem", f"{self.name}.pem", f"{self.name}.key")
        }

    @property
    def redis_scheme(self) -> str:
        """The scheme of the URLs of its Redis and Sentinel."""
        return "rediss" if self.get("fleet_tls") else "redis"

    @property
    def wsnode_host_name(self) -> str:
        """The first part of the names of its processes."""
        return str(self.get("wsnode_host_name") or self.name)

    @property
    def wsnode_ports(self) -> range:
        """The port of each node process."""
        first = int(self.get("wsnode_port"))
        return range(first, first + int(self.get("wsnode_processes")))

    @property
    def wsnode_internal_ports(self) -> range:
        """The private port of each node process, in the order of `wsnode_ports`."""
        given = self.get("wsnode_internal_port")
        first = int(self.get("wsnode_port")) + INTERNAL_PORTS if given is None else int(given)
        return range(first, first + int(self.get("wsnode_processes")))


def _hosts(groups: Groups, group: str, hostvars: HostVars) -> list[Host]:
    return [Host(name, hostvars[name]) for name in groups.get(group, ())]


def fleet_members(groups: Groups, hostvars: HostVars, ca: str = "") -> dict[str, Any]:
    """Describe the cluster: node processes, balancers and Redis servers, and where they are.

    `ca` is where those who speak TLS with it find the CA. Only `hostnames` come from facts: of the
    hosts that this run gathers them from.
    """
    redis = _hosts(groups, "redis", hostvars)
    loadbalancers = _hosts(groups, "loadbalancers", hostvars)
    collectors = _hosts(groups, "monitoring", hostvars)[:1]
    first = loadbalancers[0].get("keepalived_virtual_address") if loadbalancers else ""
    everybody = [
        host for group in (*GROUPS, "monitoring") for host in _hosts(groups, group, hostvars)
    ]
    nodes = [node for host in _hosts(groups, "wsnodes", hostvars) for node in _nodes(host)]
    return {
        "virtual_address": str(first or ""),
        "targets": _targets(nodes, groups, hostvars),
        "flows": _flows(groups, hostvars),
        "listens": _listens(groups, hostvars),
        "talks": _talks(groups, hostvars),
        "ports": {
            name: sorted({port for port, _ in _ports(Host(name, hostvars[name]), groups)})
            for group in (*GROUPS, "monitoring")
            for name in groups.get(group, ())
        },
        "base_url": _base_url(loadbalancers),
        "cookie": loadbalancers[0].get("haproxy_cookie") if loadbalancers else "",
        "nodes": nodes,
        "loadbalancers": [_loadbalancer(host) for host in loadbalancers],
        "redis": [_redis(host) for host in redis],
        "tls": any(
            host.get("fleet_tls") for group in GROUPS for host in _hosts(groups, group, hostvars)
        ),
        "redis_urls": {user: _redis_url(redis, user, ca) for user in ("cli", "node")},
        "redis_passwords": _redis_passwords(redis, ("app", "proxy")),
        "journal": netloc(collectors[0].address, collectors[0].get("journal_port"))
        if collectors
        else "",
        "logs": _shell(collectors[0]) if collectors else [],
        "hostnames": {
            host.name: str(facts["nodename"])
            for host in everybody
            if (facts := host.get("ansible_facts")) and "nodename" in facts
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


def _targets(
    nodes: list[dict[str, Any]], groups: Groups, hostvars: HostVars
) -> dict[str, list[dict[str, str]]]:
    """Return the targets of Prometheus, by job: names, the same in all jobs, and addresses."""

    def ports(group: str, variable: str, only: str = "") -> list[dict[str, str]]:
        return [
            {"name": host.name, "address": netloc(host.address, host.get(variable))}
            for host in _hosts(groups, group, hostvars)
            if not only or host.get(only)
        ]

    def servers(variable: str) -> list[dict[str, str]]:
        return [
            {
                "name": host.name,
                "address": f"{host.redis_scheme}://{netloc(host.address, host.get(variable))}",
            }
            for host in _hosts(groups, "redis", hostvars)
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


def _flows(groups: Groups, hostvars: HostVars) -> dict[str, list[dict[str, Any]]]:
    """Return, by host, its open TCP ports and the addresses that may connect to them."""
    members = {group: _hosts(groups, group, hostvars) for group in (*GROUPS, "monitoring")}

    def addresses(hosts: Iterable[Host]) -> list[str]:
        return [host.address for host in hosts]

    watchers, redis = addresses(members["monitoring"]), addresses(members["redis"])
    balancers = addresses(members["loadbalancers"])
    scalers = [host for host in members["loadbalancers"] if host.get("autoscale_enabled")]
    commands = addresses([*members["wsnodes"], *scalers])  # where wsfleet is, which asks everybody
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


def _talks(groups: Groups, hostvars: HostVars) -> dict[str, list[dict[str, Any]]]:
    """Return, by host, the addresses and ports of other hosts that it connects to."""
    flows = _flows(groups, hostvars)
    addresses = {name: Host(name, hostvars[name]).address for name in flows}
    talks: dict[str, list[dict[str, Any]]] = {}
    for name, address in addresses.items():
        ports = {
            other: {port for flow in theirs if address in flow["sources"] for port in flow["ports"]}
            for other, theirs in flows.items()
            if other != name
        }
        talks[name] = [
            {"address": addresses[other], "ports": sorted(open_to)}
            for other, open_to in ports.items()
            if open_to
        ]
    return talks


def _listens(groups: Groups, hostvars: HostVars) -> dict[str, dict[str, str]]:
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
        for host in _hosts(groups, group, hostvars):
            virtual = host.get("keepalived_virtual_address")
            for name in (*names, "node_exporter_bind"):
                for address in host.addresses(name):
                    if address != virtual:
                        listens[host.name].setdefault(address, name)
    return listens


def _nodes(host: Host) -> list[dict[str, Any]]:
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
            "url": f"{'https' if tls else 'http'}://{netloc(host.address, internal_port)}",
        }
        for port, internal_port in zip(host.wsnode_ports, host.wsnode_internal_ports, strict=True)
    ]


def _loadbalancer(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "url": _http(host.address, host.get("haproxy_port")),
        "stats_url": _http(host.address, host.get("haproxy_stats_port")),
    }


def _shell(host: Host) -> list[str]:
    """The command that runs a shell command on a host, connected to it as Ansible is from here.

    Ansible itself says what its options are: they come from the host's variables by all their
    names, from the command line, the environment and ansible.cfg.
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


def _redis(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "port": int(host.get("redis_port")),
        "sentinel_port": int(host.get("sentinel_port")),
        "sentinel_master": str(host.get("sentinel_master")),
        "tls": bool(host.get("fleet_tls")),
        "min_replicas": int(host.get("redis_min_replicas_to_write")),
    }


def redis_passwords(secret: str) -> dict[str, str]:
    """Derive the password of each Redis user from the one in the inventory.

    No password can be derived from another user's.
    """
    return {
        user: secret and hmac.new(secret.encode(), user.encode(), "sha256").hexdigest()
        for user in REDIS_USERS
    }


def _redis_passwords(hosts: list[Host], users: Iterable[str]) -> dict[str, str]:
    """The passwords of some users, for hosts that are not in the group `redis`."""
    secret = hosts[0].get("redis_password") if hosts else ""
    passwords = redis_passwords(secret or "")
    return {user: passwords[user] for user in users}


def _redis_url(hosts: list[Host], user: str, ca: str) -> str:
    """Return a user's URL of Redis: of the server, or of the Sentinels if there are several."""
    if not hosts:
        return ""
    first = hosts[0]
    password = redis_passwords(first.get("redis_password") or "")[user]
    credentials = f"{user}:{password}@" if password else ""
    options = {"ssl_ca_certs": ca} if first.get("fleet_tls") else {}
    if len(hosts) == 1:
        where = f"://{credentials}{netloc(first.address, first.get('redis_port'))}/0"
    else:
        sentinels = ",".join(netloc(host.address, host.get("sentinel_port")) for host in hosts)
        where = f"+sentinel://{credentials}{sentinels}/{first.get('sentinel_master')}/0"
        if password:
            options = {"sentinel_username": user, "sentinel_password": password} | options
    return f"{first.redis_scheme}{where}{'?' if options else ''}{urlencode(options, safe='/')}"


def fleet_mistakes(groups: Groups, hostvars: HostVars) -> list[str]:
    """List the mistakes in the inventory, each with the change that mends it."""
    others = sorted(set(groups) - {*GROUPS, "monitoring", "all", "ungrouped"})
    hint = f" The inventory has the groups {_and(others)}." if others else ""
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
            _nodes(host), _loadbalancer(host), _redis(host)
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
        *_address_mistakes(readable),
        *_virtual_address_mistakes(readable, groups),
        *_name_mistakes(nodes),
        *application_mistakes(
            {host.name: host.get for host in nodes},
            {host.name: str(host.variables.get("inventory_dir") or "") for host in nodes},
        ),
        *key_mistakes({host.name: host.get for host in redis}),
        *_port_mistakes(readable, groups),
        *_limit_mistakes(readable, groups),
        *_password_mistakes(redis),
        *_certificate_mistakes(
            [host for host in readable if host.name in groups.get("loadbalancers", ())]
        ),
        *_tls_mistakes(readable, groups),
        *_front_mistakes(
            [host for host in readable if host.name in groups.get("loadbalancers", ())]
        ),
    ]


def _address_mistakes(hosts: list[Host]) -> list[str]:
    by_address = defaultdict(list)
    for host in hosts:
        by_address[host.address].append(host.name)
    named = [host for host in hosts if host.get("firewall_enabled") and not is_ip(host.address)]
    return (
        [
            mistake
            for host in hosts
            for mistake in _spelling_mistakes(
                f"The address of the host '{host.name}'", host.address
            )
        ]
        + [
            f"The address of the host '{host.name}' is a name, {host.address}, and the firewall "
            "needs an IP address: set fleet_address, or firewall_enabled: false."
            for host in named
        ]
        + [
            f"The hosts {_and(names)} have the same address, {address}: give each its own "
            "ansible_host or fleet_address. A machine with several roles is one host in several "
            "groups."
            for address, names in by_address.items()
            if len(names) > 1
        ]
    )


def _spelling_mistakes(what: str, address: str) -> list[str]:
    """Check the spelling: IPv6 has many of one address, and programs compare them as text."""
    if not is_ip(address):
        return []
    ip = ipaddress.ip_address(address)
    if ip.is_link_local:
        return [
            f"{what} is link-local, {address}: other hosts cannot reach it without the name of an "
            "interface. Use another address."
        ]
    if str(ip) != address:
        return [
            f"{what} is {address}: write it in the canonical form, {ip} (RFC 5952), because "
            "programs compare addresses as text."
        ]
    return []


def _virtual_address_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    balancers = [host for host in hosts if host.name in groups.get("loadbalancers", ())]
    wanted = {str(host.get("keepalived_virtual_address")) for host in balancers}
    if len(wanted) > 1:
        return [
            "keepalived_virtual_address differs between the balancers: set it once, for the group "
            "'loadbalancers'."
        ]
    address = "".join(wanted)
    if not address:
        if len(balancers) < 2 or balancers[0].get("fleet_base_url"):
            return []
        return [
            f"The balancers {_and(host.name for host in balancers)} have no common address: set "
            "keepalived_virtual_address for the group 'loadbalancers', or fleet_base_url if DNS or "
            "a proxy distributes the clients, or keep one balancer."
        ]
    if spelled := _spelling_mistakes("keepalived_virtual_address", address):
        return spelled
    if not is_ip(address):
        return [f"keepalived_virtual_address is not an IP address: '{address}'."]
    others = [host.name for host in balancers if (":" in host.address) != (":" in address)]
    if others:
        return [
            f"keepalived_virtual_address is {address}, and the address of {_and(others)} has the "
            "other IP version: VRRP announces an IPv6 address over IPv6, and an IPv4 address over "
            "IPv4. Set a fleet_address of the same version."
        ]
    return [
        f"keepalived_virtual_address {address} is the address of the host '{host.name}': use one "
        "that no machine has."
        for host in hosts
        if address in (host.address, host.get("ansible_host"))
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
        f"The hosts {_and(hosts)} have the same cookie, {name}: give each its own wsnode_host_name."
        for hosts, name in shared.items()
    ]
    return mistakes


def _ports(host: Host, groups: Groups) -> list[tuple[int, str]]:
    """The TCP ports that a host's services listen on, with the variable of each."""
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


def _port_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    mistakes = []
    for host in hosts:
        if host.name in groups.get("wsnodes", ()) and len(host.wsnode_ports) < 1:
            mistakes.append(f"wsnode_processes of the host '{host.name}' must be 1 or more.")
        users = defaultdict(list)
        for port, variable in _ports(host, groups):
            users[port].append(variable)
            if not 0 < port < 65536:
                mistakes.append(f"{variable} of the host '{host.name}' is no port: {port}.")
        mistakes += [
            f"Port {port} of the host '{host.name}' is wanted twice, by {_and(variables)}: "
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


def _certificate_mistakes(balancers: list[Host]) -> list[str]:
    files = [file for host in balancers for file in host.get("haproxy_tls_certificates") or []]
    # Where a relative path leads to, the module that copies the file knows.
    missing = [file for file in files if Path(file).is_absolute() and not Path(file).exists()]
    return [
        f"haproxy_tls_certificates names {file}, which does not exist: write certificate, chain "
        "and key to it, or remove the variable to serve clients without TLS."
        for file in dict.fromkeys(missing)
    ]


def _front_mistakes(balancers: list[Host]) -> list[str]:
    """List settings that contradict each other or what stands in front of the balancers."""
    mistakes = [
        f"{variable} differs between the balancers: set it once, for the group 'loadbalancers'."
        for variable in SAME_ON_BALANCERS
        if len({host.get(variable) for host in balancers}) > 1
    ]
    for host in balancers:
        if not STICKINESS.fullmatch(stickiness := host.get("haproxy_stickiness")):
            mistakes.append(
                f"haproxy_stickiness of the host '{host.name}' is '{stickiness}': make it cookie, "
                "source, path, path N (a number of segments), header NAME or query NAME."
            )
        mistakes += [
            f"haproxy_static_paths of the host '{host.name}' has '{path}', which does not begin a "
            "path: write it like /static/, without spaces."
            for path in host.get("haproxy_static_paths")
            if not PATH.fullmatch(path)
        ]
        secure = host.get("haproxy_cookie_secure")
        is_secure = secure == "true" or (secure == "auto" and host.has_tls)
        if host.get("haproxy_cookie_samesite") == "none" and not is_secure:
            mistakes.append(
                f"haproxy_cookie_samesite of the host '{host.name}' is none, and browsers accept "
                "such a cookie only with Secure: set haproxy_cookie_secure: true (clients then "
                "need TLS), or haproxy_cookie_samesite: lax."
            )
        mistakes += [
            mistake
            for text in host.get("haproxy_accept_proxy")
            if (mistake := _proxy_mistake(host, text))
        ]
    return mistakes


def _proxy_mistake(host: Host, text: str) -> str:
    """Return what is wrong with an element of haproxy_accept_proxy, or an empty text."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return (
            f"haproxy_accept_proxy of the host '{host.name}' has '{text}', which is neither an "
            "address nor a network: write 10.0.0.5 or 10.0.0.0/24."
        )
    if network.num_addresses == 1 and str(network[0]) in ("127.0.0.1", "::1"):
        return (
            f"haproxy_accept_proxy of the host '{host.name}' has {text}, the source of the "
            "balancer's own checks, which do not use the PROXY protocol: let the proxy on this "
            f"machine connect to {host.address}, and list that address."
        )
    return ""


def _tls_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    redis = [host for host in hosts if host.name in groups.get("redis", ())]
    if len({bool(host.get("fleet_tls")) for host in redis}) > 1:
        return [
            "fleet_tls differs between the hosts of the group 'redis', which then cannot connect "
            "to each other: set it once, for the group 'all'."
        ]
    files = {
        name: path
        for host in hosts
        if host.get("fleet_tls")
        for name, path in host.tls_files.items()
    }
    missing = [name for name, path in files.items() if not path.exists()]
    if not missing:
        return []
    return [
        f"fleet_tls is on, but {files[missing[0]].parent} lacks {_and(missing)}: run "
        "playbooks/certificates.yml, which creates missing files, or put your own there."
    ]


def fleet_subjects(addresses: Iterable[str]) -> list[str]:
    """Return the subject alternative names of a certificate (RFC 5280) for addresses and names."""
    return [
        f"{'IP' if is_ip(address) else 'DNS'}:{address}" for address in dict.fromkeys(addresses)
    ]


def _and(names: Iterable[str]) -> str:
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


class FilterModule:
    """The filters of the project for Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "all_addresses": all_addresses,
            "fleet_hostnames": fleet_hostnames,
            "fleet_members": fleet_members,
            "fleet_mistakes": fleet_mistakes,
            "fleet_subjects": fleet_subjects,
            "interface_of": interface_of,
            "interface_towards": interface_towards,
            "missing_addresses": missing_addresses,
            "netloc": netloc,
            "redis_passwords": redis_passwords,
            "refusal": refusal,
        }
