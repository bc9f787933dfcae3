"""How handlers run: in the event loop or in a thread, each with a time-out."""

import asyncio
import contextvars
import sys
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from wsfleet import Accept, Connect, Disconnect, Error, Realtime, Rpc
from wsfleet.application.port import BackendError, Client
from wsfleet.application.realtime.handlers import EventHandler, checked
from wsfleet.application.realtime.runner import Runner
from wsfleet.testing import Testbed

EVENT: Rpc[Any] = Rpc(client=Client("1"), method="m", data=None)


def handler(function: Any) -> EventHandler[Any]:
    """Return a function as a handler."""
    return checked("rpc", function, "on_rpc('m')")


async def test_a_plain_function_runs_in_a_thread() -> None:
    """The event loop goes on while it blocks; `async def` runs in the event loop."""
    release = threading.Event()

    def blocking(event: Rpc) -> int:
        release.wait()
        return threading.get_ident()

    async def here(event: Rpc) -> int:
        release.set()
        return threading.get_ident()

    runner = Runner(60, 1)
    blocked = asyncio.create_task(runner.run(handler(blocking), EVENT))
    await asyncio.sleep(0)
    assert await runner.run(handler(here), EVENT) == threading.get_ident()
    assert await blocked != threading.get_ident()


async def test_a_function_that_returns_an_awaitable_is_awaited() -> None:
    """A decorator that hides `async def` does no harm."""

    async def inner() -> int:
        return 7

    def outer(event: Rpc) -> Any:
        return inner()

    assert await Runner(60, 1).run(handler(outer), EVENT) == 7


async def test_a_full_pool_delays_handlers_only() -> None:
    """A handler waits for a thread at most until its time-out; others in the loop go on."""
    release = threading.Event()
    started = []

    def blocking(event: Rpc) -> None:
        started.append(1)
        release.wait()

    async def here(event: Rpc) -> str:
        return "here"

    runner = Runner(0.1, 2)
    calls = [asyncio.create_task(runner.run(handler(blocking), EVENT)) for _ in range(5)]
    assert await Runner(60, 1).run(handler(here), EVENT) == "here"
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, BackendError)
        assert error.reason == "timeout"
    assert len(started) == 2  # those that waited are not run later
    release.set()
    assert await Runner(60, 1).run(handler(here), EVENT) == "here"
    assert len(started) == 2


async def test_threads_are_used_again() -> None:
    """As many start as are needed at once; no call waits while there could be another thread."""
    barrier = threading.Barrier(3)

    def together(event: Rpc) -> int:
        barrier.wait(60)
        return threading.get_ident()

    runner = Runner(60, 3)
    rounds = []
    for _ in range(20):
        calls = (runner.run(handler(together), EVENT) for _ in range(3))
        rounds.append(set(await asyncio.gather(*calls)))
    assert len(rounds[0]) == 3
    assert all(each == rounds[0] for each in rounds)

    def alone(event: Rpc) -> int:
        return threading.get_ident()

    one = Runner(60, 3)
    assert len({await one.run(handler(alone), EVENT) for _ in range(20)}) == 1


async def test_a_process_that_stops_does_not_wait_for_a_handler_that_hangs() -> None:
    """It waits for the time-out, and logs the names of those left; others it waits for."""
    release, returned = threading.Event(), []

    def hangs(event: Rpc) -> None:
        release.wait()

    def returns(event: Rpc) -> None:
        release.wait()
        returned.append(1)

    runner = Runner(0.05, 2)
    with pytest.raises(BackendError):
        await runner.run(handler(hangs), EVENT)
    with capture_logs() as lines:
        await runner.finish()
    assert lines[0]["event"] == "handlers_left"
    assert lines[0]["handlers"] == [handler(hangs).name]
    patient = Runner(60, 2)
    calls = [asyncio.create_task(patient.run(handler(returns), EVENT)) for _ in range(2)]
    await asyncio.sleep(0)
    finishing = asyncio.create_task(patient.finish())
    await asyncio.sleep(0)
    release.set()
    with capture_logs() as lines:
        await finishing
    assert (returned, lines) == ([1, 1], [])
    await asyncio.gather(*calls)


