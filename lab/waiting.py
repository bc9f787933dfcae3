"""Wait for a condition.

A condition that raises one of `UNAVAILABLE` does not hold: the server may not serve yet. Any other
exception ends the wait.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import redis

UNAVAILABLE = (OSError, httpx.TransportError, redis.RedisError)
TIMEOUT = 60.0
"""Seconds until a wait has failed: a busy machine is slow, and only a failure takes that long."""


def attempts(seconds: float, pause: float = 0.05) -> Iterator[None]:
    """Yield at once and after each pause, until `seconds` are over."""
    deadline = time.monotonic() + seconds
    yield
    while time.monotonic() < deadline:
        time.sleep(pause)
        yield


def until(
    condition: Callable[[], Any], what: str, seconds: float = TIMEOUT, pause: float = 0.05
) -> None:
    """Wait until `condition` holds; the thread does nothing else meanwhile.

    Raises:
        AssertionError: it did not hold within `seconds`; the message names `what`, and
            what the condition returned or raised at last.
    """
    problem: Exception | None = None
    result: Any = None
    for _ in attempts(seconds, pause):
        try:
            if result := condition():
                return
            problem = None
        except UNAVAILABLE as error:
            problem = error
    raise _failure(what, seconds, result, problem) from problem


async def settled(
    condition: Callable[[], Awaitable[Any] | Any],
    what: str,
    seconds: float = TIMEOUT,
    pause: float = 0.05,
) -> None:
    """Wait until `condition` holds; other tasks run meanwhile. It may be a coroutine function.

    Raises:
        AssertionError: it did not hold within `seconds`; the message names `what`, and
            what the condition returned or raised at last.
    """
    problem: Exception | None = None
    result: Any = None
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = condition()
            if isinstance(result, Awaitable):
                result = await result
            if result:
                return
            problem = None
        except UNAVAILABLE as error:
            problem = error
        if time.monotonic() >= deadline:
            raise _failure(what, seconds, result, problem) from problem
        await asyncio.sleep(pause)


def _failure(what: str, seconds: float, result: Any, problem: Exception | None) -> AssertionError:
    seen = f"the condition raised {problem!r}" if problem else f"the condition returned {result!r}"
    return AssertionError(f"did not happen within {seconds:g} s: {what}; at last {seen}")


async def tasks_ended(seconds: float = TIMEOUT) -> None:
    """Wait until all other tasks of the loop have ended: an SDK closes its sockets in such tasks.

    Raises:
        TimeoutError: they did not end within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
