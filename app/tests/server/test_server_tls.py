"""Nodes that speak TLS, as `wsfleet serve` runs them, and those who come to them."""

import asyncio
import contextlib
import json
import re
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import TIMEOUT, until
from tests.support.certificates import make_certificate
from tests.support.clients import close_code, exchange
from tests.support.command import wsfleet
from tests.support.fleet import Rig, running_fleet
from tests.support.tcp import HANDSHAKE, masked
from wsfleet.transports.frames import BINARY, TEXT, close_frame

NAME = "host1-8001"


@pytest.fixture(scope="module")
def fleet(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that the tests share: leave it as it was."""
    folder = tmp_path_factory.mktemp("tls")
    with running_fleet(folder, tls=True, WSFLEET_OUTBOX_LIMIT="200000") as rig:
        yield rig


@pytest.fixture
def own_fleet(processes: None, tmp_path: Path) -> Iterator[Rig]:
    """A fleet for one test, which may break it."""
    with running_fleet(tmp_path, tls=True, WSFLEET_DRAIN_RATE="20") as rig:
        yield rig


@pytest.fixture
def trusted(fleet: Rig) -> ssl.SSLContext:
    """Return the TLS context with which a client checks the nodes."""
    return ssl.create_default_context(cafile=fleet.ca)


def client(rig: Rig, **options: Any) -> connect:
    """Connect to the node itself."""
    url = rig.nodes[NAME].replace("https", "wss") + "/ws"
    trusted = ssl.create_default_context(cafile=rig.ca)
    return connect(url, ssl=trusted, proxy=None, **options)


@contextlib.asynccontextmanager
async def opened(
    rig: Rig, trusted: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A WebSocket of which nothing is read but the answer's head."""
    port = rig.nodes[NAME].rpartition(":")[2]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted, limit=1024)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def sent_away(rig: Rig, code: int) -> int:
    """How many clients the node has closed with a code."""
    trusted = ssl.create_default_context(cafile=rig.ca)
    text = httpx.get(f"{rig.nodes[NAME]}/metrics", verify=trusted, trust_env=False).text
    found = re.search(rf'^wsfleet_disconnects_total{{code="{code}"}} (\d+)', text, re.MULTILINE)
    return int(found[1]) if found else 0


async def test_clients_talk_to_a_node(fleet: Rig, trusted: ssl.SSLContext) -> None:
    """Two libraries exchange messages up to the limit, in both directions."""
    text = "x" * 65_000
    async with (
        client(fleet) as one,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{fleet.nodes[NAME]}/ws", ssl=trusted) as other,
    ):
        assert (await exchange(one, text))["type"] == "ack"
        assert (await other.receive_json(timeout=TIMEOUT))["data"] == text
        await other.send_str("back")
        assert (await other.receive_json(timeout=TIMEOUT))["type"] == "ack"
        assert json.loads(await asyncio.wait_for(one.recv(), TIMEOUT))["data"] == "back"


def test_only_valid_tls_is_served(fleet: Rig) -> None:
    """Plain HTTP and old TLS versions are refused, and a client without the CA refuses the node."""
    url = fleet.nodes[NAME]
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url.replace("https", "http") + "/health", trust_env=False)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/health", trust_env=False)
    for version, code in (("-tls1_1", 1), ("-tls1_2", 0), ("-tls1_3", 0)):
        address = ["-connect", url.removeprefix("https://")]
        command = ["openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", *address]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == code, done


async def test_a_slow_client_is_sent_away(fleet: Rig, trusted: ssl.SSLContext) -> None:
    """A client that does not read is closed with 1013 at the limit; others get everything."""
    async with client(fleet) as sender, client(fleet) as healthy, opened(fleet, trusted):
        await asyncio.to_thread(until, lambda: fleet.connections(NAME) == 3, "the slow client came")
        before = sent_away(fleet, 1013)
        for number in range(200):
            assert (await exchange(sender, f"{number} " + "x" * 60_000))["type"] == "ack"
            assert json.loads(await healthy.recv())["data"].startswith(f"{number} ")
        assert sent_away(fleet, 1013) == before + 1


