"""A node in a process of its own, as systemd starts it, and what an attacker sends to it."""

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import ClientConnection, connect

from lab.ports import free_port
from lab.processes import start, stop
from lab.waiting import TIMEOUT, settled
from tests.support.command import COMMAND
from tests.support.redis import RedisServer
from tests.support.tcp import HANDSHAKE, TCPPeer
from tests.support.tokens import RSA_KEY, SECRET, pem
from wsfleet.transports.frames import CLOSE

CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}", rsa_public_key: {json.dumps(pem(RSA_KEY))}}}
  allow_anonymous_connect_without_token: true
  allowed_origins: ["https://example.com", "http://127.0.0.1:PORT"]
  channel_limit: 100
channel:
  without_namespace:
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
    allow_publish_for_client: true
    allow_publish_for_anonymous: true
"""

MEMORY = 64 * 2**20
"""Bytes that the node may have more in an attack, and after it, than before."""
PATHS = ("/ws", "/connection/websocket")
EITHER_WAY = pytest.mark.parametrize("victim", ["direct", "haproxy"], indirect=True)
"""The attack comes to the node's own port, and again through HAProxy."""
ANYWHERE = pytest.mark.parametrize("victim", ["direct", "haproxy", "application"], indirect=True)
"""It comes to a route of an application as well."""
WITH_APPLICATION = pytest.mark.parametrize("victim", ["direct", "application"], indirect=True)
"""The attack comes to the node's own port, and again to a route of an application."""


async def told(client: ClientConnection, **expected: object) -> None:
    """Wait until a client of the plain protocol hears this, whatever comes before it."""
    async with asyncio.timeout(TIMEOUT):
        while not expected.items() <= json.loads(await client.recv()).items():
            pass


async def ended(peer: TCPPeer) -> tuple[int, str]:
    """Code and reason of the close that comes, whatever comes before it."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            opcode, payload = await peer.frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()


@dataclass
class Victim:
    """The node's process; what it logs goes to a file.

    Attacks go to the port `entry`, the node's own or a balancer's, and to its first path.
    Operators' paths are on the internal port.
    """

    folder: Path
    redis: RedisServer
    settings: dict[str, object]
    port: int = field(default_factory=free_port)
    paths: tuple[str, ...] = PATHS
    internal_port: int = field(default_factory=free_port)
    entry: int = field(init=False)
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        """Begin without a balancer."""
        self.entry = self.port

    @property
    def log(self) -> Path:
        """The lines of its log."""
        return self.folder / "log"

    @property
    def url(self) -> str:
        """Base URL of the node's own port for clients, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def internal_url(self) -> str:
        """Base URL of its internal port, without a path."""
        return f"http://127.0.0.1:{self.internal_port}"

    def configure(self, text: str) -> None:
        """Write its configuration, in which PORT is its port for clients."""
        Path(str(self.settings["config"])).write_text(text.replace("PORT", str(self.port)))

    def start(self) -> None:
        """Start the process."""
        settings = {
            "port": self.port,
            "internal_port": self.internal_port,
            "redis_url": self.redis.url,
            "drain_delay": 0,
        }
        environment = {
            f"WSFLEET_{name.upper()}": str(value)
            for name, value in (settings | self.settings).items()
        }
        self.process = start([*COMMAND, "serve"], self.log, environment)

    def stop(self) -> None:
        """End it as systemd does; a crash before shows in its exit status."""
        assert self.process is not None
        stop(self.process, grace=30)
        status = self.process.returncode
        assert status in (0, -signal.SIGTERM), self.log.read_text()[-2000:]

    async def ready(self) -> None:
        """Wait until it takes clients, and can be reached by the entry."""

        async def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                ready, there = await self.get("/ready"), await self.get("/health", self.entry)
                return ready.status_code == there.status_code == 200
            return False

        await settled(answers, "the node is ready")

    async def get(self, path: str, port: int | None = None) -> httpx.Response:
        """Return an answer of its internal port, or of another one."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            return await http.get(f"http://127.0.0.1:{port or self.internal_port}{path}")

    async def metric(self, name: str, **labels: str) -> float:
        """One sample of its metrics; 0 for one that is not there yet."""
        text = (await self.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return 0.0

    async def refused(self, reason: str) -> float:
        """How many handshakes it refused for a reason."""
        return await self.metric("wsfleet_connections_refused_total", reason=reason)

    async def disconnected(self, code: int) -> float:
        """How many connections ended with a code."""
        return await self.metric("wsfleet_disconnects_total", code=str(code))

    async def has_disconnected(self, code: int, count: float) -> None:
        """Wait until a number of connections have ended with a code."""

        async def counted() -> bool:
            return await self.disconnected(code) == count

        await settled(counted, f"{count:g} disconnects with {code}")

    async def resident(self) -> float:
        """Bytes of memory that it has."""
        return await self.metric("process_resident_memory_bytes")

    def client(self, path: str = "", **options: Any) -> connect:
        """A well-behaved client."""
        url = f"ws://127.0.0.1:{self.entry}{path or self.paths[0]}"
        return connect(url, proxy=None, **options)

    async def serves(self) -> None:
        """A healthy client says something, and another one hears it."""
        async with self.client("/ws") as sender, self.client("/ws") as listener:
            await sender.send('{"are": "you there"}')
            await told(sender, type="ack")
            await told(listener, type="message", data={"are": "you there"})

    @contextlib.asynccontextmanager
    async def tcp(self, first: bytes = b"", entry: int = 0) -> AsyncIterator[TCPPeer]:
        """A TCP connection, and the first bytes on it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", entry or self.entry)
        writer.write(first)
        try:
            yield TCPPeer(reader, writer)
        finally:
            writer.transport.abort()

    def handshake(self, path: str = "") -> bytes:
        """The bytes of a handshake, at its first path or another one."""
        return HANDSHAKE.replace(b"/ws", (path or self.paths[0]).encode())

    @contextlib.asynccontextmanager
    async def upgraded(self, path: str = "") -> AsyncIterator[TCPPeer]:
        """An open WebSocket, byte by byte."""
        async with self.tcp(self.handshake(path)) as peer:
            assert b" 101 " in await peer.head()
            yield peer
