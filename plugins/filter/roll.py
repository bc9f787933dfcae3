"""The plan of a rolling update: the order of the hosts, and how often each client moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SERVING = "serving"
STANDBY = "standby"
"""Places of a host in the pool, as `wsfleet status --json` has them under `hosts`."""


def roll_plan(
    hosts: Sequence[Mapping[str, Any]], places: Mapping[str, str], serial: int | str = 1
) -> dict[str, Any]:
    """Plan the roll of hosts.

    Each has its `name`; `host`, its part of the nodes' names; `changed`, whether a process of it
    must be restarted; and `moves`, whether a node must, so that clients move.

    `places` are the hosts' places by `host`; before the first roll it is empty. `serial` is the
    number of hosts, or per cent of the hosts, that restart at once.

    Returns `order` and `batches` (the sizes for `serial`); `joins`, hosts in standby that serve
    before a client is moved, and `leaves`, as many serving hosts that are in standby afterwards;
    `moves`, how often a client moves at most; `uneven`, whether the clients must be spread over
    several hosts afterwards; and `text`, the plan for people.
    """
    changed = [host for host in hosts if host["changed"]]
    serving = [
        host["name"]
        for host in changed
        if host["moves"] and places.get(host["host"], SERVING) == SERVING
    ]
    size = _size(serial, len(changed))
    spare = [host["name"] for host in hosts if places.get(host["host"]) == STANDBY]
    joins = spare[: min(size, len(serving))] if places and serving else []
    if len(joins) < min(size, len(serving)):
        joins = []  # the clients of a batch would not fit
    empty = [host["name"] for host in changed if host["name"] not in serving]
    empty += [name for name in joins if name not in empty]
    leaves = serving[len(serving) - len(joins) :]
    among = [host for host in hosts if places.get(host["host"], SERVING) == SERVING]
    uneven = bool(places and serving) and len(among) > 1
    moves = 0 if not (places and serving) else 2 if uneven and not joins else 1
    return {
        "order": empty + serving,
        "batches": [len(batch) for part in (empty, serving) for batch in _batches(part, size)],
        "joins": joins,
        "leaves": leaves,
        "moves": moves,
        "uneven": uneven,
        "text": _text(empty + serving, size, joins, leaves, moves),
    }


def _size(serial: int | str, count: int) -> int:
    text = str(serial)
    if text.endswith("%"):
        return max(1, count * int(text[:-1]) // 100)
    return max(1, int(text))


def _batches(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _text(
    order: Sequence[str], size: int, joins: Sequence[str], leaves: Sequence[str], moves: int
) -> str:
    if not order:
        return "No host has a process to restart."
    at_once = "one at a time" if size == 1 else f"{size} at a time"
    text = f"Hosts restart {at_once}: {', '.join(order)}."
    if joins:
        text += (
            f" First {', '.join(joins)} of the warm pool serves; afterwards {', '.join(leaves)} is"
            " in the pool instead. Each client moves once."
        )
    elif moves:
        text += (
            " No host of the warm pool can take the clients of those that restart, so a client"
            f" moves at most {'once' if moves == 1 else 'twice'}."
        )
    return text


class FilterModule:
    """The filters of the role."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"roll_plan": roll_plan}
