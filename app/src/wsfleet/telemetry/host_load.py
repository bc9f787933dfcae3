"""The load of machine and event loop, sampled by a background task."""

import asyncio
import time
from collections.abc import Callable

import psutil

SAMPLE_INTERVAL = 1.0


class Sampler:
    """A sampler of the machine's memory and CPU, in per cent, and of the event loop's lag.

    It calls `on_lag` with the seconds by which its timer was late. A request must not sample CPU:
    `psutil.cpu_percent(interval=None)` returns the load since its last call, and 0.0 at first.
    """

    def __init__(self, on_lag: Callable[[float], None] = lambda seconds: None) -> None:
        self._on_lag = on_lag
        self.cpu_usage = 0.0
        self.memory_usage: float = psutil.virtual_memory().percent

    async def run(self) -> None:
        """Sample until cancelled; the first sample is ready after a tenth of a second."""
        psutil.cpu_percent(interval=None)
        await asyncio.sleep(SAMPLE_INTERVAL / 10)
        while True:
            self.cpu_usage = psutil.cpu_percent(interval=None)
            self.memory_usage = psutil.virtual_memory().percent
            due = time.monotonic() + SAMPLE_INTERVAL
            await asyncio.sleep(SAMPLE_INTERVAL)
            self._on_lag(max(0.0, time.monotonic() - due))
