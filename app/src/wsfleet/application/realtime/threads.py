"""A pool of threads that do not delay the exit of the process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple


class _Call(NamedTuple):
    function: Callable[[], Any]
    future: Future[Any]


class DaemonThreads:
    """A pool of at most `limit` threads, which start when they are needed.

    The interpreter does not exit before the threads of `concurrent.futures` have returned. For
    these, `finish` waits up to a limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = self._idle = self._queued = 0
        self._pending: dict[Future[Any], str] = {}

    async def run(self, name: str, function: Callable[[], Any]) -> Any:
        """Call a function in a thread, and return its result; `name` is for `finish`.

        A call that is cancelled while it waits for a thread is dropped.
        """
        future: Future[Any] = Future()
        self._pending[future] = name
        future.add_done_callback(self._pending.pop)
        with self._lock:
            self._queued += 1
            if self._queued > self._idle and self._count < self._limit:
                self._count += 1
                self._idle += 1
                name_of_thread = f"wsfleet-handler_{self._count}"
                threading.Thread(target=self._work, name=name_of_thread, daemon=True).start()
        self._calls.put(_Call(function, future))
        return await asyncio.wrap_future(future)

    async def finish(self, seconds: float) -> list[str]:
        """Wait up to `seconds` for all calls; return the names of those left."""
        if pending := [asyncio.wrap_future(future) for future in list(self._pending)]:
            _, left = await asyncio.wait(pending, timeout=seconds)
            for each in left:
                each.cancel()  # or its thread would call an event loop that is closed
        return list(self._pending.values())

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            with self._lock:
                self._queued -= 1
                self._idle -= 1
            settle = self._run(call) if call.future.set_running_or_notify_cancel() else None
            with self._lock:
                self._idle += 1
            if settle is not None:
                settle()
            del call, settle  # else the thread keeps event and result until its next call

    def _run(self, call: _Call) -> Callable[[], None]:
        """Call the function; return what gives its outcome to the future."""
        try:
            return partial(call.future.set_result, call.function())
        except StopIteration as error:  # asyncio's futures refuse it, as coroutines do (PEP 479)
            stopped = RuntimeError("the handler raised StopIteration")
            stopped.__cause__ = error
            return partial(call.future.set_exception, stopped)
        except BaseException as error:
            return partial(call.future.set_exception, error)
