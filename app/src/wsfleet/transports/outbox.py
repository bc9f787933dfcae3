"""Frames that wait for a client that takes less than it is sent, and when it is too slow."""

import asyncio
import socket
import struct
from collections import deque
from typing import NamedTuple, Protocol

HIGH_WATER = 65_536
"""Bytes that the transport buffers; what comes after them waits in an `Outbox`."""
_BYTES_ACKED = 120
"""Offset of `tcpi_bytes_acked` in `struct tcp_info` (linux/tcp.h): a number of 64 bits."""


class Limits(NamedTuple):
    """When a client is too slow.

    `size`: bytes that may wait for it. `timeout`: seconds in which it must take something of what
    waits, once that is more than `HIGH_WATER`.
    """

    size: int = 8_388_608
    timeout: float = 10.0


class Writer(Protocol):
    """What whole frames are written to: a transport, or an `Outbox` in its place."""

    def write(self, frames: bytes, /) -> bool | None:
        """Send frames, now or later; False if they are refused."""

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken yet."""


class Outbox:
    """The frames for a peer that does not keep up, written in place of its transport.

    uvloop makes some objects of each write that waits: of a hundred peers who do not read they were
    half a million, and each pass of Python's collector over them took 50 ms from everybody. In here
    a frame is one reference to bytes that all peers share.

    The limit is about what waits, not about the size of one write: a write counts for at most half
    of it. So a peer that waits for less than half of its limit gets the next write, however large.
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
        """Keep whole frames until the transport takes them; False if too much waits already."""
        counted = self._counts(len(frames))
        with_transport = self._counted + self._counts(self._transport.get_write_buffer_size())
        if with_transport + counted > self._limit:
            return False
        self._frames.append(frames)
        self._size += len(frames)
        self._counted += counted
        return True

    def get_write_buffer_size(self) -> int:
        """Bytes that wait, with those that the transport has."""
        return self._transport.get_write_buffer_size() + self._size

    def give(self) -> bool:
        """Give the transport as much as it buffers, at least one frame; False if nothing waits."""
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
        """Give the transport all that waits, without a copy: a node that stops closes many."""
        if self._frames:
            self._transport.writelines(self._frames)
        self._given += self._size
        self.discard()

    def discard(self) -> None:
        """Forget what the transport does not have yet."""
        self._frames.clear()
        self._size = self._counted = 0

    def progress(self) -> tuple[int, int]:
        """What grows when the peer takes something.

        That is what the system has taken, and what the peer's TCP has acknowledged: the former
        stands still while megabytes in the system's buffers are sent.
        """
        taken = self._given - self._transport.get_write_buffer_size()
        return taken, _acknowledged(self._transport)

    def _counts(self, size: int) -> int:
        return min(size, self._limit // 2)


def _acknowledged(transport: asyncio.WriteTransport) -> int:
    """Bytes that the peer's TCP has acknowledged; 0 if that is not known."""
    try:
        info = transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8
        )
        (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
    except (OSError, struct.error):  # not TCP, closed, or a kernel older than 4.1
        return 0
    return int(acknowledged)
