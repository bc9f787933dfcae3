"""``wsfleet check stickiness`` against servers that stick, move or set no cookie."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import until
from tests.support.command import wsfleet
from tests.support.fleet import Rig
from tests.support.websocket_server import Serve
from wsfleet.cli.traffic.stickiness import Returns, count_returns

pytestmark = pytest.mark.usefixtures("processes")

FAST = ("--clients", 3, "--connections", 4, "--messages", 2, "--seconds", 0, "--json")


class Balancer:
    """Two nodes in one: new clients alternate, and a cookie leads back if `sticky`."""

    def __init__(self, *, sticky: bool = True, attributes: str | None = "path=/; HttpOnly") -> None:
        self.sticky = sticky
        self.attributes = attributes
        self.connections = 0

    def set_cookie(
        self, connection: ServerConnection, request: Request, response: Response
    ) -> Response:
        """Choose the node, and set the cookie where there was none."""
        cookie = request.headers.get("Cookie", "").removeprefix("WSNODE=")
        self.connections += 1
        chosen = cookie if cookie and self.sticky else f"n{self.connections % 2}"
        connection.username = chosen
        if self.attributes is not None and chosen != cookie:
            response.headers["Set-Cookie"] = f"WSNODE={chosen}; {self.attributes}"
        return response

    async def handle(self, connection: ServerConnection) -> None:
        """Acknowledge everything in the name of the chosen node."""
        async for _ in connection:
            await connection.send(json.dumps({"type": "ack", "hostname": connection.username}))

    async def check(self, serve: Serve, *options: object) -> Any:
        """Run the command against this balancer."""
        url = await serve(self.handle, process_response=self.set_cookie)
        return await asyncio.to_thread(wsfleet, "check", "stickiness", url, *FAST, *options)


def test_a_quoted_cookie_leads_back(fleet: Rig) -> None:
    """So aiohttp sends one whose date has a "/", among others."""
    first = httpx.get(f"{fleet.base_url}/health", trust_env=False)
    cookie = f'WSNODE="{first.cookies["WSNODE"]}"'
    for header in (cookie, f"a=b; {cookie}", f"{cookie}; c=d", f'a="b"; {cookie}; c="d"'):
        for _ in range(3):
            again = httpx.get(
                f"{fleet.base_url}/health", headers={"Cookie": header}, trust_env=False
            )
            assert again.json()["hostname"] == first.json()["hostname"], header


async def test_clients_that_come_back_pass(serve_websocket: Serve) -> None:
    """Every client with a jar stays on its node; without one it may move: exit code 0."""
    outcome = await Balancer().check(serve_websocket)
    assert outcome.code == 0, outcome
    kept, plain = outcome.document["with_cookie"], outcome.document["without_cookie"]
    assert kept["summary"]["connections"] == plain["summary"]["connections"] == 12
    assert kept["summary"]["moves"] == 0
    assert plain["summary"]["moves"] > 0
    for client in kept["clients"]:
        assert client["connections"] == 4
        assert client["messages_sent"] == client["messages_received"] == 8
        assert client["servers"] == [client["server"]] * 4
    assert kept["cookie"]["httponly"] is True
    assert kept["cookie"]["max_age"] is None


async def test_a_client_that_moves_in_spite_of_its_cookie_is_found(serve_websocket: Serve) -> None:
    """A balancer that ignores its own cookie fails the check: exit code 1."""
    outcome = await Balancer(sticky=False).check(serve_websocket, "--jar")
    assert outcome.code == 1
    assert outcome.document["with_cookie"]["summary"]["moves"] > 0
    assert "has a cookie and moved" in outcome.document["problems"][0]
    assert "without_cookie" not in outcome.document


async def test_a_missing_cookie_is_found(serve_websocket: Serve) -> None:
    """Without a cookie nothing sticks, even if nobody moved: exit code 1."""
    outcome = await Balancer(attributes=None).check(serve_websocket, "--jar")
    assert outcome.code == 1
    assert any("no WSNODE cookie" in problem for problem in outcome.document["problems"])


async def test_a_cookie_that_browsers_keep_back_is_found(serve_websocket: Serve) -> None:
    """A Secure cookie on an URL without TLS never comes back: exit code 1."""
    balancer = Balancer(attributes="path=/; Secure; Max-Age=86400")
    outcome = await balancer.check(serve_websocket, "--jar")
    assert outcome.code == 1
    assert "Secure" in outcome.document["problems"][0]
    assert outcome.document["with_cookie"]["cookie"]["max_age"] == "86400"


async def test_clients_that_return_without_a_cookie_are_found(serve_websocket: Serve) -> None:
    """A balancer that knows clients by something else than the cookie fails: exit code 1."""

    async def answer_by_client(connection: ServerConnection) -> None:
        async for message in connection:
            number = int(json.loads(message)["client_id"].rpartition("-")[2])
            await connection.send(json.dumps({"type": "ack", "hostname": f"n{number % 2}"}))

    url = await serve_websocket(answer_by_client)
    options = (*FAST, "--clients", 10, "--no-jar")
    outcome = await asyncio.to_thread(wsfleet, "check", "stickiness", url, *options)
    assert outcome.code == 1
    summary = outcome.document["without_cookie"]["summary"]
    assert (summary["returned"], summary["reconnects"]) == (30, 30)
    assert summary["expected_share"] == pytest.approx(0.5)
    assert "30 of 30 reconnects, 100% (by chance about 50%)" in outcome.document["problems"][0]


async def test_a_balancer_that_takes_turns_passes(serve_websocket: Serve) -> None:
    """Clients reconnect in random order: in a fixed one, turns would lead all of them back."""
    options = ("--clients", 10, "--seconds", 2, "--no-jar")
    outcome = await Balancer(attributes=None).check(serve_websocket, *options)
    assert outcome.code == 0, outcome
    summary = outcome.document["without_cookie"]["summary"]
    assert summary["expected_share"] == pytest.approx(0.5)
    assert summary["conclusive"] is True
    assert summary["returned"] < summary["reconnects"] == 30


async def test_a_single_node_proves_nothing(serve_websocket: Serve) -> None:
    """Where all connections reach one node, the check says that it cannot show a difference."""

    async def answer(connection: ServerConnection) -> None:
        async for _ in connection:
            await connection.send('{"type":"ack","hostname":"n0"}')

    url = await serve_websocket(answer)
    options = [option for option in FAST if option != "--json"]
    outcome = await asyncio.to_thread(wsfleet, "check", "stickiness", url, *options, "--no-jar")
    assert outcome.code == 0
    text = " ".join(outcome.stdout.split())
    assert "9 of 9 reconnects, 100% (by chance about 100%)" in text
    assert "each round reached one node alone" in text


def test_returns_are_counted_against_chance() -> None:
    """The expected number follows each round's shares; too few reconnects prove nothing."""
    first, second = dict.fromkeys("abc", "n0") | {"d": "n1"}, dict.fromkeys("abcd", "n1")
    assert count_returns([first, second]) == Returns(4, 1, 1.0)
    moved_together = count_returns([dict.fromkeys("ab", node) for node in ("n0", "n0", "n1")])
    assert moved_together == Returns(4, 2, 2.0)  # all leave a node that drains
    assert count_returns([{"a": "n0"}, {"b": "n0"}]).share is None
    assert not Returns(19, 19, 9.5).conclusive
    assert Returns(20, 20, 10.0).conclusive
    assert Returns(80, 61, 40.0).more_than_chance is False
    assert Returns(80, 62, 40.0).more_than_chance is True
    assert Returns(10**6, 10**6, 5e5).more_than_chance is True


