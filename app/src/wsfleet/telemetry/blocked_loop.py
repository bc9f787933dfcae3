"""A thread that logs which line of code blocks the event loop.

A callback that does not return stops all connections of the process, and its health check. Another
thread cannot interrupt it, but can read its stack.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

LIMIT = 0.1
"""Seconds without a turn after which the loop counts as blocked."""
INTERVAL = 0.05
"""Seconds between two checks."""
REPEAT = 10.0
"""Minimum of seconds between two log events about the same line."""
DEPTH = 12
"""Number of innermost frames in a log event."""
_LOOP_ITSELF = ("asyncio/runners.py", "asyncio/base_events.py", "uvicorn/_compat.py")


class BlockedLoopWatch:
    """A watch on the event loop of the thread that creates this object.

    When the loop turns again, the watching thread calls `on_blocked` with the seconds. A late loop
    without a callback does not count: the process or its machine was paused.
    """

    def __init__(self, on_blocked: Callable[[float], None]) -> None:
        self._on_blocked = on_blocked
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._turned = threading.Event()
        self._stopped = threading.Event()
        self._logged: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="blocked-loop-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may still log one event."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self._turned.clear()
            try:
                self._loop.call_soon_threadsafe(self._turned.set)
            except RuntimeError:  # the loop is closed
                return
            began = time.monotonic()
            if self._turned.wait(LIMIT) or not self._report():
                continue
            while not self._turned.wait(INTERVAL) and not self._stopped.is_set():
                pass
            self._on_blocked(time.monotonic() - began)

    def _report(self) -> bool:
        """Log the position of the loop's thread; return False if it runs no callback."""
        frame = sys._current_frames().get(self._watched)
        if frame is None or frame.f_code.co_filename.endswith(_LOOP_ITSELF):
            return False
        place, now = _place(frame), time.monotonic()
        if now - self._logged.get(place, -REPEAT) >= REPEAT:
            self._logged = {at: when for at, when in self._logged.items() if now - when < REPEAT}
            self._logged[place] = now
            stack = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=DEPTH)
            stack.reverse()
            log.warning("event_loop_blocked", at=place, stack="".join(stack.format()))
        return True


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
