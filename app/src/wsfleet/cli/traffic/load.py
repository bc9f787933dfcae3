"""The clients of ``wsfleet load``: they send at a steady rate and account for every message."""

import asyncio
import contextlib
import resource
import secrets
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wsfleet.cli.access.endpoint import Endpoint, unreachable
from wsfleet.cli.access.websocket_client import Client, ConnectError, cookie_node
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.histogram import Histogram
from wsfleet.cli.measure.load_ledger import Book, Ledger, check_size

#: File descriptors that are not clients' sockets (stdio, event loop, libraries).
_SPARE_FILES = 64
#: Handshakes at a time: enough to keep a fleet busy, few enough for its listen queues.
_HANDSHAKES = 128
#: Broadcast texts in the cache of :meth:`LoadRun.number_of`.
_TEXTS = 4096
_UNKNOWN = "unknown"
_LONG = 0.2  # seconds: a stop of the run interrupts only a longer pause
#: Results of :meth:`LoadRun.number_of` for a text that is not a broadcast of this run.
_ANSWER, _FOREIGN = -1, -2


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The size of a run: `rate` is messages a second of all clients together, times are seconds."""

    clients: int
    rate: float
    duration: float
    warmup: float = 0.0
    size: int = 0
    connect_rate: float = 500.0
    drain: float = 10.0

    @property
    def messages(self) -> int:
        """The number of messages of the run, including the warm-up."""
        return max(1, round(self.rate * (self.warmup + self.duration)))

    @property
    def warmup_messages(self) -> int:
        """The number of messages that are not timed."""
        return min(self.messages, round(self.rate * self.warmup))


@dataclass
class Tally:
    """Failures by reason, and the times of the handshakes."""

    connect_time: Histogram = field(default_factory=Histogram)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    disconnected: Counter[str] = field(default_factory=Counter)
    dropped_at: list[float] = field(default_factory=list)
    unsent: int = 0


class Loader(Client):
    """One client of the run; it enters what it receives into its book."""

    def __init__(self, run: "LoadRun") -> None:
        super().__init__()
        self.run = run
        self.name = b""
        self.node = _UNKNOWN
        self.book: Book | None = None
        self.unanswered: deque[int] = deque()
        self.closing = False

    def on_text(self, text: bytes) -> None:
        """Enter a delivery, an acknowledgement or an error."""
        now = time.perf_counter()
        number = self.run.number_of(text)
        if number >= 0 and self.book is not None:
            self.book.got(number, now)
        elif number == _ANSWER:
            self.run.answered(self, text, now)

    def on_closed(self) -> None:
        """Count an end that this process did not ask for."""
        if not self.closing:
            self.run.dropped(self.close_code or 1006)


class LoadRun:
    """One load run from the first handshake to the last delivery."""

    def __init__(self, endpoint: Endpoint, plan: LoadPlan) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.id = secrets.token_hex(4)
        self.tally = Tally()
        self.loaders: list[Loader] = []
        self.ledger: Ledger
        self.stopped = asyncio.Event()
        self.cpu_share = 0.0
        self.sending_time = 0.0
        self.delivery_time = 0.0
        self._begin = 0.0
        self._texts: dict[bytes, int] = {}
        self._padding = "x" * plan.size

    def number_of(self, text: bytes) -> int:
        """Return the number of a broadcast of this run, else `_ANSWER` or `_FOREIGN`.

        A node sends the same bytes to all its clients. Each distinct text is parsed once, so that
        one process can account for thousands of receivers.
        """
        number = self._texts.get(text)
        if number is None:
            number = self._parse(text)
            if number == _ANSWER:
                return number  # an answer is for one client, and does not come twice
            if len(self._texts) >= _TEXTS:
                self._texts.clear()
            self._texts[text] = number
        return number

    def _parse(self, text: bytes) -> int:
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            self.tally.errors["not JSON"] += 1
            return _FOREIGN
        if not isinstance(message, dict) or message.get("type") != "message":
            return _ANSWER
        data = message.get("data")
        if not isinstance(data, dict) or data.get("run") != self.id:
            return _FOREIGN  # another application uses the fleet as well
        number = data.get("number")
        return number if isinstance(number, int) and 0 <= number < self.plan.messages else _FOREIGN

    def answered(self, loader: Loader, text: bytes, now: float) -> None:
        """Match an answer with the oldest unanswered message: they come in that order."""
        message = orjson.loads(text)
        kind = message.get("type") if isinstance(message, dict) else None
        if kind not in ("ack", "error") or not loader.unanswered:
            self.tally.errors[f"unexpected {kind}"] += 1
            return
        number = loader.unanswered.popleft()
        if kind == "ack":
            loader.node = message.get("hostname") or loader.node
            self.ledger.acknowledge(number, now)
        else:
            self.tally.errors[str(message.get("code"))] += 1

    def dropped(self, code: int) -> None:
        """Count a connection that the fleet ended, and record when."""
        self.tally.disconnected[str(code)] += 1
        since = time.perf_counter() - self._begin if self._begin else 0.0
        self.tally.dropped_at.append(since)

    async def execute(self) -> None:
        """Run to the end; SIGINT and SIGTERM end the sending early, not the accounting."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stopped.set)
        with _progress() as progress:
            await self._connect(progress)
            try:
                await self._send(progress)
                await self._drain(progress)
            finally:
                await self._close()

    async def _connect(self, progress: Progress) -> None:
        """Open all connections at the plan's rate; the ledger has a book for each that succeeds."""
        task = progress.add_task("connecting", total=self.plan.clients)
        gate = asyncio.Semaphore(_HANDSHAKES)

        async def connect() -> None:
            try:
                await self._connect_one()
            finally:
                gate.release()
                progress.advance(task)

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(self.plan.clients):
                await self._until(begin + index / self.plan.connect_rate)
                await gate.acquire()
                if self.stopped.is_set() or (self.tally.refused and not self.loaders):
                    gate.release()
                    break
                group.create_task(connect())
        if not self.loaders:
            raise unreachable(self.endpoint, next(iter(self.tally.refused), "interrupted"))
        self.ledger = Ledger(len(self.loaders), self.plan.messages, self.plan.warmup_messages)
        for index, loader in enumerate(self.loaders):
            loader.book = self.ledger.books[index]
            loader.name = f"load-{self.id}-{index}".encode()

    async def _connect_one(self) -> None:
        loader = Loader(self)
        begin = time.perf_counter()
        try:
            await loader.connect(self.endpoint)
        except ConnectError as error:
            self.tally.refused[str(error)] += 1
            return
        self.tally.connect_time.add(time.perf_counter() - begin)
        if loader.cookie is not None:
            loader.node = cookie_node(loader.cookie.value)
        self.loaders.append(loader)

    async def _send(self, progress: Progress) -> None:
        """Send each message when it is due, or at once if this process is late."""
        messages = self.plan.messages
        task = progress.add_task("sending", total=messages)
        cpu, begin = time.process_time(), time.perf_counter()
        self._begin = begin
        step = 1 / self.plan.rate
        for number in range(messages):
            due = begin + number * step
            if due > time.perf_counter():
                progress.update(task, completed=number)
                await self._until(due)
            elif number % 64 == 0:
                await asyncio.sleep(0)  # even when late, read what arrives
            if self.stopped.is_set():
                break
            self._send_one(number, due)
        progress.update(task, completed=messages)
        await self._until(begin + messages * step)
        self.sending_time = time.perf_counter() - begin
        self.cpu_share = (time.process_time() - cpu) / self.sending_time

    async def _until(self, moment: float) -> None:
        """Sleep until a time of perf_counter, or until the run is stopped."""
        pause = moment - time.perf_counter()
        if pause > _LONG:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), pause)
        elif pause > 0:
            await asyncio.sleep(pause)

    def _send_one(self, number: int, due: float) -> None:
        loader = self.loaders[number % len(self.loaders)]
        if loader.transport.is_disconnected:
            self.tally.unsent += 1
            return
        message = {
            "type": "load",
            "client_id": loader.name.decode(),
            "timestamp": datetime.now(UTC).isoformat(),
            "run": self.id,
            "number": number,
        }
        if self._padding:
            message["padding"] = self._padding
        self.ledger.sending(number, due)
        loader.unanswered.append(number)
        loader.send(orjson.dumps(message))

    async def _drain(self, progress: Progress) -> None:
        """Wait until all deliveries have arrived, at most `plan.drain` seconds."""
        ledger = self.ledger
        task = progress.add_task("draining", total=None)
        deadline = time.perf_counter() + self.plan.drain
        complete = False
        while not complete and time.perf_counter() < deadline:
            progress.update(task, completed=ledger.deliveries, total=ledger.expected or None)
            answered = ledger.acknowledged == ledger.sent
            complete = answered and ledger.deliveries >= ledger.expected
            if not complete:
                await asyncio.sleep(0.05)
        self.delivery_time = time.perf_counter() - self._begin
        # A duplicate arrives after the message that it repeats: wait for it.
        await asyncio.sleep(min(0.5, self.plan.drain))

    async def _close(self) -> None:
        gate = asyncio.Semaphore(_HANDSHAKES)

        async def close(loader: Loader) -> None:
            async with gate:
                loader.closing = True
                await loader.close()

        await asyncio.gather(*(close(loader) for loader in self.loaders))


def run_load(endpoint: Endpoint, plan: LoadPlan) -> LoadRun:
    """Run a plan to its end, and return the run with its ledger.

    Raises:
        CannotRun: no connection succeeds, the limit of open files is too low, or the run is too
            large for its ledger.

    """
    check_size(plan.clients, plan.messages)
    _raise_file_limit(plan.clients + _SPARE_FILES)
    return uvloop.run(_execute(endpoint, plan))


async def _execute(endpoint: Endpoint, plan: LoadPlan) -> LoadRun:
    load = LoadRun(endpoint, plan)
    await load.execute()
    return load


def _progress() -> Progress:
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


def _raise_file_limit(need: int) -> None:
    """Raise the soft limit of open files to the hard limit if `need` is above it.

    Raises:
        CannotRun: the hard limit is too low.

    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            raise CannotRun(
                f"the run needs {need:,} open files, but the limit is {hard:,}. "
                f"Raise it (as root: `ulimit -n {need}`), or lower --clients."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
