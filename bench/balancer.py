"""What HAProxy's settings are worth: the role's configuration beside the same with a line more."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.catalog import PEERS
from bench.modes import FLYING, MANY, cpu_microseconds, kilobytes
from bench.rig import Rig, Shape
from lab.processes import tree

PEER = PEERS["wsfleet-centrifuge"]
CLIENTS = 500
#: Columns: messages in flight, or None for the memory of an idle connection.
COLUMNS: dict[str, int | None] = {
    "µs a delivery, one message in flight": 1,
    "µs a delivery, 16 in flight": FLYING,
    "KB an idle connection": None,
}


@dataclass(frozen=True)
class Variant:
    """A line that a section of the configuration has more; none: as the role has it."""

    line: str = ""
    section: str = "global"

    def __str__(self) -> str:
        """As a cell of a table."""
        return f"`{self.line}`" if self.line else "the role's"


VARIANTS = (
    Variant(),
    Variant("tune.maxpollevents 200"),  # HAProxy's own
    Variant("tune.maxpollevents 10"),
    Variant("tune.bufsize 8192"),
    Variant("tune.bufsize 65536"),
    Variant("option splice-auto", "defaults"),
    Variant("tune.recv_enough 1024"),
    Variant("tune.sched.low-latency on"),
)


def measure(variant: Variant, column: str, seconds: float) -> dict[str, Any]:
    """Take one number of one variant; `value` is the column's."""
    with ExitStack() as stack:
        rig = Rig(PEER, stack)
        pid, port = stack.enter_context(rig.haproxy(variant.section, variant.line))
        flying = COLUMNS[column]
        if flying is None:
            return kilobytes(rig, MANY, tree(pid), [port])
        clients = stack.enter_context(rig.clients(Shape.of(PEER, CLIENTS, flying), [port]))
        return cpu_microseconds(clients.measure("window", flying, seconds, tree(pid)))
