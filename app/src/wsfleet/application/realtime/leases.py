"""Leases: one holder of a name in the whole cluster, with a fencing token."""

import asyncio
import contextlib
import math
import random
import time
import uuid
from collections.abc import AsyncIterator

import structlog
from redis.exceptions import RedisError

from wsfleet.redis import key_names
from wsfleet.redis.store import Store, UnavailableError
from wsfleet.tasks import end

log = structlog.get_logger(__name__)

RETRY = 0.25
"""Seconds between two attempts to get a lease that another holds; plus or minus half of it."""
RENEWALS = 3
"""Renewals within `ttl`: two may fail."""


class Lease:
    """A lease that this process holds, until `lost` is set.

    `token` is the fencing token: each holder's is above that of all holders before it, by at least
    a million. Whatever a holder writes, the storage should refuse if it has seen a higher token. A
    process that was stopped for a while, or a failover of Redis, can otherwise have two writers.
    """

    def __init__(self, name: str, token: int, expires: float) -> None:
        self.name = name
        self.token = token
        self.lost = asyncio.Event()
        """Set when another process may hold the lease."""
        self.wanted = asyncio.Event()
        """Set while others wait for the lease; a renewal finds out, after a third of `ttl`."""
        self._expires = expires

    @property
    def held(self) -> bool:
        """Whether no other process can hold the lease now; also right after a pause."""
        return not self.lost.is_set() and time.monotonic() < self._expires

    def extend(self, expires: float, *, wanted: bool = False) -> None:
        """Note a renewal: the lease expires later, on this process's monotonic clock."""
        self._expires = expires
        if wanted:
            self.wanted.set()
        else:
            self.wanted.clear()

    def expires_in(self) -> float:
        """Return the seconds until it expires, unless it is renewed."""
        return self._expires - time.monotonic()


class Leases:
    """The leases of a node: in Redis, or in its memory."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @contextlib.asynccontextmanager
    async def hold(self, name: str, ttl: float) -> AsyncIterator[Lease]:
        """Hold a lease inside of the block; wait for it before.

        It is renewed `RENEWALS` times in `ttl` seconds, and released at the end.

        Raises:
            ValueError: `ttl` is not above 0.
        """
        if not 0 < ttl < math.inf:
            raise ValueError(f"a lease's ttl is in seconds, above 0: {ttl} is not")
        holder = uuid.uuid4().hex
        try:
            lease = await self._acquire(name, holder, ttl)
            renewing = asyncio.create_task(self._renew(lease, holder, ttl))
            try:
                yield lease
            finally:
                await end([renewing])
                lease.lost.set()
        finally:
            # Also if the caller was cancelled while it waited: Redis may have granted the lease.
            with contextlib.suppress(UnavailableError, RedisError):
                await self._store.function("lease_release", [key_names.lease(name)], holder)

    async def _acquire(self, name: str, holder: str, ttl: float) -> Lease:
        while True:
            with contextlib.suppress(UnavailableError, RedisError):
                asked = time.monotonic()
                token, _ = await self._ask(name, holder, ttl)
                if token:
                    return Lease(name, token, asked + ttl)
            await asyncio.sleep(RETRY * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def _renew(self, lease: Lease, holder: str, ttl: float) -> None:
        """Renew the lease until another holder may have it.

        A renewal counts from when it was asked for: Redis lets the lease expire after that.
        """
        pause = ttl / RENEWALS
        while (left := lease.expires_in()) > 0:
            await asyncio.sleep(min(pause, left))
            asked = time.monotonic()
            if not lease.held:
                break
            try:
                async with asyncio.timeout(lease.expires_in()):
                    token, wanted = await self._ask(lease.name, holder, ttl)
            except (UnavailableError, RedisError, TimeoutError) as error:
                log.warning("lease_renewal_failed", lease=lease.name, error=str(error))
                pause = RETRY
                continue
            if token != lease.token:
                break
            lease.extend(asked + ttl, wanted=wanted)
            pause = ttl / RENEWALS
        log.warning("lease_lost", lease=lease.name, token=lease.token)
        lease.lost.set()

    async def _ask(self, name: str, holder: str, ttl: float) -> tuple[int, bool]:
        """Acquire or renew; return the token, 0 if another holds the lease, and if it is wanted."""
        milliseconds = round(ttl * 1000)
        token, wanted = await self._store.function(
            "lease_acquire", [key_names.lease(name)], holder, milliseconds
        )
        return token, bool(wanted)
