"""The node's client for Redis: finds the primaries, routes commands, reconnects."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog
from redis.exceptions import RedisError

from wsfleet.config.redis_url import RedisURL
from wsfleet.config.settings import Settings
from wsfleet.redis.connection import Link
from wsfleet.redis.memory.primary import MemoryLink, MemoryPrimary
from wsfleet.redis.primary import FullError, Primary, UnavailableError
from wsfleet.redis.topology import Shard, Topology
from wsfleet.tasks import race

__all__ = ["AnyLink", "AnyPrimary", "FullError", "Store", "UnavailableError"]

log = structlog.get_logger(__name__)

BACKOFF_FIRST, BACKOFF_LAST = 0.1, 1.0

AnyPrimary = Primary | MemoryPrimary
"""A Redis server, or the memory of this process."""
AnyLink = Link | MemoryLink
"""A pub/sub connection to one of them."""


class Store:
    """The current primaries; when one is lost, all are looked up again.

    A Redis Cluster without one of its primaries is unavailable. This class reconnects, with
    backoff; a lost command is the caller's to handle.
    """

    def __init__(
        self, settings: Settings, on_connected: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._settings = settings
        self.topology = Topology(RedisURL.parse(settings.redis_url), settings.redis_timeout)
        self._on_connected = on_connected
        self._primaries: list[AnyPrimary] = []
        self._changed = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether Redis answered the last time."""
        return bool(self._primaries) and all(primary.alive for primary in self._primaries)

    @property
    def primaries(self) -> list[AnyPrimary]:
        """The current primaries, a new list after each reconnect; empty until they are known."""
        return self._primaries

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that must run in the background."""
        return [self._stay_connected()]

    async def changed(self) -> None:
        """Wait until the list of primaries changes."""
        await self._changed.wait()

    async def wait_connected(self) -> None:
        """Wait until Redis answers."""
        while not self.connected:
            await self.changed()

    async def close(self) -> None:
        """Close all connections."""
        await self._leave()
        await self.topology.aclose()

    def owner(self, key: str) -> AnyPrimary:
        """Return the primary that owns a key or a pub/sub channel.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        for primary in self._primaries:
            if primary.owns(key):
                return primary
        raise UnavailableError()

    async def call(self, *command: Any, key: str | None = None) -> Any:
        """Run a command on the owner of `key`, or of the command's first argument.

        Raises:
            UnavailableError: Redis is unavailable, or its answer did not come in time.
            redis.exceptions.ResponseError: Redis refused the command.
        """
        return await self.owner(command[1] if key is None else key).call(*command)

    async def function(
        self, name: str, keys: list[str], *args: Any, replicated: bool = False
    ) -> Any:
        """Call one of `functions.lua` on the owner of its keys.

        Raises:
            UnavailableError: as for `call`, or no replica confirmed.
            redis.exceptions.ResponseError: as for `call`.
        """
        primary = self.owner(keys[0])
        return await primary.function(name, keys, *args, replicated=replicated)

    async def forget_functions(self, used: set[str]) -> None:
        """Delete the functions of versions that no node uses, by digest.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        await asyncio.gather(*(primary.forget_functions(used) for primary in self._primaries))

    async def _stay_connected(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            try:
                primaries = await self._find()
            except (RedisError, OSError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                log.info("redis_unavailable", error=reason, retry_in=round(delay, 2))
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(2 * delay, BACKOFF_LAST)
                continue
            delay = BACKOFF_FIRST
            self._primaries = primaries
            self._announce()
            log.info("redis_connected", primaries=len(primaries))
            try:
                await race(*(primary.serve() for primary in primaries), self._greet())
            except UnavailableError as error:
                log.warning("redis_connection_lost", error=str(error))
            finally:
                await self._leave()

    async def _greet(self) -> None:
        if self._on_connected is not None:
            with contextlib.suppress(UnavailableError, RedisError):
                await self._on_connected()
        await asyncio.Event().wait()

    async def _find(self) -> list[AnyPrimary]:
        shards = await self.topology.discover()
        primaries = [self._client(shard) for shard in shards]
        try:
            await asyncio.gather(*(primary.prepare() for primary in primaries))
        except BaseException:
            await asyncio.gather(*(primary.close() for primary in primaries))
            raise
        return primaries

    def _client(self, shard: Shard) -> AnyPrimary:
        if self.topology.url.kind == "memory":
            return MemoryPrimary(self.topology.url)
        return Primary(shard, self._settings, partial(self.topology.still_names, shard))

    async def _leave(self) -> None:
        """Fail commands at once until Redis answers again."""
        primaries, self._primaries = self._primaries, []
        self._announce()
        await asyncio.gather(*(primary.close() for primary in primaries))

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
