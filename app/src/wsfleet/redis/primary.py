"""A client for one Redis primary; commands of one event-loop tick share a round trip."""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from wsfleet.config.redis_url import RedisURL
from wsfleet.config.settings import Settings
from wsfleet.redis.connection import Link, Push, pack
from wsfleet.redis.topology import SLOTS, Shard
from wsfleet.tasks import race

BATCH = 512
OTHERS, OTHERS_MISSING = 50, 5
"""Milliseconds that the other replicas have after the first has confirmed a write, if they
confirmed the last one, and if they did not."""
_SOURCE = resources.files("wsfleet.redis").joinpath("functions.lua").read_text()
DIGEST = hashlib.sha256(_SOURCE.encode()).hexdigest()[:8]
"""The name of this version of the functions: old and new nodes share one Redis."""
_LIBRARY = "wsfleet_"


class UnavailableError(Exception):
    """Redis does not answer, or cannot store data; the command may or may not have run."""

    def __init__(self, message: str = "Redis is not reachable") -> None:
        super().__init__(message)


class FullError(UnavailableError):
    """Redis is out of memory for writes; reads still work."""


class MovedOnError(UnavailableError):
    """This server is no longer a usable primary: look for the current one."""


_Call = tuple[bytes, asyncio.Future[Any]]


@dataclass(slots=True)
class Replication:
    """When a write counts as replicated: it must be in each server that can become the primary.

    All `count` replicas have it, or one has it and the primary is `still` the current one.
    Otherwise the write is lost if the Sentinels promote a replica without it: they do so with a
    primary that answers again, or was replaced by hand, while the other replicas still follow it.
    """

    count: int
    still: Callable[[], Awaitable[bool]]
    missing: bool = False

    def commands(self, timeout: float) -> list[bytes]:
        """Return the commands that wait: half of `timeout` seconds for the first replica."""
        others = OTHERS_MISSING if self.missing else OTHERS
        return [pack(("WAIT", 1, int(500 * timeout))), pack(("WAIT", self.count, others))]

    async def problem(self, replicas: Any) -> UnavailableError | None:
        """Return why the writes are not replicated, by the answer to the last WAIT."""
        # An error means that the primary becomes a replica: -UNBLOCKED.
        if not isinstance(replicas, int) or replicas == 0:
            return UnavailableError("no replica of Redis confirmed the write")
        self.count = max(self.count, replicas)  # a replica that was added
        self.missing = replicas < self.count
        if not self.missing or await self.still():
            return None
        return UnavailableError("the Sentinels do not confirm the primary of Redis")


