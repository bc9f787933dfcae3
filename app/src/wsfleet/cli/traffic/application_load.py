"""The clients of ``wsfleet load`` on an application's WebSocket, whose messages are its own."""

import asyncio
import random
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field

import uvloop
from rich.progress import Progress

from wsfleet.cli.access.endpoint import FleetEndpoint, unreachable
from wsfleet.cli.access.websocket_client import (
    ANSWER_TIMEOUT,
    Client,
    ConnectError,
    cookie_node,
)
from wsfleet.cli.measure.histogram import Histogram, Timeline
from wsfleet.cli.traffic.generator import Generator, progress_bar, raise_file_limit
from wsfleet.cli.traffic.load import LoadPlan
from wsfleet.cli.traffic.token_message import TokenMessage

_UNKNOWN = "unknown"
#: The least and the most seconds until a disconnected client reconnects.
_SHORTEST_DELAY, _LONGEST_DELAY = 0.05, 1.0


@dataclass
class ApplicationTally:
    """Counts of a run, and its times.

    `unsent` messages were due while their client was away; `cut` ones were on their way when their
    connection ended. `same_node` and `other_node` count reconnects, where answers name their node.
    """

    connect_time: Histogram = field(default_factory=Histogram)
    round_trip: Timeline = field(default_factory=Timeline)
    refused: Counter[str] = field(default_factory=Counter)
    disconnected: Counter[int] = field(default_factory=Counter)
    dropped_at: list[float] = field(default_factory=list)
    reconnects: int = 0
    same_node: int = 0
    other_node: int = 0
    sent: int = 0
    returned: int = 0
    unsent: int = 0
    cut: int = 0


@dataclass
class LoadVisitor:
    """One client over all its connections: its cookie, and the node of its last connection."""

    connection: "VisitorConnection"
    cookie: str | None = None
    node: str = _UNKNOWN
    reconnects: int = 0

    @property
    def connected(self) -> bool:
        """Whether it has a connection."""
        return not self.connection.transport.is_disconnected


class VisitorConnection(Client):
    """One connection of a visitor; `pending` has the due time of each message that is not back."""

    def __init__(self, run: "ApplicationRun") -> None:
        super().__init__()
        self.pending: dict[int, float] = {}
        self.visitor: LoadVisitor | None = None
        self._run = run

    def on_text(self, text: bytes) -> None:
        """Pass a message on."""
        self._run.received(self, text)

    def on_closed(self) -> None:
        """Pass the end on."""
        self._run.ended(self)


