"""The output of log lines: one write in a turn of the event loop, which never blocks."""

import asyncio
import contextlib
import functools
import os
import select
import signal
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType

#: Limit of the bytes that wait for a slow reader; further lines are dropped and counted.
BACKLOG = 1_048_576
#: Seconds between two writes to a slow reader.
RETRY = 0.01
#: Seconds without progress after which a process that ends stops waiting for the reader.
LAST_WAIT = 1.0


class Output:
    """A writer of whole lines to a file descriptor, from any thread and in order.

    In an event loop a line that is not urgent waits for the end of the loop's turn; any other line
    is written at once. No method raises an error of the descriptor. After an error the lines are
    kept, up to `BACKLOG`, and written again later.

    `report` returns the line about a number of dropped lines.
    """

    def __init__(self, descriptor: int, report: Callable[[int], bytes]) -> None:
        self._descriptor, self._send = _open(descriptor)
        self._report = report
        # Reentrant, as a finalizer or a signal handler may write a line while we do.
        self._lock = threading.RLock()
        self._flushing = False
        self._waiting: deque[bytes] = deque()
        self._unsent: bytes | memoryview = b""
        self._blocked = False
        self._held = 0
        self._dropped = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def write(self, line: bytes) -> None:
        """Write a line, together with the others of this turn of the event loop."""
        self._keep(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if loop is not self._loop:
            self._loop = loop
            loop.call_soon(self._end_turn)

    def write_urgent(self, line: bytes) -> None:
        """Write a line and those before it at once, since the process may be about to end."""
        self._keep(line)
        self.flush()

    def flush(self) -> int:
        """Write without blocking; return the number of bytes that are left."""
        with self._lock:
            if self._flushing:
                return self._held
            self._flushing = True
            try:
                self._flush()
            finally:
                self._flushing = False
            return self._held

    def drain(self) -> None:
        """Write all lines before the process ends; wait while the reader makes progress."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        before = -1
        while (left := self.flush()) and left != before and poll.poll(LAST_WAIT * 1000):
            before = left

    def end_by_signal(self, number: int, _: FrameType | None = None) -> None:
        """Handle a fatal signal: write all lines, then let its default action end the process."""
        self.drain()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _keep(self, line: bytes) -> None:
        if self._blocked:
            with self._lock:
                if self._held + len(line) > BACKLOG:
                    self._dropped += 1
                    return
                self._held += len(line)
        self._waiting.append(line)

    def _end_turn(self) -> None:
        self._loop = None
        self.flush()
        if self._blocked:
            self._loop = asyncio.get_running_loop()
            self._loop.call_later(RETRY, self._end_turn)

    def _flush(self) -> None:
        while True:
            if not self._unsent:
                if not self._waiting and self._dropped:
                    self._waiting.append(self._report(self._dropped))
                    self._dropped = 0
                # Other threads may append meanwhile, but only this one removes.
                self._unsent = b"".join(
                    [self._waiting.popleft() for _ in range(len(self._waiting))]
                )
            if not self._unsent:
                self._blocked, self._held = False, 0
                return
            try:
                sent = self._send(self._unsent)
            except OSError:  # the reader is slow or gone, or its disk is full
                if not self._blocked:
                    self._held = len(self._unsent) + sum(map(len, self._waiting))
                    self._blocked = True
                return
            self._held -= sent
            self._unsent = memoryview(self._unsent)[sent:]


def _open(descriptor: int) -> tuple[int, Callable[[bytes | memoryview], int]]:
    """Return a descriptor of our own, and a function that writes to it without blocking.

    O_NONBLOCK on the given descriptor would hold for all processes that share it, such as a shell.
    A regular file and a terminal are written to with blocking writes.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode):
        # The new descriptor of the same pipe has its own flags. Opening fails if the pipe is
        # another user's, or has no reader any more.
        with contextlib.suppress(OSError):
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            return own, functools.partial(os.write, own)
    # A file that later gets the number of a closed original must not receive our lines.
    own = os.dup(descriptor)
    if stat.S_ISSOCK(mode):  # systemd connects a service's output to a socket
        connection = socket.socket(fileno=own)
        return own, lambda data: connection.send(data, socket.MSG_DONTWAIT)
    return own, functools.partial(os.write, own)
