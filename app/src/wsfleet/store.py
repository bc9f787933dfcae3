"""The node's way to Redis: pooled, timed, batched, and honest about being away."""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from importlib import resources
from typing import Any, NamedTuple

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from wsfleet.settings import Settings

log = structlog.get_logger(__name__)

BATCH = 512
BACKOFF_FIRST, BACKOFF_LAST = 0.1, 2.0


class UnavailableError(Exception):
    """Redis does not answer; nothing is known to have been kept."""


class _Call(NamedTuple):
    command: tuple[Any, ...]
    replicated: bool
    future: asyncio.Future[Any]


class Store:
    """Commands of one event-loop tick share a round trip; nothing here blocks the loop.

    A command is sent once: where its answer is lost nobody can tell whether it ran, and saying so
    is the caller's business. Reconnecting, with backoff, is this class's.
    """

    def __init__(
        self, settings: Settings, on_connected: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._timeout = settings.redis_timeout
        pool = BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=settings.redis_max_connections,
            timeout=settings.redis_timeout,
            socket_connect_timeout=settings.redis_timeout,
            socket_timeout=settings.redis_timeout,
            retry=Retry(NoBackoff(), 0),
            client_name=settings.name,
        )
        self.redis = Redis.from_pool(pool)
        self._on_connected = on_connected
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._queue: list[_Call] = []
        self._queued = asyncio.Event()
        source = resources.files("wsfleet").joinpath("functions.lua").read_text()
        self._digest = hashlib.sha256(source.encode()).hexdigest()[:8]
        self._library = f"#!lua name=wsfleet_{self._digest}\n" + source.replace("@D@", self._digest)

    @property
    def connected(self) -> bool:
        """Whether Redis answered last time."""
        return self._connected.is_set()

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What must run in the background while the store is used."""
        return [self._stay_connected(), self._send_batches()]

    async def close(self) -> None:
        """Give the sockets back."""
        with contextlib.suppress(RedisError, OSError):
            await self.redis.aclose()

    async def call(self, *command: Any, replicated: bool = False) -> Any:
        """Run one command in the next batch.

        Raises:
            UnavailableError: Redis is away, or its answer did not come in time.
            redis.exceptions.ResponseError: Redis refused the command.
        """
        if not self.connected:
            raise UnavailableError("Redis is not reachable")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Call(command, replicated, future))
        self._queued.set()
        return await future

    async def function(
        self, name: str, keys: list[str], *args: Any, replicated: bool = False
    ) -> Any:
        """Call one of `functions.lua`; a Redis that has lost the library gets it again.

        `replicated`: return only when a replica has what was written, too.

        Raises:
            UnavailableError: as for `call`.
            redis.exceptions.ResponseError: as for `call`.
        """
        command = ("FCALL", f"wsfleet_{name}_{self._digest}", len(keys), *keys, *args)
        try:
            return await self.call(*command, replicated=replicated)
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            await self._load_functions()
            return await self.call(*command, replicated=replicated)

    def lost(self, error: BaseException) -> None:
        """Redis did not answer somebody: fail fast from now on, until it does again."""
        if self.connected:
            log.warning("redis lost", error=str(error) or type(error).__name__)
            self._connected.clear()
            self._lost.set()

    async def _send_batches(self) -> None:
        """While one batch is under way the next one gathers: the busier, the larger."""
        while True:
            await self._queued.wait()
            batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
            if not self._queue:
                self._queued.clear()
            try:
                results = await self._send(batch)
            except UnavailableError as error:
                self.lost(error)
                results = [error] * len(batch)
            for call, result in zip(batch, results, strict=True):
                if call.future.done():
                    continue
                if isinstance(result, Exception):
                    call.future.set_exception(result)
                else:
                    call.future.set_result(result)

    async def _send(self, batch: list[_Call]) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for call in batch:
            pipeline.execute_command(*call.command)
        replicated = any(call.replicated for call in batch)
        if replicated:  # once for the batch: it is about all that this connection has written
            pipeline.execute_command("WAIT", 1, int(500 * self._timeout))
        try:
            # The socket's time-out holds for each answer; a trickle of answers must end, too.
            async with asyncio.timeout(2 * self._timeout):
                results = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            raise UnavailableError(f"Redis is not reachable: {error}") from error
        if replicated and results.pop() == 0:
            unsure = UnavailableError("no replica of Redis confirmed the write")
            results = [
                unsure if call.replicated and not isinstance(result, Exception) else result
                for call, result in zip(batch, results, strict=True)
            ]
        return results

    async def _stay_connected(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            try:
                # Whatever broke one connection broke the idle ones as well.
                await self.redis.connection_pool.disconnect(inuse_connections=False)
                await self._load_functions()
            except (RedisError, OSError, TimeoutError) as error:
                log.info("redis away", error=str(error), retry_in=round(delay, 2))
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(2 * delay, BACKOFF_LAST)
                continue
            delay = BACKOFF_FIRST
            self._lost.clear()
            self._connected.set()
            log.info("redis connected")
            if self._on_connected is not None:
                with contextlib.suppress(UnavailableError):
                    await self._on_connected()
            await self._lost.wait()

    async def _load_functions(self) -> None:
        try:
            await self.redis.function_load(self._library)
        except ResponseError as error:
            if "already exists" not in str(error):
                raise
