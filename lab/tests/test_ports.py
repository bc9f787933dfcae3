"""Free TCP ports."""

from __future__ import annotations

import socket

from lab.ports import free_port


def test_a_port_is_given_once_and_can_be_listened_on() -> None:
    """A port is never in the range of outgoing connections."""
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200
    assert max(ports) < 32_768
    socket.create_server(("127.0.0.1", ports[0])).close()
