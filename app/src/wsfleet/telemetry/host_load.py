"""The load of machine and event loop, sampled in the background so that no request waits for it."""

import asyncio
import time
from collections.abc import Callable

import psutil

SAMPLE_INTERVAL = 1.0


class Sampler:
    """Memory and CPU of the machine, in per cent; `on_lag` is told by how much its timer was late.

    `psutil.cpu_percent(interval=None)` tells the load since its last call and 0.0 at the first, so
    calling it from each request would tell nothing; one task calls it at a steady pace instead.
    """

    def __init__(self, on_lag: Callable[[float], None] = lambda seconds: None) -> None:
        self._on_lag = on_lag
        self.cpu_usage = 0.0
        self.memory_usage: float = psutil.virtual_memory().percent

    async def run(self) -> None:
        """Sample until cancelled; the first reading comes after a tenth of a second."""
        psutil.cpu_percent(interval=None)
        await asyncio.sleep(SAMPLE_INTERVAL / 10)
        while True:
            self.cpu_usage = psutil.cpu_percent(interval=None)
            self.memory_usage = psutil.virtual_memory().percent
            due = time.monotonic() + SAMPLE_INTERVAL
            await asyncio.sleep(SAMPLE_INTERVAL)
            self._on_lag(max(0.0, time.monotonic() - due))
