"""The mistakes in the addresses of an inventory."""

from __future__ import annotations

import ipaddress
from collections import defaultdict

from .addresses import is_ip, is_network
from .inventory_hosts import Groups, Host, listed

BINDS = (
    "haproxy_bind",
    "haproxy_stats_bind",
    "redis_bind",
    "sentinel_bind",
)
"""Lists of addresses that services listen on."""


def address_mistakes(hosts: list[Host]) -> list[str]:
    """List addresses that are shared, misspelt, or names where the firewall needs an address."""
    by_address = defaultdict(list)
    for host in hosts:
        by_address[host.address].append(host.name)
    empty = [(host, name) for host in hosts for name in BINDS if "" in host.addresses(name)]
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
            f"The address of the host '{host.name}' is {host.address}, where no other host reaches "
            "it: set fleet_address, or ansible_host, to one of its addresses in their network."
            for host in hosts
            if _is_unreachable(host.address, alone=len(hosts) == 1)
        ]
        + [
            f"{name} of the host '{host.name}' has an empty element, which would be all addresses: "
            "remove it, or write the address."
            for host, name in empty
        ]
        + [
            f"firewall_operators of the host '{host.name}' has '{text}', which is neither an "
            "address nor a network: write 10.0.0.5 or 10.0.0.0/24."
            for host in hosts
            for text in host.get("firewall_operators")
            if not is_network(text)
        ]
        + [
            f"The address of the host '{host.name}' is a name, {host.address}, and the firewall "
            "needs an IP address: set fleet_address, or firewall_enabled: false."
            for host in named
        ]
        + [
            f"The hosts {listed(names)} have the same address, {address}: give each its own "
            "ansible_host or fleet_address. A machine with several roles is one host in several "
            "groups."
            for address, names in by_address.items()
            if len(names) > 1
        ]
    )


def virtual_address_mistakes(hosts: list[Host], groups: Groups) -> list[str]:
    """List the mistakes in the common address of the balancers."""
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
            f"The balancers {listed(host.name for host in balancers)} have no common address: set "
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
            f"keepalived_virtual_address is {address}, and the address of {listed(others)} has the "
            "other IP version: VRRP announces an IPv6 address over IPv6, and an IPv4 address over "
            "IPv4. Set a fleet_address of the same version."
        ]
    return [
        f"keepalived_virtual_address {address} is the address of the host '{host.name}': use one "
        "that no machine has."
        for host in hosts
        if address in (host.address, host.get("ansible_host"))
    ]


def _is_unreachable(address: str, *, alone: bool) -> bool:
    if not is_ip(address):
        return False
    ip = ipaddress.ip_address(address)
    return ip.is_unspecified or ip.is_multicast or (ip.is_loopback and not alone)


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
