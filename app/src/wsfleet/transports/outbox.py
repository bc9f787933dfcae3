"""The frames that wait for a slow client, and the limits of slowness."""

import asyncio
import socket
import struct
from collections import deque
from typing import NamedTuple, Protocol

HIGH_WATER = 65_536
"""Bytes that the transport buffers; further ones wait in an `Outbox`."""
_BYTES_ACKED = 120
"""Offset of `tcpi_bytes_acked` in `struct tcp_info` (linux/tcp.h): a number of 64 bits."""


class Limits(NamedTuple):
    """The limits of a slow client.

    `size`: bytes that may wait for it. `timeout`: seconds in which it must take something, once
    more than `HIGH_WATER` waits.
    """

    size: int = 8_388_608
    timeout: float = 10.0


class Writer(Protocol):
    """The target of whole frames: a transport, or an `Outbox` in its place."""

    def write(self, frames: bytes, /) -> bool | None:
        """Send frames, now or later; return False if they are refused."""

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken yet."""


class Outbox:
    """The frames for a peer that does not keep up, in place of its transport.

    uvloop creates several objects for each write that waits. For a hundred peers that did not read
    they were half a million, and each pass of Python's collector over them took 50 ms. Here a frame
    is one reference to bytes that all peers share.

    The limit is on the backlog, not on the size of one write, which counts for at most half of it.
    So a peer for which less than half of its limit waits gets the next write, of any size.
    """

    __slots__ = ("_counted", "_frames", "_given", "_limit", "_size", "_transport", "emptied")

    def __init__(self, transport: asyncio.WriteTransport, limit: int) -> None:
        self._transport = transport
        self._limit = limit
        self._frames: deque[bytes] = deque()
        self._size = self._counted = 0
        self._given = transport.get_write_buffer_size()
        self.emptied = asyncio.Event()

    def write(self, frames: bytes, /) -> bool:
        """Keep whole frames for the transport; return False if too much waits already."""
        counted = self._counts(len(frames))
        with_transport = self._counted + self._counts(self._transport.get_write_buffer_size())
        if with_transport + counted > self._limit:
            return False
        self._frames.append(frames)
        self._size += len(frames)
        self._counted += counted
        return True

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait, with those that the transport has."""
        return self._transport.get_write_buffer_size() + self._size

    def give(self) -> bool:
        """Write as much as the transport buffers, or one frame; return False if nothing waits."""
        batch: list[bytes] = []
        size = 0
        while self._frames and (not batch or size + len(self._frames[0]) <= HIGH_WATER):
            frames = self._frames.popleft()
            batch.append(frames)
            size += len(frames)
            self._counted -= self._counts(len(frames))
        self._size -= size
        self._given += size
        if batch:
            self._transport.write(batch[0] if len(batch) == 1 else b"".join(batch))
        return bool(batch)

    def give_all(self) -> None:
        """Write all that waits, without a copy: a node that stops closes many connections."""
        if self._frames:
            self._transport.writelines(self._frames)
        self._given += self._size
        self.discard()

    def discard(self) -> None:
        """Drop the data that the transport does not have yet."""
        self._frames.clear()
        self._size = self._counted = 0

    def progress(self) -> tuple[int, int]:
        """Return two counters, of which one grows when the peer takes something.

        They are the bytes that the system has taken, and those that the peer's TCP has
        acknowledged: the former stands still while megabytes in the system's buffers are sent.
        """
        taken = self._given - self._transport.get_write_buffer_size()
        return taken, _acknowledged(self._transport)

    def _counts(self, size: int) -> int:
        return min(size, self._limit // 2)


def _acknowledged(transport: asyncio.WriteTransport) -> int:
    """Return the bytes that the peer's TCP has acknowledged; 0 if unknown."""
    try:
        info = transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8
        )
        (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
    except (OSError, struct.error):  # not TCP, closed, or a kernel older than 4.1
        return 0
    return int(acknowledged)
