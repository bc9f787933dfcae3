"""Addresses of machines: how they are written, and which interface has them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

Shown = Iterable[Mapping[str, Any]]


def is_ip(address: str) -> bool:
    """Tell whether it is an address, and no name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """Tell whether it is an address or a network, and no name."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def netloc(address: str, port: int | str) -> str:
    """Join address and port as URLs and sockets have them: IPv6 in brackets (RFC 3986)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def interface_of(shown: Shown, address: str) -> str:
    """Name the interface that has the address, or "" if none has it.

    `shown` are the interfaces, as `ip -json address show` has them.
    """
    if not is_ip(address):
        return ""
    wanted = ipaddress.ip_address(address)
    found = [name for name, has in _interfaces(shown) if has.ip == wanted]
    return found[0] if found else ""


def interface_towards(shown: Shown, address: str) -> str:
    """Name the interface whose network the address belongs to, or "" without one.

    A network of one address, as that of a virtual address itself, leads nowhere.
    """
    if not is_ip(address):
        return ""
    wanted = ipaddress.ip_address(address)
    found = [
        (has.network.prefixlen, name)
        for name, has in _interfaces(shown)
        if wanted in has.network and has.network.num_addresses > 1
    ]
    return max(found)[1] if found else ""


def all_addresses(shown: Shown) -> list[str]:
    """List the addresses that other hosts may reach, without loopback and link-local ones."""
    found = [has.ip for _, has in _interfaces(shown)]
    return [str(ip) for ip in found if not ip.is_loopback and not ip.is_link_local]


def missing_addresses(shown: Shown, wanted: Iterable[str]) -> list[str]:
    """List those of the addresses that no interface has; names and wildcards are left out."""
    return [
        address
        for address in dict.fromkeys(wanted)
        if is_ip(address)
        and not ipaddress.ip_address(address).is_unspecified
        and not ipaddress.ip_address(address).is_loopback
        and not interface_of(shown, address)
    ]


def _interfaces(shown: Shown) -> Iterable[tuple[str, Any]]:
    for interface in shown:
        for has in interface.get("addr_info", []):
            yield (
                interface["ifname"],
                ipaddress.ip_interface(f"{has['local']}/{has['prefixlen']}"),
            )


def fleet_subjects(addresses: Iterable[str]) -> list[str]:
    """Return the subject alternative names of a certificate (RFC 5280) for addresses and names."""
    return [
        f"{'IP' if is_ip(address) else 'DNS'}:{address}" for address in dict.fromkeys(addresses)
    ]
