"""Waiting ends when the condition holds, when its time is over, and at an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from lab.waiting import attempts, settled, tasks_ended, until


def after(*failures: Exception | bool) -> Callable[[], bool]:
    """Return a condition that fails in these ways one after the other, and holds then."""
    coming = iter(failures)

    def condition() -> bool:
        failure = next(coming, True)
        if isinstance(failure, Exception):
            raise failure
        return failure

    return condition


def wait(condition: Callable[[], bool], seconds: float = 60, *, sync: bool) -> None:
    """Wait by one of the two functions."""
    if sync:
        until(condition, "it serves", seconds, pause=0)
    else:
        asyncio.run(settled(condition, "it serves", seconds, pause=0))


SYNC = pytest.mark.parametrize("sync", [True, False])


@SYNC
def test_a_server_that_is_not_up_yet_is_waited_for(sync: bool) -> None:
    """A condition may be false or raise ConnectionRefusedError before it holds."""
    wait(after(False, ConnectionRefusedError(), False), sync=sync)


@SYNC
def test_a_timeout_names_the_condition_and_its_cause(sync: bool) -> None:
    """The message names the condition; its last error is the cause."""
    forever = after(*[ConnectionRefusedError("nobody")] * 1_000_000)
    with pytest.raises(AssertionError, match=r"within 0\.01 s: it serves") as caught:
        wait(forever, 0.01, sync=sync)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert str(caught.value).endswith(
        "at last the condition raised ConnectionRefusedError('nobody')"
    )


@SYNC
def test_a_timeout_names_what_was_seen_instead(sync: bool) -> None:
    """A condition that returns what it has found explains itself."""
    with pytest.raises(AssertionError, match=r"it serves; at last the condition returned False"):
        wait(lambda: False, 0, sync=sync)


@SYNC
def test_an_error_of_the_condition_itself_ends_the_wait(sync: bool) -> None:
    """Only an unavailable server is waited for."""
    with pytest.raises(LookupError):
        wait(after(LookupError()), sync=sync)


async def test_a_coroutine_is_awaited() -> None:
    """A condition may be a coroutine function; other tasks run while it is waited for."""
    done = asyncio.Event()

    async def condition() -> bool:
        return done.is_set()

    asyncio.get_running_loop().call_soon(done.set)
    await settled(condition, "it is done")
    assert done.is_set()


def test_there_is_one_attempt_at_least() -> None:
    """The condition is tried once even if the time is zero."""
    assert len(list(attempts(0))) == 1


async def test_tasks_are_waited_for() -> None:
    """Also those that another task begins."""
    ended: list[str] = []

    async def work(*following: str) -> None:
        await asyncio.sleep(0)
        if following:
            begun.append(asyncio.create_task(work()))
        ended.extend(following or ["the last"])

    begun = [asyncio.create_task(work("the first"))]
    await tasks_ended()
    assert ended == ["the first", "the last"]
    assert all(task.done() for task in begun)
