"""How tasks are ended, and what runs until one of them ends."""

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
    """Run all of it until the first ends, end the rest, and raise what was raised.

    Raises:
        Exception: what the first to fail has raised.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
