"""`wsfleet verify-delivery` with SDK clients that note the nodes that they visit.

Run as a process: URL, and whether the clients keep cookies as browsers do. SIGINT ends the
publishing, as with the command. It prints the report's data, its problems, and each client's nodes.
"""

import json
import sys
from http.cookies import SimpleCookie
from typing import Any, ClassVar

import centrifuge  # type: ignore[import-untyped]

from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.commands.verify_delivery import report_of
from wsfleet.cli.traffic import delivery
from wsfleet.cli.traffic.delivery_run import DeliveryPlan


def node_of_cookie(set_cookie: str) -> str:
    """Return the node of the cookie that an answer sets; "" if it sets none."""
    cookies = SimpleCookie(set_cookie)
    return cookies["WSNODE"].value.partition("|")[0] if cookies else ""


class VisitingClient(centrifuge.Client):  # type: ignore[misc]
    """A client of the SDK that notes the node of each connection."""

    keeps: ClassVar[bool]
    journeys: ClassVar[dict[int, list[str]]] = {}

    async def _open_transport(self) -> Any:
        connection = await super()._open_transport()
        set_cookie = connection.response.headers.get("Set-Cookie", "")
        node = node_of_cookie(set_cookie) or node_of_cookie(self._headers["Cookie"])
        self.journeys.setdefault(id(self), []).append(node)
        if self.keeps and set_cookie:
            self._headers["Cookie"] = set_cookie.partition(";")[0]
        return connection


def main(url: str, subscribers: str, publishers: str, keeps: str) -> None:
    """Run until SIGINT."""
    VisitingClient.keeps = keeps == "True"
    centrifuge.Client = VisitingClient
    delivery.ENTRY = 60.0  # a busy machine is slow
    plan = DeliveryPlan(int(publishers), int(subscribers), messages=10_000, rate=2.0, timeout=240.0)
    report = report_of(delivery.run_delivery(parse_url(url), plan))
    journeys = list(VisitingClient.journeys.values())
    document = {**report.data, "problems": report.problems, "journeys": journeys}
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
