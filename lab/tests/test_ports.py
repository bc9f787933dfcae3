"""Free TCP ports."""

from __future__ import annotations

import random
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from subprocess import PIPE

import pytest

from lab.paths import ROOT
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


def choose_first(number: int) -> Callable[[int], int]:
    """Return a `randbelow` that returns `number` once, and random numbers after it."""
    random_number = secrets.randbelow
    numbers = iter([number])
    return lambda below: next(numbers, random_number(below))


def test_a_port_of_another_process_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server may not listen yet: a port belongs to a process until that ends."""
    program = "from lab.ports import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True
    ) as other:
        assert other.stdout is not None
        taken = int(other.stdout.readline())
        for first in (taken, taken + INTERNAL_PORT_OFFSET, taken - INTERNAL_PORT_OFFSET):
            with monkeypatch.context() as patch:
                patch.setattr(secrets, "randbelow", choose_first(first - 10_000))
                assert free_port() != first
        other.communicate("end\n")
