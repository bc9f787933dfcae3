"""HTTP requests to nodes and load balancers: their health and their statistics."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx

from wsfleet.cli.access.endpoint import FleetEndpoint
from wsfleet.cli.errors import CannotRun
from wsfleet.cluster import haproxy_stats
from wsfleet.config.fleet_file import Fleet

#: Seconds for one answer.
TIMEOUT = 3.0
_HEADERS = {"User-Agent": "wsfleet"}

T = TypeVar("T")
Answer = tuple[T | None, str | None]
"""An answer, or the reason why it is missing."""
Health = dict[str, Any]


def trusted(fleet: Fleet | None = None) -> ssl.SSLContext:
    """Return a TLS context that trusts the system's CAs and the fleet's own CA.

    Raises:
        CannotRun: the fleet's CA cannot be read.

    """
    context = ssl.create_default_context()  # httpx's own ignores SSL_CERT_FILE
    if fleet is not None and fleet.ca is not None:
        try:
            context.load_verify_locations(fleet.ca)
        except OSError as error:
            raise CannotRun(
                f"cannot read the fleet's CA {fleet.ca}: {error.strerror}. Run site.yml, which "
                "writes it again, or run the command as a user who may read it."
            ) from error
    return context


def describe(endpoint: FleetEndpoint) -> str:
    """Return the URL of a fleet and the version that one of its nodes reports."""
    try:
        answer = httpx.get(
            f"{endpoint.http}/health", timeout=TIMEOUT, trust_env=False, verify=trusted()
        ).json()
        version = str(answer["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        version = "unknown"
    return f"{endpoint.http}, version {version}"


async def ask_all(
    nodes: Mapping[str, str], fleet: Fleet
) -> tuple[dict[str, Answer[Health]], dict[str, Answer[haproxy_stats.Rows]]]:
    """Fetch every node's /health and every load balancer's statistics, all at the same time.

    Raises:
        CannotRun: the fleet's CA cannot be read.

    """
    balancers = fleet.loadbalancers
    async with httpx.AsyncClient(
        timeout=TIMEOUT, headers=_HEADERS, trust_env=False, verify=trusted(fleet)
    ) as client:
        health, stats = await asyncio.gather(
            asyncio.gather(*(_health(client, url) for url in nodes.values())),
            asyncio.gather(*(_statistics(client, url) for url in balancers.values())),
        )
    return dict(zip(nodes, health, strict=True)), dict(zip(balancers, stats, strict=True))


async def _health(client: httpx.AsyncClient, url: str) -> Answer[Health]:
    try:
        answer = (await client.get(f"{url}/health")).json()
    except httpx.HTTPError as error:
        return None, str(error) or type(error).__name__
    except ValueError:
        return None, "not JSON"
    return (answer, None) if isinstance(answer, dict) else (None, "not a JSON object")


async def _statistics(client: httpx.AsyncClient, url: str) -> Answer[haproxy_stats.Rows]:
    try:
        rows = await haproxy_stats.statistics(client, url)
    except httpx.HTTPError as error:
        return None, f"no statistics from {url}: {str(error) or type(error).__name__}"
    return rows, None if haproxy_stats.servers(rows) else "it has no servers"