class Lane:
    """A queue of commands: while one batch is in flight, the next one gathers.

    With `replication` its commands wait for replicas; they must not delay the others.
    """

    def __init__(
        self,
        pool: BlockingConnectionPool,
        timeout: float,
        on_lost: Callable[[], None],
        replication: Replication | None = None,
    ) -> None:
        self._pool = pool
        self._link: Link | None = None
        self._on_lost = on_lost
        self._timeout = timeout
        self._replication = replication
        self._queue: list[_Call] = []
        self._queued = asyncio.Event()

    async def call(self, *command: Any) -> Any:
        """Run one command in the next batch.

        It is encoded here, so that an invalid command fails alone.
        """
        packed = pack(command)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((packed, future))
        self._queued.set()
        return await future

    def fail(self, error: UnavailableError) -> None:
        """Fail all pending commands."""
        self._answer(self._queue, [error] * len(self._queue))
        self._queue.clear()

    async def send_batches(self) -> None:
        """Send batches as commands come.

        Raises:
            UnavailableError: Redis was lost; pending commands have failed.
        """
        try:
            await self._send_batches()
        finally:
            await self._close()

    async def _send_batches(self) -> None:
        while True:
            await self._queued.wait()
            taken, self._queue = self._queue[:BATCH], self._queue[BATCH:]
            batch = [call for call in taken if not call[1].done()]  # the others are abandoned
            if not self._queue:
                self._queued.clear()
            try:
                results = [_translated(result) for result in await self._send(batch)]
            except BaseException as error:
                lost = error if isinstance(error, UnavailableError) else UnavailableError()
                self._on_lost()
                self._answer(batch, [lost] * len(batch))
                raise
            moved = next((each for each in results if isinstance(each, MovedOnError)), None)
            if moved is not None:
                self._on_lost()
            self._answer(batch, results)
            if moved is not None:
                raise moved

    async def _send(self, batch: list[_Call]) -> list[Any]:
        commands = [packed for packed, _ in batch]
        if self._replication:
            # Once for the batch: they wait for all that this connection has written.
            commands += self._replication.commands(self._timeout)
        try:
            link = await self._open()
            async with asyncio.timeout(self._timeout):
                results = await link.ask(commands)
        except (RedisError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"Redis is not reachable: {reason}") from error
        if self._replication is None:
            return results
        *results, _, replicas = results
        problem = await self._replication.problem(replicas)
        if problem is None:
            return results
        return [each if isinstance(each, Exception) else problem for each in results]

    async def _open(self) -> Link:
        if self._link is None or not self._link.alive:  # no command on it is unanswered
            await self._close()
            self._link = await Link.open(self._pool)
        return self._link

    async def _close(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            await link.close()

    def _answer(self, batch: list[_Call], results: Sequence[Any]) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


async def _sure() -> bool:
    return True


class Primary:
    """A client for one Redis primary.

    Commands are never retried: after a lost reply it is unknown whether they ran.
    """

    def __init__(
        self, shard: Shard, settings: Settings, still: Callable[[], Awaitable[bool]] = _sure
    ) -> None:
        self._slots = shard.slots
        self.owns_all = sum(map(len, shard.slots)) == SLOTS
        timeout = settings.redis_timeout
        url = RedisURL.parse(shard.url)
        self._name = ",".join(map(str, url.addresses)) or str(url)
        self._pool = BlockingConnectionPool.from_url(
            shard.url,
            max_connections=settings.redis_max_connections,
            timeout=timeout,
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            client_name=settings.name,
            protocol=3,
        )
        self._redis = Redis.from_pool(self._pool)
        self.alive = True
        self._lane = Lane(self._pool, timeout, self._fail_fast)
        self._replicated_lane = Lane(
            self._pool, timeout, self._fail_fast, Replication(shard.replicas, still)
        )
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __str__(self) -> str:
        """HOST:PORT of the primary, or the path of its Unix socket."""
        return self._name

    async def info(self) -> dict[str, Any]:
        """Return the server's answer to INFO: itself and its replicas.

        Raises:
            UnavailableError: it does not answer.
        """
        try:
            return await self._redis.info()
        except (RedisError, OSError) as error:
            raise UnavailableError(f"Redis is not reachable: {error}") from error

    async def listen(self, on_push: Callable[[Push], None]) -> Link:
        """Return a connection for pub/sub, which the caller closes.

        Raises:
            redis.exceptions.RedisError, OSError: none is available.
        """
        return await Link.open(self._pool, on_push)

    def owns(self, key: str) -> bool:
        """Return whether this primary owns a key."""
        if self.owns_all:
            return True
        # A key that is not Unicode may be anywhere: its command fails when it is encoded.
        slot = key_slot(key.encode(errors="surrogatepass"))
        return any(slot in slots for slots in self._slots)

    async def prepare(self) -> None:
        """Check that the server is a primary, and load the functions.

        Raises:
            redis.exceptions.RedisError, OSError: it is no primary, or does not answer.
        """
        role, *_ = await self._redis.execute_command("ROLE")  # type: ignore[no-untyped-call]
        if role not in (b"master", "master"):
            raise RedisError("it is a replica")
        await self.load_functions()

    async def close(self) -> None:
        """Close all connections; pending commands fail."""
        self._fail_fast()
        for lane in (self._lane, self._replicated_lane):
            lane.fail(UnavailableError())
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()

    async def call(self, *command: Any, replicated: bool = False) -> Any:
        """Run one command in the next batch.

        `replicated`: return only when the write is replicated, see `Replication`.

        Raises:
            UnavailableError: Redis is unavailable, its answer did not come in time, or the write is
                not replicated.
            redis.exceptions.ResponseError: Redis refused the command.
            redis.exceptions.DataError: the command is invalid: see `connection.pack`.
        """
        if not self.alive:
            raise UnavailableError()
        lane = self._replicated_lane if replicated else self._lane
        return await lane.call(*command)

    async def function(
        self, name: str, keys: list[str], *args: Any, replicated: bool = False
    ) -> Any:
        """Call one of `functions.lua`; load the library again if Redis has lost it.

        Raises:
            UnavailableError: as for `call`.
            redis.exceptions.ResponseError: as for `call`.
        """
        command = ("FCALL", f"{_LIBRARY}{name}_{DIGEST}", len(keys), *keys, *args)
        try:
            return await self.call(*command, replicated=replicated)
        except ResponseError:
            # Redis has the same code, ERR, for an unknown function and for most other errors.
            if await self.call("FUNCTION", "LIST", "LIBRARYNAME", f"{_LIBRARY}{DIGEST}"):
                raise
        try:
            await self.load_functions()
        except (RedisError, OSError) as error:
            raise UnavailableError(f"Redis is not reachable: {error}") from error
        return await self.call(*command, replicated=replicated)

    async def load_functions(self) -> None:
        """Load the functions into Redis.

        Raises:
            redis.exceptions.RedisError, OSError: Redis did not load them.
        """
        library = f"#!lua name={_LIBRARY}{DIGEST}\n" + _SOURCE.replace("@D@", DIGEST)
        await self._redis.function_load(
            library, replace=True
        )  # the same, if another node was first

    async def forget_functions(self, used: set[str]) -> None:
        """Delete the functions of versions that no node uses, by digest.

        Raises:
            UnavailableError: Redis is unavailable.
        """
        libraries = await self.call("FUNCTION", "LIST", "LIBRARYNAME", f"{_LIBRARY}*")
        for library in libraries:
            name = library[b"library_name"].decode()
            if name.removeprefix(_LIBRARY) not in used | {DIGEST}:
                with contextlib.suppress(ResponseError):  # another node was first
                    await self.call("FUNCTION", "DELETE", name)

    def _fail_fast(self) -> None:
        self.alive = False

    def lost(self, error: Exception) -> None:
        """Note that this server is no longer the primary."""
        self._fail_fast()
        if not self._lost.done():
            self._lost.set_exception(MovedOnError(str(error)))

    async def serve(self) -> None:
        """Send commands until Redis is lost.

        Raises:
            UnavailableError: Redis was lost; pending commands have failed.
        """
        await race(
            self._lane.send_batches(), self._replicated_lane.send_batches(), _raised(self._lost)
        )


async def _raised(future: asyncio.Future[None]) -> None:
    await future


def _translated(result: Any) -> Any:
    """Return this package's exception for an error of Redis, or the error itself."""
    if not isinstance(result, ResponseError):
        return result
    # MISCONF: its disk is full or broken.
    useless = str(result).startswith(("NOREPLICAS", "MISCONF"))
    if useless or isinstance(result, MovedError | ClusterDownError | ReadOnlyError):
        return MovedOnError(f"this Redis cannot take it: {result}")
    if isinstance(result, AskError | TryAgainError):  # of which MovedError is a kind
        return UnavailableError("this part of the Redis Cluster is being moved")
    if str(result).startswith("OOM"):  # it can be read, and room may come
        return FullError(f"Redis has no room: {result}")
    return result
