"""Disconnects that a node finds, and has no handler for."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple, TypeVar

import structlog

from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.store import Store

log = structlog.get_logger(__name__)

CHUNK = 500
"""Entries of Redis that are handled at once."""
KEPT = 86_400
"""Seconds for which they wait in Redis for a node with a handler."""

T = TypeVar("T")


class Untold:
    """The disconnects that a node without a handler finds: it leaves them to one with a handler.

    During a roll, nodes of two releases run side by side, and one may have no handler. A node finds
    disconnects in the record of a dead node, and in its own, from the last process of its name. It
    moves them into a record without a node, which nodes with a handler read at each heartbeat.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._store = node.store
        self._own = key_names.node_disconnects(node.settings.name)
        self._moving = asyncio.Lock()  # two at once would take their own record's entries for lost
        node.registry.on_dead.append(self.take)
        node.on_connected.append(self.leave)

    async def take(self, node: str) -> None:
        """Take over what a dead node has left, first into this node's own record.

        Several nodes may do so at once, also some with a handler: one of them gets an entry.

        Raises:
            UnavailableError: Redis is unavailable; the next heartbeat tries again.
        """
        async with self._moving:
            self._node.to_be_reaped = True  # until its record is empty
            async for moved in move(self._store, key_names.node_disconnects(node), self._own):
                if moved.lost:
                    await self._store.call("HDEL", self._own, *moved.lost)
        await self.leave()

    async def leave(self) -> None:
        """Leave what is in this node's record to the nodes with a handler.

        Raises:
            UnavailableError: Redis is unavailable; the next connection to it tries again.
        """
        found = 0
        async with self._moving:
            self._node.to_be_reaped = True
            async for moved in move(self._store, self._own, key_names.UNTOLD_DISCONNECTS):
                found += len(moved.won)
                await self._store.call("EXPIRE", key_names.UNTOLD_DISCONNECTS, KEPT)
            self._node.to_be_reaped = False
        if found:
            log.warning("disconnects_without_handler", clients=found)


class Moved(NamedTuple):
    """Entries of a record that `move` has written to another one."""

    won: dict[bytes, bytes]
    """Those that it has removed from the first record."""
    lost: list[bytes]
    """The clients whose entries another node has removed meanwhile."""


async def move(store: Store, source: str, target: str) -> AsyncIterator[Moved]:
    """Move the entries of a record to another one, some at a time.

    An entry is in `target` before it is removed from `source`, so none is lost with this node.

    Raises:
        UnavailableError: Redis is unavailable.
    """
    found = await store.call("HGETALL", source)
    for names in chunks(list(found)):
        pairs = [item for name in names for item in (name, found[name])]
        await store.call("HSET", target, *pairs)
        removed = await asyncio.gather(*(store.call("HDEL", source, name) for name in names))
        won = {name: found[name] for name, count in zip(names, removed, strict=True) if count}
        yield Moved(won, [name for name in names if name not in won])


def chunks(things: list[T]) -> list[list[T]]:
    """Return a list in parts of `CHUNK` elements."""
    return [things[i : i + CHUNK] for i in range(0, len(things), CHUNK)]