async def test_an_error_answer_fails_the_check(serve_websocket: Serve) -> None:
    """An error frame instead of an ack is a failure of that client: exit code 1."""

    async def refuse(connection: ServerConnection) -> None:
        async for _ in connection:
            await connection.send('{"type":"error","code":"unavailable","message":"no Redis"}')

    url = await serve_websocket(refuse)
    outcome = await asyncio.to_thread(wsfleet, "check", "stickiness", url, *FAST, "--no-jar")
    assert outcome.code == 1
    assert outcome.document["without_cookie"]["summary"]["failed"] == 24
    assert "unavailable" in outcome.document["problems"][0]


def test_a_real_fleet_sticks(fleet: Rig) -> None:
    """Through HAProxy each client comes back to its node, on both nodes, by an HttpOnly cookie."""
    outcome = wsfleet("check", "stickiness", fleet.base_url, "--seconds", 1, "--json")
    assert outcome.code == 0, outcome
    kept = outcome.document["with_cookie"]
    assert set(kept["summary"]["servers"]) == set(fleet.nodes)
    assert kept["summary"]["connections"] == 100
    assert kept["summary"]["moves"] == kept["summary"]["failed"] == 0
    assert kept["cookie"]["httponly"] is True
    assert kept["cookie"]["node"] in fleet.nodes
    assert kept["summary"]["returned"] == kept["summary"]["reconnects"] == 80
    without = outcome.document["without_cookie"]["summary"]
    assert without["reconnects"] == 80
    assert without["conclusive"] is True
    assert without["returned"] < 80


