"""Measure HAProxy's settings: the role's configuration, and the same with one more line."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.catalog import PEERS
from bench.modes import DEFAULT_CLIENTS, IN_FLIGHT, cpu_microseconds, kilobytes
from bench.rig import Rig, Shape
from lab.processes import tree

PEER = PEERS["wsfleet-centrifuge"]
CLIENTS = 500
#: Columns: messages in flight, or None for the memory of an idle connection.
COLUMNS: dict[str, int | None] = {
    "µs a delivery, one message in flight": 1,
    "µs a delivery, 16 in flight": IN_FLIGHT,
    "KB an idle connection": None,
}


@dataclass(frozen=True)
class Variant:
    """An additional line in a section of the configuration; without a line: the role's own."""

    line: str = ""
    section: str = "global"

    def __str__(self) -> str:
        """Return the cell of a table."""
        return f"`{self.line}`" if self.line else "the role's"


VARIANTS = (
    Variant(),
    Variant("tune.maxpollevents 200"),  # HAProxy's default
    Variant("tune.maxpollevents 10"),
    Variant("tune.bufsize 8192"),
    Variant("tune.bufsize 65536"),
    Variant("option splice-auto", "defaults"),
    Variant("tune.recv_enough 1024"),
    Variant("tune.sched.low-latency on"),
)


def measure(variant: Variant, column: str, seconds: float) -> dict[str, Any]:
    """Measure one column of one variant; the result is in `value`."""
    with ExitStack() as stack:
        rig = Rig(PEER, stack)
        pid, port = stack.enter_context(rig.haproxy(variant.section, variant.line))
        in_flight = COLUMNS[column]
        if in_flight is None:
            return kilobytes(rig, DEFAULT_CLIENTS, tree(pid), [port])
        clients = stack.enter_context(rig.clients(Shape.of(PEER, CLIENTS, in_flight), [port]))
        return cpu_microseconds(clients.measure("window", in_flight, seconds, tree(pid)))
