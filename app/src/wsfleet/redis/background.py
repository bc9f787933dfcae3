"""Background work: tasks that no caller waits for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from wsfleet.redis.store import UnavailableError

log = structlog.get_logger(__name__)


class Background:
    """The background tasks of one owner; the event loop alone would let them be collected.

    An exception ends only the task that raised it: it is logged with its traceback and counted by
    `on_failed`.
    """

    def __init__(self, on_failed: Callable[[str], None] = lambda event: None) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_failed = on_failed

    def start(self, work: Awaitable[Any]) -> asyncio.Task[None]:
        """Run `work` in the background.

        If Redis is unavailable, that is logged; the reconnect path repairs the state.
        """
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, *work: Awaitable[Any]) -> None:
        """Run `work` in the background and wait for it; it goes on if the caller is cancelled."""
        await asyncio.shield(asyncio.gather(*map(self.start, work)))

    async def _run(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except (UnavailableError, RedisError, OSError) as error:
            log.debug("background_work_postponed", error=str(error))
        except Exception:
            log.exception("background_work_failed")
            self._on_failed("background")