def test_a_real_fleet_sticks_by_tls(fleet: Rig) -> None:
    """Whose CA is trusted is connected to, and its cookie is for TLS alone; others are not."""
    options = "--clients 2 --seconds 0 --jar --json"
    check = ("check", "stickiness", fleet.tls_url, *options.split())
    outcome = wsfleet(*check, "--ca", fleet.ca)
    assert outcome.code == 0, outcome
    assert outcome.document["with_cookie"]["cookie"]["secure"] is True
    assert wsfleet(*check, SSL_CERT_FILE=str(fleet.ca)).code == 0
    refused = wsfleet(*check)
    assert refused.code == 2
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert wsfleet(*check, "--ca", fleet.folder / "missing.pem").code == 2


def test_the_cookie_may_have_another_name(fleet: Rig, tmp_path: Path) -> None:
    """A balancer with `haproxy_cookie: NODE` passes: the fleet file or --cookie has the name."""
    public, stats = free_port(), free_port()
    url = f"http://127.0.0.1:{public}"
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        haproxy_config(fleet.nodes, public, stats, haproxy_cookie="NODE", _haproxy_ca=fleet.ca)
    )
    document = json.loads(fleet.fleet_file.read_text()) | {"base_url": url, "cookie": "NODE"}
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(document))
    check = ("check", "stickiness", url, *FAST, "--jar")
    with process([HAPROXY_PROGRAM, "-db", "-f", str(config)], tmp_path / "haproxy.log"):
        until(lambda: httpx.get(f"{url}/health", trust_env=False).is_success, "it serves")
        for options in (("--fleet", path), ("--cookie", "NODE")):
            outcome = wsfleet(*check, *options)
            assert outcome.code == 0, outcome
            assert outcome.document["with_cookie"]["cookie"]["node"] in fleet.nodes
        outcome = wsfleet(*check, "--cookie", "OTHER")
        assert outcome.code == 1
        assert any("no OTHER cookie was set" in text for text in outcome.document["problems"])
        found = wsfleet(
            *("monitor", url, "--cookie", "NODE", "--count", 1, "--limit", 100, "--json")
        )
        assert set(found.document["targets"]) == {"balancer", *fleet.nodes}


def test_the_table_for_people_shows_the_cookie(fleet: Rig) -> None:
    """Without --json there is a row a client, a summary, and the cookie with its attributes."""
    outcome = wsfleet("check", "stickiness", fleet.base_url, "--clients", 2, "--seconds", 0)
    assert outcome.code == 0
    for words in ("with cookie jar", "2 clients, 10 connections, 0 moves", "httponly"):
        assert words in outcome.stdout