class ApplicationRun(Generator):
    """One load run on an application; a client that is disconnected reconnects with its cookie."""

    def __init__(
        self, endpoint: FleetEndpoint, plan: LoadPlan, message: TokenMessage | None
    ) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.plan = plan
        self.message = message
        self.tally = ApplicationTally()
        self.visitors: list[LoadVisitor] = []
        self.missing = self.unreturned = 0
        self._id = secrets.token_hex(4)
        self._token = re.compile(rb"wsfleet-%s-(\d{9})" % self._id.encode())
        self._returning: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def pending(self) -> int:
        """The number of messages that are sent and not back."""
        return self.tally.sent - self.tally.returned - self.tally.cut

    async def execute(self) -> None:
        """Run to the end; SIGINT and SIGTERM end it early."""
        self.stop_on_signals()
        plan = self.plan
        with progress_bar() as progress:
            await self.ramp(
                progress,
                self._enter,
                (plan.clients, plan.connect_rate),
                hopeless=lambda: bool(self.tally.refused) and not self.visitors,
            )
            if not self.visitors:
                raise unreachable(self.endpoint, next(iter(self.tally.refused), "interrupted"))
            try:
                if self.message is None:
                    await self._hold(progress)
                else:
                    size = (plan.messages, plan.rate)
                    await self.pace(progress, size, self._send, self._nothing_returns)
                await self._drain(progress)
            finally:
                await self._close()

    def received(self, connection: VisitorConnection, text: bytes) -> None:
        """Record the round trip if a connection's own message came back, in whatever form."""
        found = self._token.search(text)
        due = connection.pending.pop(int(found[1]), None) if found else None
        if found and due is not None:
            self.tally.returned += 1
            if int(found[1]) >= self.plan.warmup_messages:
                self.tally.round_trip.add(due - self.begin, time.perf_counter() - due)

    def ended(self, connection: VisitorConnection) -> None:
        """Count an end that this process did not ask for, and reconnect."""
        if self._closing:
            return
        self.tally.cut += len(connection.pending)
        connection.pending.clear()
        self.tally.disconnected[connection.close_code or 1006] += 1
        self.tally.dropped_at.append(self.at)
        task = asyncio.get_running_loop().create_task(self._return(connection))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _enter(self, _: int) -> None:
        """Open the first connection of a client."""
        connection = await self._connect(None)
        if connection is not None:
            visitor = connection.visitor = LoadVisitor(connection)
            self.visitors.append(visitor)
            self._note(visitor, connection)

    async def _return(self, ended: VisitorConnection) -> None:
        """Open the next connection of a client; try until that succeeds."""
        while not self._closing:
            await asyncio.sleep(random.uniform(_SHORTEST_DELAY, _LONGEST_DELAY))  # noqa: S311
            visitor = ended.visitor
            if visitor is None:
                return  # it was never open
            connection = await self._connect(visitor.cookie)
            if connection is None:
                continue
            self.tally.reconnects += 1
            visitor.reconnects += 1
            if connection.node is not None:
                if connection.node == visitor.node:
                    self.tally.same_node += 1
                else:
                    self.tally.other_node += 1
            self._note(visitor, connection)
            return

    async def _connect(self, cookie: str | None) -> VisitorConnection | None:
        connection = VisitorConnection(self)
        begin = time.perf_counter()
        try:
            await connection.connect(self.endpoint, cookie)
        except ConnectError as error:
            self.tally.refused[str(error)] += 1
            return None
        self.tally.connect_time.add(time.perf_counter() - begin)
        return connection

    def _note(self, visitor: LoadVisitor, connection: VisitorConnection) -> None:
        """Take a connection as the visitor's; the field names the node, or else the cookie."""
        connection.visitor = visitor
        visitor.connection = connection
        if connection.cookie is not None:
            visitor.cookie = connection.cookie.value
        named = cookie_node(visitor.cookie) if visitor.cookie else _UNKNOWN
        visitor.node = connection.node or named

    def _send(self, number: int, due: float) -> None:
        visitor = self.visitors[number % len(self.visitors)]
        if not visitor.connected:
            self.tally.unsent += 1
        elif self.message is not None:
            self.tally.sent += 1
            visitor.connection.pending[number] = due
            visitor.connection.send(self.message.with_token(f"wsfleet-{self._id}-{number:09}"))

    def _nothing_returns(self) -> bool:
        return self.pending > 0 and not self.tally.returned and self.at > ANSWER_TIMEOUT

    async def _hold(self, progress: Progress) -> None:
        """Hold the connections open."""
        progress.add_task("holding", total=None)
        self.begin = time.perf_counter()
        await self.until(self.begin + self.plan.warmup + self.plan.duration)

    async def _drain(self, progress: Progress) -> None:
        """Wait for messages and for clients that are away, at most `plan.drain` seconds."""
        progress.add_task("draining", total=None)
        deadline = time.perf_counter() + self.plan.drain
        while (self.pending or self._returning) and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)

    async def _close(self) -> None:
        self._closing = True
        self.missing = sum(not visitor.connected for visitor in self.visitors)
        self.unreturned = self.pending
        for task in self._returning:
            task.cancel()
        await asyncio.gather(*self._returning, return_exceptions=True)
        await self.close_all(visitor.connection for visitor in self.visitors)


def run_application_load(
    endpoint: FleetEndpoint, plan: LoadPlan, message: TokenMessage | None
) -> ApplicationRun:
    """Run a plan to its end, and return the run with its tally.

    Raises:
        CannotRun: no connection succeeds, or the limit of open files is too low.

    """
    raise_file_limit(plan.clients)
    return uvloop.run(_execute(endpoint, plan, message))


async def _execute(
    endpoint: FleetEndpoint, plan: LoadPlan, message: TokenMessage | None
) -> ApplicationRun:
    run = ApplicationRun(endpoint, plan, message)
    await run.execute()
    return run
