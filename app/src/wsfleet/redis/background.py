"""Work that nobody waits for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from wsfleet.redis.store import UnavailableError

log = structlog.get_logger(__name__)


class Background:
    """Holds on to its tasks until they end: the event loop alone would let them be collected.

    An exception ends nothing but the work that raised it: it is logged with its traceback and
    counted by `on_failed`.
    """

    def __init__(self, on_failed: Callable[[str], None] = lambda event: None) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_failed = on_failed

    def start(self, work: Awaitable[Any]) -> asyncio.Task[None]:
        """Begin with something; that Redis is away is only noted, whoever reconnects makes up."""
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, *work: Awaitable[Any]) -> None:
        """Do something, and wait for it; it goes on when whoever waits is cancelled."""
        await asyncio.shield(asyncio.gather(*map(self.start, work)))

    async def _run(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except (UnavailableError, RedisError, OSError) as error:
            log.debug("background_work_postponed", error=str(error))
        except Exception:
            log.exception("background_work_failed")
            self._on_failed("background")
