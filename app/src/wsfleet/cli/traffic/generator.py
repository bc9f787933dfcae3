"""The parts that every load generator has: a paced ramp, a clock that a signal stops, its end."""

import asyncio
import contextlib
import resource
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wsfleet.cli.access.websocket_client import Client
from wsfleet.cli.errors import CannotRun

#: File descriptors that are not clients' sockets (stdio, event loop, libraries).
_SPARE_FILES = 64
#: Handshakes at a time: enough to keep a fleet busy, few enough for its listen queues.
_HANDSHAKES = 128
_LONG = 0.2  # seconds: a stop of the run interrupts only a longer pause


class Generator:
    """A run of many clients; SIGINT and SIGTERM set `stopped`.

    Sending begins at `begin` (of perf_counter; 0 before) and takes `sending_time` seconds, in
    which this process uses the part `cpu_share` of one core.
    """

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.begin = 0.0
        self.sending_time = 0.0
        self.cpu_share = 0.0

    @property
    def at(self) -> float:
        """Seconds since the sending began, or 0 before."""
        return time.perf_counter() - self.begin if self.begin else 0.0

    def stop_on_signals(self) -> None:
        """Let SIGINT and SIGTERM end the run early."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stopped.set)

    async def until(self, moment: float) -> None:
        """Sleep until a time of perf_counter, or until the run is stopped."""
        pause = moment - time.perf_counter()
        if pause > _LONG:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), pause)
        elif pause > 0:
            await asyncio.sleep(pause)

    async def ramp(
        self,
        progress: Progress,
        connect: Callable[[int], Coroutine[Any, Any, None]],
        size: tuple[int, float],
        hopeless: Callable[[], bool],
    ) -> None:
        """Call `connect` with each number of a client; `size` is clients, and clients a second.

        The ramp ends early when the run is stopped or `hopeless`.
        """
        clients, rate = size
        task = progress.add_task("connecting", total=clients)
        gate = asyncio.Semaphore(_HANDSHAKES)

        async def one(index: int) -> None:
            try:
                await connect(index)
            finally:
                gate.release()
                progress.advance(task)

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(clients):
                await self.until(begin + index / rate)
                await gate.acquire()
                if self.stopped.is_set() or hopeless():
                    gate.release()
                    break
                group.create_task(one(index))

    async def pace(
        self,
        progress: Progress,
        size: tuple[int, float],
        send: Callable[[int, float], None],
        hopeless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Call `send` with each number of a message when it is due, or at once if that is past.

        `size` is messages, and messages a second; `send` also gets the time at which the message
        was due. The sending ends early when the run is stopped or `hopeless`.
        """
        messages, rate = size
        task = progress.add_task("sending", total=messages)
        cpu, begin = time.process_time(), time.perf_counter()
        self.begin = begin
        step = 1 / rate
        for number in range(messages):
            due = begin + number * step
            if due > time.perf_counter():
                progress.update(task, completed=number)
                await self.until(due)
            elif number % 64 == 0:
                await asyncio.sleep(0)  # even when late, read what arrives
            if self.stopped.is_set() or hopeless():
                break
            send(number, due)
        else:
            await self.until(begin + messages * step)
        progress.update(task, completed=messages)
        self.sending_time = time.perf_counter() - begin
        self.cpu_share = (time.process_time() - cpu) / self.sending_time

    async def close_all(self, clients: Iterable[Client]) -> None:
        """Close all connections."""
        gate = asyncio.Semaphore(_HANDSHAKES)

        async def close(client: Client) -> None:
            async with gate:
                await client.close()

        await asyncio.gather(*(close(client) for client in clients))


def progress_bar() -> Progress:
    """Return a progress bar on stderr, which shows nothing if that is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,  # it draws in a thread of this process, which costs CPU
        disable=not console.is_terminal,
    )


def raise_file_limit(clients: int) -> None:
    """Raise the soft limit of open files to the hard limit if `clients` sockets need more.

    Raises:
        CannotRun: the hard limit is too low.

    """
    need = clients + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            raise CannotRun(
                f"the run needs {need:,} open files, but the limit is {hard:,}. "
                f"Raise it (as root: `ulimit -n {need}`), or lower --clients."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
