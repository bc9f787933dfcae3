"""Attacks on the TLS handshake, which HAProxy terminates before the node."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import TIMEOUT, settled
from tests.support.certificates import make_certificate
from tests.support.victim import Victim, told

HALF = 500
"""Handshakes that are begun and not ended."""
PATIENCE = 3
"""Seconds that HAProxy waits for a client here (30 by default)."""


class Door:
    """A TLS port of HAProxy, and the context of a client that trusts its CA."""

    def __init__(self, port: int, ca: Path) -> None:
        self.port = port
        self.context = ssl.create_default_context(cafile=ca)

    async def lets_in(self) -> bool:
        """Return whether HAProxy's check has found the node up."""
        async with httpx.AsyncClient(verify=self.context, trust_env=False) as http:
            with contextlib.suppress(httpx.TransportError):
                return (await http.get(f"https://127.0.0.1:{self.port}/health")).is_success
        return False

    async def serves(self) -> None:
        """Check that a healthy client is answered."""
        url = f"wss://127.0.0.1:{self.port}/ws"
        async with connect(url, ssl=self.context, proxy=None) as client:
            await client.send(json.dumps({"are": "you there"}))
            await told(client, type="ack")

    def hello(self) -> bytes:
        """Return the first bytes of a TLS client."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            self.context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
        return outgoing.read()

    @contextlib.asynccontextmanager
    async def tcp(self, first: bytes) -> AsyncIterator[asyncio.StreamReader]:
        """Open a TCP connection, send the first bytes, and yield its reader."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(first)
        try:
            yield reader
        finally:
            writer.transport.abort()


@pytest.fixture(scope="module")
def door(running: Victim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Return a HAProxy with the role's configuration and a certificate."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder / "ca.pem", folder / "both.pem")
    port = free_port()
    text = haproxy_config(
        {"node": running.url},
        free_port(),
        free_port(),
        port,
        folder / "both.pem",
        internal_ports={"node": running.internal_port},
        haproxy_timeout_client=PATIENCE,
        haproxy_timeout_http_request=PATIENCE,
    )
    config = folder / "haproxy.cfg"
    config.write_text(text)
    with process([HAPROXY_PROGRAM, "-db", "-f", str(config)], folder / "log") as haproxy:
        yield Door(port, folder / "ca.pem")
        assert haproxy.poll() is None, (folder / "log").read_text()[-2000:]


@pytest.fixture(autouse=True)
async def unharmed(victim: Victim, door: Door) -> AsyncIterator[None]:
    """Check after each attack that TLS clients are served."""
    await settled(door.lets_in, "the node is well")
    yield
    await door.serves()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return the bytes that arrive until the other side closes."""
    async with asyncio.timeout(TIMEOUT):
        with contextlib.suppress(ConnectionResetError):
            return await reader.read()
        return b""


async def test_half_handshakes(door: Door) -> None:
    """Unfinished handshakes delay no client, and are closed after the timeout."""
    hello = door.hello()
    async with contextlib.AsyncExitStack() as stack:
        opening = [stack.enter_async_context(door.tcp(hello[:20])) for _ in range(HALF)]
        readers = await asyncio.gather(*opening)
        await door.serves()
        said = await asyncio.gather(*map(ended, readers))
    assert not any(said)


NOISE = {
    "HTTP": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "a record that is too long": b"\x16\x03\x01\xff\xff" + b"\x01" * 70_000,
    "an empty record": b"\x16\x03\x01\x00\x00",
    "a heartbeat before the handshake": b"\x18\x03\x02\x00\x03\x01\x40\x00",
    "data before the handshake": b"\x17\x03\x03\x00\x05hello",
    "SSL 2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01" * 40,
    "zeros": b"\0" * 100_000,
}


@pytest.mark.parametrize("name", NOISE)
async def test_noise(door: Door, name: str) -> None:
    """Noise gets an alert at most and a close; none of it is read as a request."""
    async with door.tcp(NOISE[name]) as reader:
        said = await ended(reader)
    assert said[:1] in (b"", b"\x15")


async def test_a_hello_that_ends_in_noise(door: Door) -> None:
    """A broken hello gets an alert, a handshake that never completes, or a close."""
    hello = door.hello()
    for place in range(0, len(hello), 17):
        changed = bytearray(hello)
        changed[place] ^= 0xFF
        async with door.tcp(bytes(changed) + b"\0" * 64) as reader:
            assert (await ended(reader))[:1] in (b"", b"\x15", b"\x16")
