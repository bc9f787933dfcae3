"""``wsfleet load``: many clients, a steady rate of messages, and exact books about all of them."""

import asyncio
import contextlib
import resource
import secrets
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import uvloop
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wsfleet.cli import CannotRun
from wsfleet.cli.access.websocket_client import (
    Client,
    ConnectError,
    Endpoint,
    cookie_node,
    unreachable,
)
from wsfleet.cli.measure.histogram import Histogram
from wsfleet.cli.measure.load_ledger import Book, Ledger, check_size
from wsfleet.cli.measure.page import Bars, Course, Spread
from wsfleet.cli.measure.report import Criterion, Figure, Report, table

#: File descriptors besides the clients' own (stdio, event loop, libraries).
_SPARE_FILES = 64
#: Handshakes in flight: enough to keep a fleet busy, few enough for its listen queues.
_HANDSHAKES = 128
#: Distinct broadcast texts that are remembered: see :meth:`Run.number_of`.
_TEXTS = 4096
_UNKNOWN = "unknown"
_LONG = 0.2  # seconds: a longer pause ends at once when the run is stopped


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `rate` is messages a second of all clients together, times are seconds."""

    clients: int
    rate: float
    duration: float
    warmup: float = 0.0
    size: int = 0
    connect_rate: float = 500.0
    drain: float = 10.0

    @property
    def messages(self) -> int:
        """Messages of the whole run, warm-up included."""
        return max(1, round(self.rate * (self.warmup + self.duration)))

    @property
    def warmup_messages(self) -> int:
        """Messages that are not timed."""
        return min(self.messages, round(self.rate * self.warmup))


@dataclass
class Tally:
    """What went wrong, by reason, and how connecting went."""

    connect_time: Histogram = field(default_factory=Histogram)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    disconnected: Counter[str] = field(default_factory=Counter)
    dropped_at: list[float] = field(default_factory=list)
    unsent: int = 0


class Loader(Client):
    """One client of the run: it enters what it hears into its book."""

    def __init__(self, run: "Run") -> None:
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
        """Count an end that nobody here asked for."""
        if not self.closing:
            self.run.dropped(self.close_code or 1006)


#: What :meth:`Run.number_of` says of a text that is no broadcast of this run.
_ANSWER, _FOREIGN = -1, -2


class Run:
    """One load run from the first handshake to the last delivery."""

    def __init__(self, endpoint: Endpoint, plan: Plan) -> None:
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
        """Return the number of the broadcast that `text` is, else `_ANSWER` or `_FOREIGN`.

        A node sends the same bytes to all its clients: each distinct text is parsed once, which
        is what lets one process keep the books of thousands of receivers.
        """
        number = self._texts.get(text)
        if number is None:
            number = self._parse(text)
            if number == _ANSWER:
                return number  # an answer is one client's own, and never seen again
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
            return _FOREIGN  # somebody else uses the fleet too
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
        """Count a connection that the fleet ended, and when it did."""
        self.tally.disconnected[str(code)] += 1
        since = time.perf_counter() - self._begin if self._begin else 0.0
        self.tally.dropped_at.append(since)

    async def execute(self) -> None:
        """Do the whole run; SIGINT ends the sending early and still draws up the books."""
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
        """Open all connections, paced; the books are for those that came about."""
        task = progress.add_task("connecting", total=self.plan.clients)
        gate = asyncio.Semaphore(_HANDSHAKES)
        first_error: list[ConnectError] = []

        async def connect() -> None:
            loader = Loader(self)
            begin = time.perf_counter()
            try:
                await loader.connect(self.endpoint)
            except ConnectError as error:
                self.tally.refused[str(error)] += 1
                first_error.append(error)
            else:
                self.tally.connect_time.add(time.perf_counter() - begin)
                if loader.cookie is not None:
                    loader.node = cookie_node(loader.cookie.value)
                self.loaders.append(loader)
            finally:
                gate.release()
                progress.advance(task)

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(self.plan.clients):
                await self._until(begin + index / self.plan.connect_rate)
                await gate.acquire()
                if self.stopped.is_set() or (first_error and not self.loaders):
                    gate.release()
                    break
                group.create_task(connect())
        if not self.loaders:
            raise unreachable(self.endpoint, first_error[0] if first_error else "interrupted")
        self.ledger = Ledger(len(self.loaders), self.plan.messages, self.plan.warmup_messages)
        for index, loader in enumerate(self.loaders):
            loader.book = self.ledger.books[index]
            loader.name = f"load-{self.id}-{index}".encode()

    async def _send(self, progress: Progress) -> None:
        """Send each message when it is due, or at once where this process is late."""
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
                await asyncio.sleep(0)  # late as we are, what arrives must be read
            if self.stopped.is_set():
                break
            self._send_one(number, due)
        progress.update(task, completed=messages)
        await self._until(begin + messages * step)
        self.sending_time = time.perf_counter() - begin
        self.cpu_share = (time.process_time() - cpu) / self.sending_time

    async def _until(self, moment: float) -> None:
        """Sleep until a moment of perf_counter, or until the run is stopped."""
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
        """Wait until everything has arrived, at most `plan.drain` seconds."""
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
        # A duplicate comes after the message it repeats: leave it time to show itself.
        await asyncio.sleep(min(0.5, self.plan.drain))

    async def _close(self) -> None:
        gate = asyncio.Semaphore(_HANDSHAKES)

        async def close(loader: Loader) -> None:
            async with gate:
                loader.closing = True
                await loader.close()

        await asyncio.gather(*(close(loader) for loader in self.loaders))


def run(endpoint: Endpoint, plan: Plan) -> Report:
    """Execute the plan and report.

    Raises:
        CannotRun: not one connection came about, or this process may not open that many, or
            the run is too large to be accounted for.

    """
    check_size(plan.clients, plan.messages)
    _raise_file_limit(plan.clients + _SPARE_FILES)
    load = uvloop.run(_execute(endpoint, plan))
    return report(load)


async def _execute(endpoint: Endpoint, plan: Plan) -> Run:
    load = Run(endpoint, plan)
    await load.execute()
    return load


def report(load: Run) -> Report:
    """Draw up what a finished run found."""
    verdict, tally, ledger, plan = load.ledger.verdict(), load.tally, load.ledger, load.plan
    unacknowledged = verdict.sent - verdict.acknowledged
    nodes = Counter(loader.node for loader in load.loaders)
    failed_connects = tally.refused.total()
    failed = (
        failed_connects
        + tally.disconnected.total()
        + tally.errors.total()
        + tally.unsent
        + verdict.echoed
    )
    interrupted = load.stopped.is_set()
    rates = {
        "messages_per_second": round(verdict.sent / load.sending_time, 1),
        "deliveries_per_second": round(verdict.deliveries / load.delivery_time, 1),
    }
    connect = tally.connect_time.summary()
    acks, deliveries = ledger.ack_latency.whole(), ledger.delivery_latency.whole()
    ack, delivery = acks.summary(), deliveries.summary()
    data: dict[str, Any] = {
        "url": load.endpoint.websocket,
        "clients": plan.clients,
        "connected": len(load.loaders),
        "rate": plan.rate,
        "duration": plan.duration,
        "interrupted": interrupted,
        "sent": verdict.sent,
        "acknowledged": verdict.acknowledged,
        "unacknowledged": unacknowledged,
        "deliveries": verdict.deliveries,
        "expected": verdict.expected,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "reordered": verdict.reordered,
        "echoed": verdict.echoed,
        "failed": failed,
        "refused": dict(tally.refused),
        "disconnected": dict(tally.disconnected),
        "errors": dict(tally.errors),
        "unsent": tally.unsent,
        **rates,
        "connect_latency": connect,
        "ack_latency": ack,
        "delivery_latency": delivery,
        "nodes": dict(sorted(nodes.items())),
        "generator_cpu_percent": round(load.cpu_share * 100, 1),
    }

    problems = [f"{count} x {reason}" for reason, count in tally.refused.items()]
    problems += [f"{n} disconnected, close code {code}" for code, n in tally.disconnected.items()]
    problems += [f"{count} x error {code!r}" for code, count in tally.errors.items()]
    broken = (
        (verdict.lost, "deliveries of acknowledged messages lost"),
        (verdict.duplicated, "deliveries duplicated"),
        (verdict.reordered, "deliveries out of their sender's order"),
        (verdict.echoed, "messages came back to their own sender"),
        (unacknowledged, "messages without acknowledgement"),
        (tally.unsent, "messages not sent: their client was disconnected"),
    )
    problems += [f"{count:,} {what}" for count, what in broken if count]
    criteria = [
        Criterion("clients that were refused", failed_connects),
        Criterion("clients that were disconnected", tally.disconnected.total()),
        Criterion("errors", tally.errors.total()),
        *(Criterion(what, count) for count, what in broken),
    ]

    overview = [
        ("clients connected", f"{len(load.loaders):,} of {plan.clients:,}"),
        ("messages sent", f"{verdict.sent:,} ({rates['messages_per_second']:,.1f}/s)"),
        ("acknowledged", verdict.acknowledged),
        ("deliveries", f"{verdict.deliveries:,} of {verdict.expected:,}"),
        ("deliveries/s", rates["deliveries_per_second"]),
        ("lost", verdict.lost),
        ("duplicated", verdict.duplicated),
        ("reordered", verdict.reordered),
        ("failed", failed),
        ("generator CPU", f"{load.cpu_share:.0%} of one core"),
    ]
    columns = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")
    latencies = [
        (name, *(summary[column] for column in columns))
        for name, summary in (("connect", connect), ("ack", ack), ("delivery", delivery))
    ]
    views: list[RenderableType] = [
        table("load", ("", ">value"), overview),
        table("latency", ("", ">p50 ms", ">p95 ms", ">p99 ms", ">max ms", ">n"), latencies),
        table("nodes", ("node", ">clients"), sorted(nodes.items())),
    ]
    if load.cpu_share > 0.9:
        views.append("The generator itself was the limit: the latencies are partly its own.")
    if interrupted:
        views.append("Interrupted: the books are those of what was sent until then.")
    figures: list[Figure] = [
        Bars("Clients by node", data["nodes"]),
        Course("Delivery over time", ledger.delivery_latency, dropped_at=tally.dropped_at),
        Spread("Delivery latency", deliveries),
        Spread("Acknowledgement latency", acks),
    ]
    return Report(data, views, problems, criteria, figures, "Load")


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,  # it draws in a thread of this process: cheap, but not free
        disable=not console.is_terminal,
    )


def _raise_file_limit(need: int) -> None:
    """Raise the soft limit of open files to the hard one if `need` is above it.

    Raises:
        CannotRun: the hard limit is too low.

    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            raise CannotRun(
                f"{need:,} files must be open, but the limit is {hard:,}. "
                f"Raise it (as root: `ulimit -n {need}`), or lower --clients."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
