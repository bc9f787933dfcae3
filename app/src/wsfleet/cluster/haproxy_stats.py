"""The statistics of a balancer: HAProxy's CSV (management guide, section 9.1)."""

import csv
import io
from typing import Any

import httpx

Rows = list[dict[str, str]]

PUBLIC = "public"
"""The frontend for clients."""
NODES = "nodes"
"""The backend of the nodes."""
VIRTUAL_ADDRESS = "virtual_address"
"""The backend whose server is up on the balancer that has the virtual address."""


async def statistics(client: httpx.AsyncClient, url: str) -> Rows:
    """Return a balancer's statistics, by the URL of its private port.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    answer = await client.get(f"{url}/stats;csv")
    answer.raise_for_status()
    return rows(answer.text)


def rows(text: str) -> Rows:
    """Parse the CSV."""
    return list(csv.DictReader(io.StringIO(text.removeprefix("# "))))


def servers(statistics: Rows) -> list[dict[str, Any]]:
    """Return the nodes and their states."""
    return [
        {
            "backend": row["pxname"],
            "server": row["svname"],
            "status": row["status"],
            # "UP 1/2" is on its way down, but serves; "no check" cannot tell.
            "well": row["status"].startswith(("UP", "no check")),
            "sessions": int(row["scur"] or 0),
            "check": " ".join(filter(None, (row.get("check_status"), row.get("last_chk")))),
            "seconds_in_status": int(row["lastchg"]) if row.get("lastchg") else None,
        }
        for row in statistics
        if _is_server(row) and row["pxname"] == NODES
    ]


def has_virtual_address(statistics: Rows) -> bool | None:
    """Return whether the balancer has the virtual address; None without a virtual address."""
    found = [
        row["status"].startswith("UP")
        for row in statistics
        if _is_server(row) and row["pxname"] == VIRTUAL_ADDRESS
    ]
    return found[0] if found else None


def _is_server(row: dict[str, str]) -> bool:
    return row.get("type") == "2"  # 0 frontend, 1 backend, 2 server, 3 listener


def sessions(statistics: Rows) -> int:
    """Return the number of clients' connections to the balancer."""
    return sum(
        int(row["scur"] or 0)
        for row in statistics
        if row.get("type") == "0" and row["pxname"] == PUBLIC
    )
