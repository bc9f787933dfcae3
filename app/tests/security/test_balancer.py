"""Attacks on the path from HAProxy to a node: both must read the same requests."""

import contextlib
from collections.abc import Iterator

import httpx
import pytest

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import settled
from tests.support.tcp import HANDSHAKE
from tests.support.victim import Victim, told

pytestmark = pytest.mark.parametrize("victim", ["haproxy"], indirect=True)

PRIVATE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
"""What the node answers with 404 on its port for clients, and with its metrics on the other."""
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"0\r\n\r\n" + PRIVATE

SMUGGLERS = {
    "length and chunks": (b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", CHUNKED),
    "chunks and length": (b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n", CHUNKED),
    "a space before the colon": (b"Content-Length: %d\r\nTransfer-Encoding : chunked\r\n", CHUNKED),
    "a tab": (b"Content-Length: %d\r\nTransfer-Encoding:\tchunked\r\n", CHUNKED),
    "a vertical tab": (b"Content-Length: %d\r\nTransfer-Encoding:\x0bchunked\r\n", CHUNKED),
    "a folded line": (b"Content-Length: %d\r\nTransfer-Encoding:\r\n chunked\r\n", CHUNKED),
    "a bare line feed": (b"Content-Length: %d\r\nX: y\nTransfer-Encoding: chunked\r\n", CHUNKED),
    "a bare carriage return": (
        b"Content-Length: %d\r\nX: y\rTransfer-Encoding: chunked\r\n",
        CHUNKED,
    ),
    "chunks of no kind": (b"Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n", CHUNKED),
    "chunks and identity": (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked, identity\r\n",
        CHUNKED,
    ),
    "chunks twice": (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        CHUNKED,
    ),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: %d\r\n", PRIVATE),
    "a list of lengths": (b"Content-Length: 0, %d\r\n", PRIVATE),
    "a length with a sign": (b"Content-Length: +%d\r\n", PRIVATE),
    "a length in hexadecimal": (b"Content-Length: 0x0, %d\r\n", PRIVATE),
    "a length with an underscore": (b"Content-Length: 0_%d\r\n", PRIVATE),
    "a chunk of a size with a sign": (
        b"Transfer-Encoding: chunked\r\nX: %d\r\n",
        b"-0\r\n\r\n" + PRIVATE,
    ),
    "a chunk with an extension of lines": (
        b"Transfer-Encoding: chunked\r\nX: %d\r\n",
        b"2;\nxx\r\n4c\r\n0\r\n\r\n" + PRIVATE,
    ),
    "chunks in HTTP/1.0's hop": (
        b"Connection: Transfer-Encoding\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n",
        CHUNKED,
    ),
}


async def test_a_request_in_a_request(victim: Victim) -> None:
    """HAProxy and the node see the same requests; no hidden request reaches the node."""
    for name, (header, body) in SMUGGLERS.items():
        head = b"POST /health HTTP/1.1\r\nHost: x\r\n" + header % len(body) + b"\r\n"
        async with victim.tcp(head + body + LAST) as peer:
            assert b"wsfleet_" not in await peer.rest(), name
        # Nor is an answer left over for whoever comes next.
        response = await victim.get("/health", victim.entry)
        assert response.json()["status"] == "healthy", name


async def test_an_invalid_upgrade_opens_no_tunnel(victim: Victim) -> None:
    """An invalid upgrade opens no tunnel through which requests bypass HAProxy."""
    for good, bad in (
        (b"Version: 13", b"Version: 12"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        (b"/ws", b"/health"),
        (b"Upgrade: websocket", b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk"),
    ):
        async with victim.tcp(HANDSHAKE.replace(good, bad) + PRIVATE + LAST) as peer:
            answers = await peer.rest()
        assert b" 101 " not in answers, bad
        assert b"wsfleet_" not in answers, bad


SPELLINGS = [
    "/metrics",
    "/%6detrics",
    "/metric%73",
    "/%2e/metrics",
    "/./metrics",
    "/x/../metrics",
    "//metrics",
    "/%2fmetrics",
    "/metrics?x",
    "/metrics%3fx",
    "/metrics/",
    "/metrics;x",
    "/METRICS",
    "http://x/metrics",
    "http://x/%6Detrics",
    "/%61pi/info",
    "/ap%69/info",
    "/api%2finfo",
    "/open%61pi.json",
    "/%64ocs",
    "/%72eady",
    "/c%6fnsole/",
    "/%256detrics",
    "/metrics%zz",
    "/%6detrics%",
    "/c%6fnsole/%zz/../index.html",
    "/c%6fnsole/%0/../index.html",
    "/console/%00/../index.html",
    "/console/../metrics",
    "/console/%2e%2e/metrics",
    "/console/..%2fmetrics",
    "/console//metrics",
    "/console/./../api/info",
    "/%00/../metrics",
]


@pytest.fixture(scope="module")
def public_console(running: Victim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of another HAProxy, which publishes the console."""
    folder = tmp_path_factory.mktemp("console")
    port = free_port()
    ports = {"node": running.internal_port}
    nodes = {"node": running.url}
    text = haproxy_config(nodes, port, free_port(), internal_ports=ports, haproxy_console=True)
    (folder / "haproxy.cfg").write_text(text)
    command = [HAPROXY_PROGRAM, "-db", "-f", str(folder / "haproxy.cfg")]
    with process(command, folder / "log"):
        yield port


async def test_private_paths_spelt_otherwise(victim: Victim, public_console: int) -> None:
    """No spelling of a path reaches the internal port, except a public console."""
    for entry in (victim.entry, public_console):
        for target in SPELLINGS:
            request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            async with victim.tcp(request.encode(), entry) as peer:
                answer = await peer.rest()
            the_page = entry == public_console and b"<title>" in answer
            assert the_page or answer[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400"), (entry, target)
    assert (await victim.get("/console/", victim.entry)).status_code == 404
    assert (await victim.get("/console/", public_console)).status_code == 200


async def test_forged_cookies(victim: Victim, drained: Victim) -> None:
    """No cookie leads to a drained node, and an unknown name is served by any node."""

    async def drains() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await drained.get("/ready")).status_code == 503
        return False

    await settled(drains, "it says that it takes none")
    genuine = (await victim.get("/health", victim.entry)).cookies["WSNODE"]  # has a date
    changed = genuine.replace("node", "drained")
    for value in (changed, "drained", "drained; WSNODE=node", "nobody", "%00", "x" * 8000, ""):
        async with victim.client(additional_headers={"Cookie": f"WSNODE={value}"}) as client:
            await client.send("hello")
            await told(client, type="ack")
    assert await drained.metric("wsfleet_connections_opened_total") == 0


async def test_half_a_request_is_ended(victim: Victim) -> None:
    """An unfinished request is answered with 408, and its connection closed."""
    async with victim.tcp(HANDSHAKE[:-2]) as peer:
        assert b" 408 " in await peer.rest()