async def test_a_slow_handler_times_out() -> None:
    """The error names the handler and the time; a handler's own time-out is another exception."""

    async def slow(event: Rpc) -> None:
        await asyncio.Event().wait()

    async def own(event: Rpc) -> None:
        raise TimeoutError("of the database")

    with pytest.raises(BackendError, match=r"slow took longer than 0.01 s") as error:
        await Runner(0.01, 1).run(handler(slow), EVENT)
    assert error.value.reason == "timeout"
    with pytest.raises(BackendError, match=r"own raised TimeoutError: of the database") as error:
        await Runner(60, 1).run(handler(own), EVENT)
    assert error.value.reason == "exception"


@pytest.mark.parametrize("refusal", [Error(403, "no"), Disconnect(4501, "go")])
@pytest.mark.parametrize("blocking", [False, True])
async def test_a_refusal_is_raised(refusal: Exception, blocking: bool) -> None:
    """`Error` and `Disconnect` come from both kinds of handlers as they are."""

    async def refuse(event: Rpc) -> None:
        raise refusal

    def refuse_blocking(event: Rpc) -> None:
        raise refusal

    with pytest.raises(type(refusal)) as raised:
        await Runner(60, 1).run(handler(refuse_blocking if blocking else refuse), EVENT)
    assert raised.value is refusal


async def test_another_exception_is_a_failure() -> None:
    """It is the cause of the failure, which has the handler's name."""

    def broken(event: Rpc) -> None:
        raise KeyError("oops")

    with pytest.raises(BackendError, match=r"broken raised KeyError: 'oops'") as failure:
        await Runner(60, 1).run(handler(broken), EVENT)
    assert isinstance(failure.value.__cause__, KeyError)


async def awaits_a_cancelled_task(event: Rpc) -> None:
    """Cancel a task, and await it."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


async def exits(event: Rpc) -> None:
    """Call a function that ends the process."""
    sys.exit(1)


def exits_blocking(event: Rpc) -> None:
    """Call such a function in a thread."""
    sys.exit(1)


async def raises_a_group(event: Rpc) -> None:
    """Raise a group with an exception that is not an `Exception`."""
    raise BaseExceptionGroup("several", [asyncio.CancelledError()])


@pytest.mark.parametrize(
    "function", [awaits_a_cancelled_task, exits, exits_blocking, raises_a_group]
)
async def test_what_would_end_the_task_or_the_process_is_a_failure(function: Any) -> None:
    """It is the handler's own failure; its traceback is in the log."""
    with pytest.raises(BackendError, match=r"raised RuntimeError: .* left the handler") as failure:
        await Runner(60, 1).run(handler(function), EVENT)
    assert failure.value.__cause__ is not None
    assert failure.value.__cause__.__cause__ is not None


async def test_a_handler_that_awaits_a_cancelled_task_ends_nothing_else() -> None:
    """Its client keeps its connection; a node whose `on_drain` does so drains."""
    realtime = Realtime()

    @realtime.on_connect
    async def connect(event: Connect) -> Accept:
        return Accept("anna")

    realtime.on_rpc("cancel")(awaits_a_cancelled_task)

    @realtime.on_rpc("echo")
    async def echo(event: Rpc) -> Any:
        return event.data

    @realtime.on_drain
    async def drain() -> None:
        await awaits_a_cancelled_task(EVENT)

    async with Testbed(realtime) as bed:
        client = await bed.connect()
        async with asyncio.timeout(10):
            with pytest.raises(Error, match="100"):
                await client.rpc("cancel")
            assert await client.rpc("echo", 1) == 1
        await bed.drain()


async def test_stop_iteration_in_a_thread_is_a_failure() -> None:
    """`next` of what is empty raises it, and a future of asyncio cannot have it."""

    def broken(event: Rpc) -> None:
        next(iter([]))

    with pytest.raises(BackendError, match=r"broken raised RuntimeError: .*StopIteration") as error:
        await Runner(60, 1).run(handler(broken), EVENT)
    assert error.value.reason == "exception"


async def test_a_cancelled_call_cancels_the_handler() -> None:
    """A handler ends when nobody waits for it any more."""
    ended = asyncio.Event()

    async def waits(event: Rpc) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = asyncio.create_task(Runner(60, 1).run(handler(waits), EVENT))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


async def test_contextvars_reach_the_thread() -> None:
    """A handler in a thread has the context of its call, as routes of FastAPI have."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")

    def read(event: Rpc) -> str:
        return variable.get()

    assert await Runner(60, 1).run(handler(read), EVENT) == "set"
