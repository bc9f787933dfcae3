"""The passwords of Redis's users, and the URLs that have them."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from urllib.parse import urlencode

from .addresses import netloc
from .inventory_hosts import Host

REDIS_USERS = ("admin", "app", "cli", "exporter", "node", "proxy", "replica", "sentinel")
"""Their rights are in the vars of the roles `redis` and `sentinel`."""


def redis_passwords(secret: str) -> dict[str, str]:
    """Derive the password of each Redis user from the one in the inventory.

    No password can be derived from another user's.
    """
    return {
        user: secret and hmac.new(secret.encode(), user.encode(), "sha256").hexdigest()
        for user in REDIS_USERS
    }


def passwords_of(hosts: list[Host], users: Iterable[str]) -> dict[str, str]:
    """Return the passwords of some users, for hosts that are not in the group `redis`."""
    secret = hosts[0].get("redis_password") if hosts else ""
    passwords = redis_passwords(secret or "")
    return {user: passwords[user] for user in users}


def redis_url(hosts: list[Host], user: str, ca: str) -> str:
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
