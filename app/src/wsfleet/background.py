"""Work that nobody waits for."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import structlog
from redis.exceptions import RedisError

from wsfleet.store import UnavailableError

log = structlog.get_logger(__name__)


class Background:
    """Holds on to its tasks until they end: the event loop alone would let them be collected."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[Any]) -> None:
        """Begin with something; that Redis is away is only noted, whoever reconnects makes up."""
        task = asyncio.create_task(_run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _run(work: Awaitable[Any]) -> None:
    try:
        await work
    except (UnavailableError, RedisError, OSError) as error:
        log.debug("put off", error=str(error))
