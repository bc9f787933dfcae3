"""Rebalancing behind HAProxy: clients move once, the others stay, and nothing is lost."""

import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from lab.processes import process
from lab.waiting import until
from tests.support.command import wsfleet
from tests.support.fleet import Rig, running_fleet, servers_up
from tests.support.visits import node_of_cookie

FULL, EMPTY = "host1-8001", "host2-8001"
SUBSCRIBERS, PUBLISHERS = 200, 4
CLIENTS = SUBSCRIBERS + PUBLISHERS
TOLERANCE = 0.1


@pytest.fixture
def lopsided(processes: None, tmp_path: Path) -> Iterator[Rig]:
    """Return a fleet of a node that serves and an empty one in standby."""
    with running_fleet(tmp_path, nodes=2, standby=1, WSFLEET_HEARTBEAT_INTERVAL="0.5") as rig:
        yield rig


def let_the_empty_one_serve(rig: Rig) -> None:
    """Undrain the node in standby, and wait until HAProxy sends it clients."""
    outcome = wsfleet("undrain", EMPTY, "--fleet", rig.fleet_file)
    assert outcome.code == 0, outcome
    until(lambda: servers_up(rig) == 2, "both nodes are up")


@pytest.mark.parametrize("keeps", [True, False], ids=["cookies", "no cookies"])
def test_rebalancing_moves_each_client_once_and_loses_nothing(lopsided: Rig, keeps: bool) -> None:
    """Of 200 clients on one of two nodes half move, in order and completely, and nobody twice."""
    rig, log = lopsided, lopsided.folder / "visits.log"
    words = (rig.base_url, SUBSCRIBERS, PUBLISHERS, keeps)
    command = [sys.executable, "-m", "tests.support.visits", *map(str, words)]
    with process(command, log) as visits:
        until(lambda: rig.connections(FULL) == CLIENTS, "all clients are on one node")
        let_the_empty_one_serve(rig)
        fleet = ("--json", "--fleet", rig.fleet_file)
        outcome = wsfleet("rebalance", "--rate", 200, *fleet)
        assert outcome.code == 0, outcome
        until(lambda: sum(map(rig.connections, rig.nodes)) == CLIENTS, "all clients are back")
        connections = [rig.connections(name) for name in rig.nodes]
        visits.send_signal(signal.SIGINT)
        visits.wait(120)

    shed, share = outcome.document["shed"][FULL], CLIENTS / 2
    assert shed == share
    assert all(abs(count - share) <= TOLERANCE * share for count in connections), connections
    report = json.loads(log.read_text().splitlines()[-1])
    journeys = report["journeys"]
    assert journeys.count([FULL]) == CLIENTS - shed
    assert journeys.count([FULL, EMPTY]) == shed
    assert report["problems"] == []
    assert report["acknowledged"] > 0
    assert report["recovered"] == report["reconnects"] > 0


class Visitor:
    """A client with an address of its own and a cookie jar."""

    def __init__(self, url: str, address: str, stack: ExitStack) -> None:
        self._url = url
        self._address = address
        self._stack = stack
        self.cookie = ""
        self.connection: ClientConnection

    def visit(self) -> str:
        """Connect, and return the node of the cookie afterwards."""
        where = urlsplit(self._url)
        way = socket.create_connection(("127.0.0.1", where.port or 0), 10, (self._address, 0))
        headers = {"Cookie": self.cookie} if self.cookie else {}
        self.connection = self._stack.enter_context(
            connect(self._url, sock=way, additional_headers=headers, proxy=None)
        )
        assert self.connection.response
        set_cookie = self.connection.response.headers.get("Set-Cookie", "")
        self.cookie = set_cookie.partition(";")[0] or self.cookie
        return node_of_cookie(self.cookie)

    def is_shed(self) -> bool:
        """Return whether the node has closed the connection."""
        try:
            self.connection.recv(0)
        except ConnectionClosed as end:
            return end.rcvd is not None and end.rcvd.code == 1012
        except TimeoutError:
            return False
        return False


@pytest.mark.parametrize(
    ("path", "application"),
    [("/ws", ""), ("/echo", "tests.support.guest:app")],
    ids=["plain", "application"],
)
@pytest.mark.usefixtures("processes")
def test_cookies_of_other_clients_are_not_touched(
    tmp_path: Path, path: str, application: str
) -> None:
    """Only shed clients get another node and its cookie, even if others reconnect before them."""
    settings: Any = {"WSFLEET_HEARTBEAT_INTERVAL": "0.5"}
    settings |= {"WSFLEET_APP": application} if application else {}
    with running_fleet(tmp_path, nodes=2, standby=1, **settings) as rig, ExitStack() as stack:
        url = rig.base_url.replace("http", "ws") + path
        visitors = [Visitor(url, f"127.0.1.{number}", stack) for number in range(1, 5)]
        assert [visitor.visit() for visitor in visitors] == [FULL] * 4
        let_the_empty_one_serve(rig)
        until(lambda: rig.connections(FULL) == 4, "all clients are on one node")
        shed, others = visitors[:2], visitors[2:]

        def told() -> bool:
            command = ("rebalance", "--to", "0%", "--no-wait", "--fleet", rig.fleet_file)
            return wsfleet(*command).code == 0 and all(visitor.is_shed() for visitor in shed)

        until(told, "two clients are shed")
        others[0].connection.close()
        assert others[0].visit() == FULL
        assert [visitor.visit() for visitor in shed] == [EMPTY] * 2
        assert not any(visitor.is_shed() for visitor in visitors)
        for visitor in visitors:
            visitor.connection.close()
        assert [visitor.visit() for visitor in visitors] == [EMPTY] * 2 + [FULL] * 2
        assert {name: rig.connections(name) for name in rig.nodes} == {FULL: 2, EMPTY: 2}
