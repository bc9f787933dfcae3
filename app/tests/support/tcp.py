"""Clients that write bytes: handshakes and frames of a test's own making."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from websockets.speedups import apply_mask

from lab.waiting import TIMEOUT
from tests.support.nodes import RunningNode
from wsfleet.transports.frames import (
    TEXT,
)

MASK = b"\x01\x80\xff\x00"


def masked(
    opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, length: bytes | None = None
) -> bytes:
    """A client's frame; `length` is what it claims instead of the truth."""
    first = bytes([(0x80 if fin else 0) | rsv | opcode])
    size = len(payload)
    if length is None:
        if size < 126:
            length = bytes([size])
        elif size < 65_536:
            length = bytes([126]) + size.to_bytes(2, "big")
        else:
            length = bytes([127]) + size.to_bytes(8, "big")
    return first + bytes([0x80 | length[0]]) + length[1:] + MASK + bytes(apply_mask(payload, MASK))


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class TCPPeer:
    """A TCP connection to a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.write = writer.write

    async def head(self) -> bytes:
        """The head of an HTTP response."""
        async with asyncio.timeout(TIMEOUT):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: its opcode and its payload."""
        async with asyncio.timeout(TIMEOUT):
            first, length = await self._reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self._reader.readexactly(2), "big")
            return first & 15, await self._reader.readexactly(length)

    async def message(self) -> dict[str, object]:
        """The next message, which must be JSON text."""
        opcode, payload = await self.frame()
        assert opcode == TEXT
        parsed: dict[str, object] = json.loads(payload)
        return parsed

    async def exactly(self, size: int) -> bytes:
        """So many bytes, such as an HTTP response's body."""
        async with asyncio.timeout(TIMEOUT):
            return await self._reader.readexactly(size)

    async def rest(self, seconds: float = TIMEOUT) -> bytes:
        """All until the node closes, which it must in this time."""
        async with asyncio.timeout(seconds):
            return await self._reader.read()


@contextlib.asynccontextmanager
async def tcp(node: RunningNode, first: bytes = b"") -> AsyncIterator[TCPPeer]:
    """Connect, and send the first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.settings.port)
    writer.write(first)
    try:
        yield TCPPeer(reader, writer)
    finally:
        writer.close()
