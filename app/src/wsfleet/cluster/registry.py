"""The live nodes: this node's heartbeat, and the others that it learns of by it."""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from wsfleet.config.settings import Settings
from wsfleet.redis import key_names
from wsfleet.redis.store import Store, UnavailableError

log = structlog.get_logger(__name__)


class Registry:
    """The registry of live nodes: one sorted set of heartbeats, on Redis's clock."""

    def __init__(
        self, store: Store, settings: Settings, describe: Callable[[], dict[str, str]]
    ) -> None:
        self._store = store
        self._name = settings.name
        self._interval = settings.heartbeat_interval
        self._dead_after = settings.node_dead_after
        self._describe = describe
        self.on_dead: list[Callable[[str], Awaitable[None]]] = []
        self.on_beat: list[Callable[[], Awaitable[None]]] = []
        """Work that any of the nodes does, at each heartbeat, besides reaping."""
        self.on_unknown: list[Callable[[], Awaitable[None]]] = []
        self.on_wanted: Callable[[str | None], None] = lambda wanted: None
        self._hurry = asyncio.Event()
        self._beating = asyncio.Lock()
        self._left = False
        self._reaps = True

    async def run(self) -> None:
        """Send a heartbeat every interval, and reap dead nodes."""
        while True:
            started = time.monotonic()
            try:
                await self.beat()
            except (UnavailableError, RedisError, UnicodeDecodeError) as error:
                # UnicodeDecodeError: another program wrote into our keys.
                log.debug("heartbeat_failed", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval - (time.monotonic() - started)):
                    await self._hurry.wait()
            self._hurry.clear()

    def hurry(self) -> None:
        """Send the next heartbeat now: the node has news."""
        self._hurry.set()

    async def leave(self) -> None:
        """Remove this node from the registry, and send no more heartbeats: it stops."""
        self._left = True
        async with self._beating:  # a heartbeat under way would register it again
            await self._store.call("ZREM", key_names.NODES, self._name)
            await self._store.call("DEL", key_names.node(self._name))

    async def nodes(self) -> dict[str, dict[str, str]]:
        """Return the reports of the live nodes, by name.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        names = [_text(name) for name in await self._store.call("ZRANGE", key_names.NODES, 0, -1)]
        hashes = await asyncio.gather(
            *(self._store.call("HGETALL", key_names.node(n)) for n in names)
        )
        return {
            name: {_text(field): _text(value) for field, value in fields.items()}
            for name, fields in zip(names, hashes, strict=True)
            if fields  # that of a node that is silent has expired
        }

    async def wanted(self) -> dict[str, str]:
        """Return the nodes' desired states, `node_state.DRAIN` or `SERVE`, where they are set.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        answer = await self._store.call("HGETALL", key_names.DESIRED)
        return {_text(name): _text(wanted) for name, wanted in answer.items()}

    async def want(self, name: str, wanted: str) -> None:
        """Set the desired state of a node for an operator; the autoscaler leaves it alone.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await self._store.call("SREM", key_names.AUTOSCALE_DRAINED, name)
        await self._store.call("HSET", key_names.DESIRED, name, wanted)

    async def is_dead(self, name: str) -> bool:
        """Return whether a node is dead: no heartbeat, or no subscriber on its control channel.

        The second notices a killed process at once; the first, one whose machine is cut off.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        control = key_names.control(name)
        silence, (_, listeners) = await asyncio.gather(
            self._store.function("silence", [key_names.NODES], name),
            self._store.call("PUBSUB", "SHARDNUMSUB", control, key=control),
        )
        return bool(listeners == 0 or silence > 1000 * self._dead_after)

    async def beat(self) -> None:
        """Send one heartbeat, read this node's desired state, and reap dead nodes.

        Does nothing once this node has left: the heartbeat would register it again. One is under
        way at a time: two would reap a dead node at once, each in place of the other.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        async with self._beating:
            if self._left:
                return
            (known, stale), wanted = await self._report()
            self.on_wanted(_text(wanted) if wanted is not None else None)
            if not known:
                for repair in self.on_unknown:
                    await repair()
            if self._reaps:
                await self._reap([_text(name) for name in stale])

    async def _reap(self, stale: list[str]) -> None:
        for name in stale:
            for reap in self.on_dead:
                await reap(name)
            await self._store.function("forget", [key_names.NODES], name, self._dead_after)
        for work in self.on_beat:
            await work()

    async def stop_reaping(self) -> None:
        """Leave dead nodes to the other nodes from now on: this one stops.

        When this returns, none is being reaped.
        """
        self._reaps = False
        async with self._beating:
            pass

    async def _report(self) -> tuple[Any, Any]:
        """Send a heartbeat and this node's report; return its answer and the desired state."""
        fields = [item for pair in self._describe().items() for item in pair]
        answers = await asyncio.gather(  # one round trip
            self._store.function("heartbeat", [key_names.NODES], self._name, self._dead_after),
            self._store.call("HGET", key_names.DESIRED, self._name),
            self._store.function(
                "describe", [key_names.node(self._name)], math.ceil(self._dead_after), *fields
            ),
            return_exceptions=True,  # all have ended, so `leave` comes after them
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        beat, wanted, _ = answers
        return beat, wanted


def _text(stored: bytes) -> str:
    """Decode a value of Redis; one that is not UTF-8 is not from a node, and matches no name."""
    return stored.decode(errors="replace")
