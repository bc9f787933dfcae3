"""The pace at which clients are asked to reconnect."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

STEP = 0.1
"""Seconds between two groups of clients that are asked to reconnect, plus or minus half."""


async def paced(rate: Callable[[], float]) -> AsyncIterator[int]:
    """Yield how many clients to ask now, without end, so that it is `rate()` clients a second."""
    due = 0.0
    while True:
        pause = STEP * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
        due += pause * rate()
        count = int(due)
        due -= count
        yield count
        await asyncio.sleep(pause)