async def test_a_violation_is_explained_before_the_end(fleet: Rig, trusted: ssl.SSLContext) -> None:
    """The close code arrives though the peer goes on sending, and then TLS is ended."""
    async with opened(fleet, trusted) as (reader, writer):
        writer.write(masked(BINARY, b"", rsv=0x40) + masked(TEXT, b"x" * 60_000) * 20)
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == close_frame(1002, "reserved bits are set")


async def test_clients_go(fleet: Rig, trusted: ssl.SSLContext) -> None:
    """With a word or without: nothing of them is left."""
    async with client(fleet) as polite:
        assert (await exchange(polite, "hello"))["type"] == "ack"
    assert polite.close_code == 1000
    async with opened(fleet, trusted):
        await asyncio.to_thread(until, lambda: fleet.connections(NAME) == 1, "it came")
    await asyncio.to_thread(until, lambda: fleet.connections(NAME) == 0, "all are gone")


async def test_a_stopping_node_drains(own_fleet: Rig) -> None:
    """Clients are sent away one after the other, and the process ends."""
    clients: list[ClientConnection] = [await client(own_fleet) for _ in range(10)]
    node = own_fleet.processes[NAME]
    node.send_signal(signal.SIGTERM)
    assert await asyncio.gather(*map(close_code, clients)) == [1012] * 10
    await asyncio.to_thread(node.wait, 20)
    assert "Traceback" not in (own_fleet.folder / f"{NAME}.log").read_text()


def test_the_balancer_speaks_tls_to_the_nodes(fleet: Rig) -> None:
    """Clients come through it, and none of their messages is lost."""
    load = ("--clients", 10, "--duration", 1, "--json")
    outcome = wsfleet("load", fleet.base_url, *load)
    assert outcome.code == 0, outcome
    outcome = wsfleet("load", fleet.nodes[NAME], "--ca", fleet.ca, *load)
    assert outcome.code == 0, outcome


def checks(rig: Rig, stats_url: str = "") -> dict[str, str]:
    """Return the result of the last check of each server."""
    document = json.loads(rig.fleet_file.read_text())
    if stats_url:
        document["loadbalancers"] = {"lb1": stats_url}
    file = rig.folder / "asked.json"
    file.write_text(json.dumps(document))
    (balancer,) = wsfleet("status", "--fleet", file, "--json").document["loadbalancers"]
    return {row["server"]: row["status"] + " " + row["check"] for row in balancer["servers"]}


def test_a_node_of_another_ca_is_down(own_fleet: Rig) -> None:
    """A node with a certificate of another CA is down for it, and named by `status`."""
    own_fleet.kill(NAME)
    make_certificate(own_fleet.folder / "other.pem", own_fleet.certificate, "host1", "host2")
    own_fleet.start(NAME)
    until(lambda: "DOWN L6" in checks(own_fleet)[NAME], "the stranger is down")
    outcome = wsfleet("status", "--fleet", own_fleet.fleet_file, "--json")
    assert outcome.code == 1
    problems = [text for text in outcome.document["problems"] if text.startswith(f"node {NAME}: ")]
    assert len(problems) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in problems[0]
    assert "\n" not in problems[0]


