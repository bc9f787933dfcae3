"""Free TCP ports."""

import contextlib
import fcntl
import os
import secrets
import socket
import tempfile
from functools import cache
from pathlib import Path

#: A node's private port is its port plus this, unless a setting says otherwise.
INTERNAL_PORT_OFFSET = 1000

_ports_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port that is free on every address and was not returned before.

    The port `INTERNAL_PORT_OFFSET` above it is free as well, and never returned. Both are below the
    ports that Linux gives to outgoing connections (ip_local_port_range): one of these could take a
    port before the server does. Processes that run side by side get different ports.
    """
    while True:
        # `secrets` is not seeded by a test.
        first = 10_000 + secrets.randbelow(32_768 - INTERNAL_PORT_OFFSET - 10_000)
        pair = {first, first + INTERNAL_PORT_OFFSET}
        if pair & _ports_given or not all(map(_can_listen, pair)):
            continue
        if _reserve(first):
            _ports_given.update(pair)
            return first


def _can_listen(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as listener:
        listener.bind(("", port))
        return True
    return False


def _reserve(port: int) -> bool:
    """Reserve a port and its private port among this user's processes, until this process ends."""
    for each in (port, port + INTERNAL_PORT_OFFSET):
        try:
            fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, each)
        except (BlockingIOError, PermissionError):  # another process has it
            return False
    return True


@cache
def _reservations() -> int:
    """Open the file whose bytes are locked, each by the process that has the port of its number."""
    path = Path(tempfile.gettempdir(), f"wsfleet-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
