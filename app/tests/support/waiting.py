"""Wait for a condition."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest


async def settled(condition: Callable[[], Awaitable[Any] | Any], what: str) -> None:
    """Wait until `condition` holds, at most ten seconds.

    Raises:
        AssertionError: it never held; the message says `what` did not happen.
    """
    for _ in range(200):
        result = condition()
        if result if not isinstance(result, Awaitable) else await result:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"did not happen within 10 s: {what}")


_START_TIMEOUT = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds; fail after a while."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (OSError, httpx.TransportError):
            pass  # not up yet
        time.sleep(0.05)
    pytest.fail(f"not within {_START_TIMEOUT} s: {what}")
