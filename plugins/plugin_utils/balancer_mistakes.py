"""The mistakes in an inventory's variables of the balancers."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from .inventory_hosts import Host

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
COOKIE = re.compile(r"[A-Za-z0-9_-]+")
"""The part of a token of RFC 6265 that is also no operator of a regular expression."""
URL = re.compile(r"https?://[^/\s?#]+(/[^\s?#]*)?", re.IGNORECASE)
PATH = re.compile(r"/[A-Za-z0-9._~!$&*+,;=:@/%-]*")


def certificate_mistakes(balancers: list[Host]) -> list[str]:
    """List the certificates that are missing on the control machine."""
    files = [file for host in balancers for file in host.get("haproxy_tls_certificates") or []]
    # Where a relative path leads to, the module that copies the file knows.
    missing = [file for file in files if Path(file).is_absolute() and not Path(file).exists()]
    return [
        f"haproxy_tls_certificates names {file}, which does not exist: write certificate, chain "
        "and key to it, or remove the variable to serve clients without TLS."
        for file in dict.fromkeys(missing)
    ]


def front_mistakes(balancers: list[Host]) -> list[str]:
    """List settings that contradict each other or the proxy in front of the balancers."""
    mistakes = [
        f"{variable} differs between the balancers: set it once, for the group 'loadbalancers'."
        for variable in SAME_ON_BALANCERS
        if len({host.get(variable) for host in balancers}) > 1
    ]
    for host in balancers:
        if not COOKIE.fullmatch(cookie := host.get("haproxy_cookie")):
            mistakes.append(
                f"haproxy_cookie of the host '{host.name}' is '{cookie}': use letters, digits, "
                "'_' and '-'."
            )
        if (url := host.get("fleet_base_url")) and not URL.fullmatch(url):
            mistakes.append(
                f"fleet_base_url of the host '{host.name}' is '{url}': write it with its scheme, "
                "like https://ws.example.com."
            )
        if not STICKINESS.fullmatch(stickiness := host.get("haproxy_stickiness")):
            mistakes.append(
                f"haproxy_stickiness of the host '{host.name}' is '{stickiness}': make it cookie, "
                "source, path, path N (a number of segments), header NAME or query NAME."
            )
        elif stickiness != "cookie" and host.get("rebalance_enabled"):
            mistakes.append(
                f"rebalance_enabled of the host '{host.name}' needs haproxy_stickiness: cookie. It "
                f"is '{stickiness}', which leads a client that is moved back to its node: set "
                "rebalance_enabled: false."
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
    """Return the mistake in an element of haproxy_accept_proxy, or an empty text."""
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
