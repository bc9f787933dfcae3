"""Free TCP ports."""

import contextlib
import random
import socket

_ports_given: set[int] = set()


def free_port() -> int:
    """Return a TCP port that is free on every address and was not returned before.

    It is below the ports that Linux gives to outgoing connections (ip_local_port_range): one of
    these could take it before the server does.
    """
    while True:
        port = random.randrange(10_000, 32_768)  # noqa: S311 - it protects nothing
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            if port not in _ports_given:
                _ports_given.add(port)
                return port
