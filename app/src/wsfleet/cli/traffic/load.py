"""The clients of ``wsfleet load``: they send at a steady rate and account for every message."""

import asyncio
import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
import uvloop
from rich.progress import Progress

from wsfleet.cli.access.endpoint import FleetEndpoint, unreachable
from wsfleet.cli.access.websocket_client import Client, ConnectError, cookie_node
from wsfleet.cli.measure.histogram import Histogram
from wsfleet.cli.measure.load_ledger import Ledger, ReceiverBook, check_size
from wsfleet.cli.traffic.generator import Generator, progress_bar, raise_file_limit

#: Broadcast texts in the cache of :meth:`LoadRun.number_of`.
_TEXTS = 4096
_UNKNOWN = "unknown"
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
class LoadTally:
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
        self.book: ReceiverBook | None = None
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


class LoadRun(Generator):
    """One load run from the first handshake to the last delivery."""

    def __init__(self, endpoint: FleetEndpoint, plan: LoadPlan) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.plan = plan
        self.id = secrets.token_hex(4)
        self.tally = LoadTally()
        self.loaders: list[Loader] = []
        self.ledger: Ledger
        self.delivery_time = 0.0
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
        self.tally.dropped_at.append(self.at)

    async def execute(self) -> None:
        """Run to the end; SIGINT and SIGTERM end the sending early, not the accounting."""
        self.stop_on_signals()
        with progress_bar() as progress:
            await self._connect(progress)
            try:
                size = (self.plan.messages, self.plan.rate)
                await self.pace(progress, size, self._send_one)
                await self._drain(progress)
            finally:
                await self._close()

    async def _connect(self, progress: Progress) -> None:
        """Open all connections at the plan's rate; the ledger has a book for each that succeeds."""
        await self.ramp(
            progress,
            self._connect_one,
            (self.plan.clients, self.plan.connect_rate),
            hopeless=lambda: bool(self.tally.refused) and not self.loaders,
        )
        if not self.loaders:
            raise unreachable(self.endpoint, next(iter(self.tally.refused), "interrupted"))
        self.ledger = Ledger(len(self.loaders), self.plan.messages, self.plan.warmup_messages)
        for index, loader in enumerate(self.loaders):
            loader.book = self.ledger.books[index]
            loader.name = f"load-{self.id}-{index}".encode()

    async def _connect_one(self, _: int) -> None:
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
        loader.node = loader.node or _UNKNOWN
        self.loaders.append(loader)

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
        self.delivery_time = self.at
        # A duplicate arrives after the message that it repeats: wait for it.
        await asyncio.sleep(min(0.5, self.plan.drain))

    async def _close(self) -> None:
        for loader in self.loaders:
            loader.closing = True
        await self.close_all(self.loaders)


def run_load(endpoint: FleetEndpoint, plan: LoadPlan) -> LoadRun:
    """Run a plan to its end, and return the run with its ledger.

    Raises:
        CannotRun: no connection succeeds, the limit of open files is too low, or the run is too
            large for its ledger.

    """
    check_size(plan.clients, plan.messages)
    raise_file_limit(plan.clients)
    return uvloop.run(_execute(endpoint, plan))


async def _execute(endpoint: FleetEndpoint, plan: LoadPlan) -> LoadRun:
    load = LoadRun(endpoint, plan)
    await load.execute()
    return load
