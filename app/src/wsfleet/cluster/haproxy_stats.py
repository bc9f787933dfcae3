"""What a balancer says of itself: HAProxy's statistics (management guide, section 9.1)."""

import csv
import io
from typing import Any

import httpx

Rows = list[dict[str, str]]

PUBLIC = "public"
"""The frontend that clients come to."""
NODES = "nodes"
"""The backend that they are sent to."""
VIRTUAL_ADDRESS = "virtual_address"
"""The backend whose server is up where the balancer has the virtual address."""


async def statistics(client: httpx.AsyncClient, url: str) -> Rows:
    """Ask a balancer, by the URL of its private port.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    answer = await client.get(f"{url}/stats;csv")
    answer.raise_for_status()
    return rows(answer.text)


def rows(text: str) -> Rows:
    """Read the statistics' CSV."""
    return list(csv.DictReader(io.StringIO(text.removeprefix("# "))))


def servers(statistics: Rows) -> list[dict[str, Any]]:
    """The nodes, and how they are."""
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
    """Tell whether the balancer has the virtual address; None where there is none."""
    found = [
        row["status"].startswith("UP")
        for row in statistics
        if _is_server(row) and row["pxname"] == VIRTUAL_ADDRESS
    ]
    return found[0] if found else None


def _is_server(row: dict[str, str]) -> bool:
    return row.get("type") == "2"  # 0 frontend, 1 backend, 2 server, 3 listener


def sessions(statistics: Rows) -> int:
    """How many connections clients have to it."""
    return sum(
        int(row["scur"] or 0)
        for row in statistics
        if row.get("type") == "0" and row["pxname"] == PUBLIC
    )