@pytest.fixture
def plain_balancer(fleet: Rig, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Another one, which speaks no TLS with clients, of one node by two names: its two URLs."""
    public, stats = free_port(), free_port()
    nodes = {"host1-1": fleet.nodes[NAME], "host3-1": fleet.nodes[NAME]}
    config = tmp_path / "haproxy.cfg"
    text = haproxy_config(nodes, public, stats, haproxy_console=True, _haproxy_ca=fleet.ca)
    config.write_text(text)
    with process([HAPROXY_PROGRAM, "-db", "-f", str(config)], tmp_path / "log"):
        yield f"http://127.0.0.1:{public}", f"http://127.0.0.1:{stats}"


def test_the_balancer_takes_no_machine_for_another(
    fleet: Rig, plain_balancer: tuple[str, str]
) -> None:
    """A certificate of the CA that has not the name of the server's host is not enough."""
    _, url = plain_balancer
    until(lambda: "DOWN L6" in checks(fleet, url).get("host3-1", ""), "host3 is down")
    assert checks(fleet, url)["host1-1"].startswith("UP ")


def test_a_node_knows_that_the_client_speaks_no_tls(plain_balancer: tuple[str, str]) -> None:
    """HAProxy tells it, unless somebody in front of HAProxy knows better."""
    url, _ = plain_balancer

    def goes_to(**headers: str) -> str:
        return httpx.get(f"{url}/console", headers=headers, trust_env=False).headers["Location"]

    until(lambda: goes_to() == f"{url}/console/", "it is told")
    assert goes_to(**{"X-Forwarded-Proto": "https"}).startswith("https://")


def test_an_operator_trusts_the_fleets_ca(fleet: Rig) -> None:
    """The fleet file names it, for all commands that ask nodes."""
    for command in (("status",), ("monitor", fleet.base_url, "--count", 1, "--limit", 100)):
        outcome = wsfleet(*command, "--fleet", fleet.fleet_file, "--json")
        assert outcome.code == 0, outcome
    outcome = wsfleet("check", "node", fleet.nodes[NAME], "--ca", fleet.ca, "--json")
    assert outcome.code == 0, outcome


def test_an_operator_drains_a_node(fleet: Rig) -> None:
    """And lets it serve again."""
    for command in ("drain", "undrain"):
        outcome = wsfleet(command, NAME, "--fleet", fleet.fleet_file, "--json")
        assert outcome.code == 0, outcome
    until(lambda: fleet.ready(NAME) == 200, "it serves")


def test_a_wrong_ca_is_an_error(fleet: Rig, tmp_path: Path) -> None:
    """Nodes that cannot be trusted are findings, 1; a CA that cannot be read stops the command."""
    outcome = wsfleet("check", "node", fleet.nodes[NAME], "--timeout", 1, "--json")
    assert outcome.code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in "".join(outcome.document["problems"])
    make_certificate(tmp_path / "other.pem", tmp_path / "key.pem")
    file = tmp_path / "fleet.json"
    document = json.loads(fleet.fleet_file.read_text())
    file.write_text(json.dumps(document | {"ca": str(tmp_path / "other.pem")}))
    outcome = wsfleet("status", "--fleet", file, "--json")
    assert outcome.code == 1
    assert len(outcome.document["problems"]) == len(fleet.nodes)
    assert all("CERTIFICATE_VERIFY_FAILED" in text for text in outcome.document["problems"])
    file.write_text(json.dumps(document | {"ca": str(tmp_path / "none.pem")}))
    outcome = wsfleet("status", "--fleet", file)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "cannot read the fleet's CA" in outcome.stderr


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("mistake", ["no file", "no key", "another one's key"])
def test_a_certificate_is_checked_before_the_start(tmp_path: Path, mistake: str) -> None:
    """An unusable certificate is an error of one line, with exit code 2."""
    certificate, host, other = (tmp_path / name for name in ("ca.pem", "host.pem", "other.pem"))
    make_certificate(certificate, host)
    make_certificate(tmp_path / "others.pem", other)
    assert wsfleet("serve", "--check", WSFLEET_TLS_CERTIFICATE=str(host)).code == 0
    environment = {
        "no file": {"WSFLEET_TLS_CERTIFICATE": str(tmp_path / "none.pem")},
        "no key": {"WSFLEET_TLS_CERTIFICATE": str(certificate)},
        "another one's key": {
            "WSFLEET_TLS_CERTIFICATE": str(certificate),
            "WSFLEET_TLS_KEY": str(other),
        },
    }[mistake]
    outcome = wsfleet("serve", "--check", **environment)
    assert outcome.code == 2
    assert outcome.stderr.startswith("WSFLEET_TLS_CERTIFICATE, WSFLEET_TLS_KEY: ")
    assert outcome.stderr.count("\n") == 1
