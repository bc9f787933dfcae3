"""Runs handlers, each with a time-out: `async def` in the event loop, `def` in a thread."""

import asyncio
import contextvars
import inspect
from functools import partial
from typing import Any

import structlog

from wsfleet.application.port import BackendError, Disconnect, Error
from wsfleet.application.realtime.handlers import EventHandler
from wsfleet.application.realtime.threads import DaemonThreads

log = structlog.get_logger(__name__)


class Runner:
    """Runs handlers.

    A handler in a thread cannot be stopped: after its time-out it keeps its thread until it
    returns. So the number of threads is limited by a pool of their own, where a handler waits for
    a thread within its time-out. anyio's pool would start another thread.
    """

    def __init__(self, timeout: float, threads: int) -> None:
        self._timeout = timeout
        self._threads = DaemonThreads(threads)

    async def run(self, handler: EventHandler[Any], event: object) -> Any:
        """Call a handler, and return its result.

        Raises:
            Error, Disconnect: the handler refuses.
            BackendError: it took longer than the time-out, or raised another exception, which is
                its cause.
        """
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await self.call(handler, event)
        except (Error, Disconnect):
            raise
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                raise BackendError(
                    f"{handler.name} took longer than {self._timeout:g} s", reason="timeout"
                ) from None
            raise BackendError(f"{handler.name} raised {type(error).__name__}: {error}") from error

    async def call(self, handler: EventHandler[Any], *event: object) -> Any:
        """Call a handler without a time-out, and return its result.

        Raises:
            RuntimeError: the handler raised what would end its caller's task, or the process, such
                as the CancelledError of a task that it has cancelled and awaited.
        """
        try:
            if handler.blocking:
                context = contextvars.copy_context()
                function = partial(context.run, handler.function, *event)
                result = await self._threads.run(handler.name, function)
            else:
                result = handler.function(*event)
            return await result if inspect.isawaitable(result) else result
        except (Exception, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the caller is cancelled
            raise RuntimeError(f"{error!r} left the handler") from error

    async def finish(self) -> None:
        """Wait for the handlers in threads, at most for the time-out, and log those left.

        The process may exit then: they end with it.
        """
        if left := await self._threads.finish(self._timeout):
            log.warning("handlers_left", handlers=left)
