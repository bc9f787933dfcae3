"""Free TCP ports."""

import contextlib
import secrets
import socket

#: A node's private port is its port plus this, unless a setting says otherwise.
INTERNAL_PORT_OFFSET = 1000

_ports_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port that is free on every address and was not returned before.

    The port `INTERNAL_PORT_OFFSET` above it is free as well, and never returned. Both are below the
    ports that Linux gives to outgoing connections (ip_local_port_range): one of these could take a
    port before the server does. `secrets` is not seeded by a test, so processes that run side by
    side choose different ports.
    """
    while True:
        first = 10_000 + secrets.randbelow(32_768 - INTERNAL_PORT_OFFSET - 10_000)
        pair = {first, first + INTERNAL_PORT_OFFSET}
        if not pair & _ports_given and all(map(_can_listen, pair)):
            _ports_given.update(pair)
            return first


def _can_listen(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as listener:
        listener.bind(("", port))
        return True
    return False
