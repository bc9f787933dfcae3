"""Free TCP ports."""

from __future__ import annotations

import random
import socket

from lab.ports import INTERNAL_PORT_OFFSET, free_port


def test_a_port_is_given_once_and_can_be_listened_on() -> None:
    """Neither a port nor the private port of its node is in the range of outgoing connections."""
    ports = [free_port() for _ in range(200)]
    assert len({*ports, *(port + INTERNAL_PORT_OFFSET for port in ports)}) == 400
    assert max(ports) + INTERNAL_PORT_OFFSET < 32_768
    for port in (ports[0], ports[0] + INTERNAL_PORT_OFFSET):
        socket.create_server(("127.0.0.1", port)).close()


def test_a_seed_does_not_choose_the_ports() -> None:
    """Two processes with the same seed choose different ports."""
    chosen = []
    for _ in range(2):
        random.seed(1)
        chosen.append([free_port() for _ in range(3)])
    assert not set(chosen[0]) & set(chosen[1])
