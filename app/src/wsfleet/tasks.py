"""Ending asyncio tasks, and running several until one ends."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

AGAIN = 1.0
"""Seconds until a task that does not end is cancelled once more."""


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11 can swallow a cancellation that comes in
    the moment of its time-out, and redis-py uses it.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=AGAIN)


async def race(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until the first ends, end the rest, and raise its exception.

    Raises:
        Exception: the exception of the first one that failed.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
