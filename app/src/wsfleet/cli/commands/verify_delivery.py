"""``wsfleet verify-delivery``: is anything that was acknowledged lost, doubled or out of order?"""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import centrifuge  # type: ignore[import-untyped]
import orjson
import uvloop
from rich.console import RenderableType

from wsfleet.cli import CannotRun
from wsfleet.cli.access.websocket_client import (
    Asker,
    Client,
    ConnectError,
    DisconnectedError,
    Endpoint,
)
from wsfleet.cli.measure.delivery_account import (
    Account,
    Acknowledged,
    Disconnected,
    Event,
    Faults,
    Position,
    Received,
    Sent,
    Subscribed,
    Terms,
)
from wsfleet.cli.measure.page import Course, Spread
from wsfleet.cli.measure.report import Criterion, Figure, Report, table

CENTRIFUGE_PATH = "/connection/websocket"
PLAIN_CHANNEL = "broadcast"
RETRY_PAUSE = 0.2
#: Seconds that the SDK waits before it connects again, and for each answer and each handshake.
SHORTEST_DELAY, LONGEST_DELAY, SDK_TIMEOUT = 0.1, 1.0, 5.0
#: Seconds for all subscribers to get in, and at the end to get what is still on its way.
ENTRY, DRAIN = 20.0, 20.0
#: Most seconds for closing all connections, whatever the servers do.
CLOSING = 2.0
#: What breaks the delivery contract, and what it means.
FAULTS = {
    "lost": "published, and never came to a subscriber that should have got it",
    "duplicated": "came to a subscriber again",
    "reordered": "came after something later, or at another place than to others",
    "recovered_wrongly": "what the server said of a recovery does not hold",
}
#: Examples of each kind that a person is shown; --json has more.
SHOWN_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `rate` is messages a second of each publisher, `timeout` seconds in all.

    All that happens is written to the file `events` as well, if there is one.
    """

    publishers: int = 4
    subscribers: int = 20
    messages: int = 50
    rate: float = 20.0
    protocol: str = "centrifuge"
    channel: str = PLAIN_CHANNEL
    timeout: float = 300.0
    events: Path | None = None


class Run:
    """One run: its account, and what publishers and subscribers of both protocols share."""

    def __init__(self, endpoint: Endpoint, plan: Plan, log: IO[bytes] | None = None) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self._log = log
        self.id = secrets.token_hex(4)
        self.account = Account(Terms(plan.publishers, plan.subscribers, plan.messages))
        self.errors: dict[str, int] = {}
        self.last_error = "no answer"
        self.entered = asyncio.Event()
        self.finishing = False
        self.stopping = False
        self._started = time.monotonic()  # the loop's own clock counts whole milliseconds
        self._write("began", lambda: {"time": time.time(), "run": self.id})

    @property
    def at(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def enter(self, event: Event) -> None:
        """Enter an event, until the run is being taken down."""
        if not self.stopping:
            self.account.enter(event)
            self._write(type(event).__name__, event._asdict)

    def _write(self, kind: str, fields: Callable[[], dict[str, Any]]) -> None:
        if self._log is not None:
            # A position is a named tuple, which orjson leaves to `default`.
            line = orjson.dumps({"event": kind.lower(), **fields()}, default=list)
            self._log.write(line + b"\n")

    def finish(self) -> None:
        """Publish nothing more; what was published is still accounted for."""
        self.finishing = True

    def message(self, publisher: int, sequence: int) -> dict[str, Any]:
        """What a publisher sends; the key makes a repeated plain message one."""
        return {
            "run": self.id,
            "publisher": publisher,
            "sequence": sequence,
            "idempotency_key": f"{self.id}-{publisher}-{sequence}",
        }

    def received(self, subscriber: int, data: Any, offset: int = 0) -> None:
        """Enter a publication, if it is of this run."""
        if isinstance(data, dict) and data.get("run") == self.id:
            publisher, sequence = data["publisher"], data["sequence"]
            self.enter(Received(self.at, subscriber, publisher, sequence, offset))

    def failed(self, error: Exception) -> None:
        """Note an error that is answered by trying again."""
        self.last_error = _reason(error)
        self.errors[self.last_error] = self.errors.get(self.last_error, 0) + 1

    async def publish_all(
        self, publisher: int, publish: Callable[[dict[str, Any]], Awaitable[None]], *, keyed: bool
    ) -> None:
        """Once all subscribers are there, publish each message until it is acknowledged."""
        await self.entered.wait()
        for sequence in range(self.plan.messages):
            if self.finishing:
                return
            message = self.message(publisher, sequence)
            while True:
                self.enter(Sent(self.at, publisher, sequence, keyed))
                try:
                    await publish(message)
                except _PASSING as error:
                    self.failed(error)
                else:
                    break
                await asyncio.sleep(RETRY_PAUSE)
            self.enter(Acknowledged(self.at, publisher, sequence))
            await asyncio.sleep(1 / self.plan.rate)

    def all_there(self) -> bool:
        """Whether every subscriber is connected and misses nothing."""
        findings = self.account.findings()
        return not findings.lost.count and not findings.absent


class _RefusedError(Exception):
    """The server answered a message with an error that may pass."""


#: What is answered by trying again.
_PASSING = (
    ConnectError,
    DisconnectedError,
    TimeoutError,
    _RefusedError,
    centrifuge.CentrifugeError,
)


def _reason(error: Exception) -> str:
    """What went wrong, without what is different each time, so that it can be counted."""
    match error:
        case TimeoutError() | centrifuge.OperationTimeoutError():
            return "no answer in time"
        case centrifuge.ClientDisconnectedError():
            return "disconnected"
        case centrifuge.ReplyError():
            return f"{error.code} {error.message}"
        case _:
            return str(error) or type(error).__name__


def _unwanted(who: str, code: object, reason: str) -> CannotRun:
    return CannotRun(
        f"{who} was refused for good: {code} {reason}. "
        "Check --channel, and what the nodes' configuration allows (docs/configuration.md)."
    )


class Party(Protocol):
    """A publisher or a subscriber."""

    def work(self) -> Coroutine[Any, Any, None]:
        """Publish everything, or listen until cancelled; CannotRun if trying on is no use."""

    def stop(self) -> Coroutine[Any, Any, None]:
        """Close the connection."""


class Subscriber(Party, Protocol):
    """A party that is `ready` once it hears the channel."""

    ready: asyncio.Event


class PlainPublisher:
    """Sends each message over `/ws`, reconnecting as often as it takes."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._number = number
        self._asker: Asker | None = None

    async def work(self) -> None:
        """Publish everything."""
        await self._run.publish_all(self._number, self._publish, keyed=True)

    async def stop(self) -> None:
        """Close the connection."""
        if self._asker is not None:
            await self._asker.close()

    async def _publish(self, message: dict[str, Any]) -> None:
        if self._asker is None:
            asker = Asker()
            await asker.connect(self._run.endpoint)
            self._asker = asker
        try:
            answer = await self._asker.ask(orjson.dumps(message))
        except (DisconnectedError, TimeoutError):
            # An answer that comes late would be taken for that to the next message.
            self._asker.transport.disconnect(graceful=False)
            self._asker = None
            raise
        if answer["type"] != "ack":
            code, text = answer.get("code"), str(answer.get("message"))
            if code != "unavailable":
                raise _unwanted(f"publisher {self._number}", code, text)
            raise _RefusedError(f"{code}: {text}")


class PlainSubscriber:
    """Hears `/ws`; the protocol has no recovery, so what it misses while away it knows of."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._number = number
        self._client: Client | None = None
        self.ready = asyncio.Event()

    async def work(self) -> None:
        """Stay connected until cancelled."""
        while True:
            ended = asyncio.Event()
            client = _PlainListener(self._run, self._number, ended)
            try:
                await client.connect(self._run.endpoint)
            except ConnectError as error:
                self._run.failed(error)
                await asyncio.sleep(RETRY_PAUSE)
                continue
            self._client = client
            self._run.enter(Subscribed(self._run.at, self._number))
            self.ready.set()
            await ended.wait()
            self._run.enter(Disconnected(self._run.at, self._number))

    async def stop(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()


class _PlainListener(Client):
    def __init__(self, run: Run, number: int, ended: asyncio.Event) -> None:
        super().__init__()
        self._run = run
        self._number = number
        self._ended = ended

    def on_text(self, text: bytes) -> None:
        message = orjson.loads(text)
        if message.get("type") == "message":
            self._run.received(self._number, message["data"])

    def on_closed(self) -> None:
        self._ended.set()


class _Sdk(centrifuge.ClientEventHandler):  # type: ignore[misc]
    """One client of the SDK; `refusal` is known once the server wants no more of it."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        self.refusal: asyncio.Future[CannotRun] = asyncio.get_running_loop().create_future()
        self.client = centrifuge.Client(
            run.endpoint.http.replace("http", "ws", 1) + CENTRIFUGE_PATH,
            events=self,
            timeout=SDK_TIMEOUT,
            min_reconnect_delay=SHORTEST_DELAY,
            max_reconnect_delay=LONGEST_DELAY,
        )

    async def stop(self) -> None:
        """Disconnect."""
        await self.client.disconnect()

    async def on_error(self, ctx: centrifuge.ErrorContext) -> None:
        self.run.failed(ctx.error)

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        self.refused(ctx.code, ctx.reason)

    def refused(self, code: int, reason: str) -> None:
        """Note a code after which the SDK does not try again."""
        if not self.refusal.done():
            self.refusal.set_result(_unwanted(self.name, code, reason))


class SdkPublisher(_Sdk):
    """Publishes with the SDK; its protocol has no idempotency key."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(run, f"publisher {number}")
        self._number = number

    async def work(self) -> None:
        """Publish everything."""
        await self.client.connect()
        await self.run.publish_all(self._number, self._publish, keyed=False)

    async def _publish(self, message: dict[str, Any]) -> None:
        try:
            await self.client.publish(self.run.plan.channel, message)
        except centrifuge.ReplyError as error:
            if error.temporary:
                raise
            raise _unwanted(self.name, error.code, error.message) from None
        except centrifuge.ClientDisconnectedError:
            if self.refusal.done():
                raise self.refusal.result() from None
            raise


class SdkSubscriber(_Sdk):
    """Subscribes with the SDK, which reconnects and recovers by itself."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(run, f"subscriber {number}")
        self._events = _Subscription(self, number)
        self.ready = self._events.ready

    async def work(self) -> None:
        """Subscribe; everything else is the SDK's."""
        await self.client.connect()
        subscription = self.client.new_subscription(self.run.plan.channel, events=self._events)
        await subscription.subscribe()
        raise await self.refusal


class _Subscription(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]
    def __init__(self, subscriber: SdkSubscriber, number: int) -> None:
        self._subscriber = subscriber
        self._run = subscriber.run
        self._number = number
        self.ready = asyncio.Event()

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        place = ctx.stream_position
        position = Position(place.epoch, place.offset) if place is not None else None
        self._run.enter(
            Subscribed(self._run.at, self._number, position, ctx.was_recovering, ctx.recovered)
        )
        self.ready.set()

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self._run.received(self._number, ctx.pub.data, ctx.pub.offset)

    async def on_subscribing(self, _: centrifuge.SubscribingContext) -> None:
        if self.ready.is_set():
            self._run.enter(Disconnected(self._run.at, self._number))

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        self._subscriber.refused(ctx.code, ctx.reason)

    async def on_error(self, ctx: centrifuge.SubscriptionErrorContext) -> None:
        self._run.failed(ctx.error)


async def _verify(endpoint: Endpoint, plan: Plan, log: IO[bytes] | None) -> Report:
    run = Run(endpoint, plan, log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _finish_at_first, loop, run)
    plain = plan.protocol == "plain"
    subscribers: list[Subscriber] = [
        (PlainSubscriber if plain else SdkSubscriber)(run, n) for n in range(plan.subscribers)
    ]
    publishers: list[Party] = [
        (PlainPublisher if plain else SdkPublisher)(run, n) for n in range(plan.publishers)
    ]
    listening = [asyncio.create_task(subscriber.work()) for subscriber in subscribers]
    publishing = [asyncio.create_task(publisher.work()) for publisher in publishers]
    course = asyncio.create_task(_course(run, subscribers, publishing))
    try:
        ended, _ = await asyncio.wait([course, *listening], return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()  # a subscriber ends only with an error
    finally:
        run.stopping = True
        tasks = [course, *listening, *publishing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                ends = (party.stop() for party in [*publishers, *subscribers])
                await asyncio.gather(*ends, return_exceptions=True)
    return report_of(run)


def _finish_at_first(loop: asyncio.AbstractEventLoop, run: Run) -> None:
    """A second signal is not held off any more."""
    run.finish()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)


async def _course(
    run: Run, subscribers: list[Subscriber], publishing: list[asyncio.Task[None]]
) -> None:
    timeout = run.plan.timeout
    try:
        async with asyncio.timeout(min(ENTRY, timeout)):
            await asyncio.gather(*(subscriber.ready.wait() for subscriber in subscribers))
    except TimeoutError:
        missing = sum(not subscriber.ready.is_set() for subscriber in subscribers)
        raise CannotRun(
            f"{missing:,} of {len(subscribers):,} subscribers did not get in ({run.last_error}). "
            "Check the URL, and the fleet with `wsfleet status`."
        ) from None
    with contextlib.suppress(TimeoutError):  # what is not acknowledged by then is reported
        async with asyncio.timeout(timeout - run.at):
            run.entered.set()
            await asyncio.gather(*publishing)
            async with asyncio.timeout(DRAIN):
                while not run.all_there():
                    await asyncio.sleep(RETRY_PAUSE)


def report_of(run: Run) -> Report:
    """What a run amounts to, in words and figures; every count in `data` is exact."""
    plan, findings = run.plan, run.account.findings()
    published = findings.sent if run.finishing else plan.publishers * plan.messages
    unacknowledged = published - findings.acknowledged
    faults: dict[str, Faults] = {name: getattr(findings, name) for name in FAULTS}
    told = {"missed_while_away": findings.missed_while_away}
    problems = [
        f"{fault.count:,} {_words(name)}: {FAULTS[name]}"
        for name, fault in faults.items()
        if fault.count
    ]
    if not published:
        problems.append("nothing was published")
    if unacknowledged:
        problems.append(f"{unacknowledged:,} not acknowledged: {run.last_error}")
    if findings.absent:
        problems.append(f"{len(findings.absent):,} subscribers did not come back: {run.last_error}")
    acks, deliveries = findings.ack_latency.whole(), findings.delivery_latency.whole()
    latencies = {"ack": acks.summary(), "delivery": deliveries.summary()}
    data: dict[str, Any] = {
        "protocol": plan.protocol,
        "channel": plan.channel,
        "publishers": plan.publishers,
        "subscribers": plan.subscribers,
        "messages": plan.messages,
        "acknowledged": findings.acknowledged,
        "unacknowledged": unacknowledged,
        "delivered": findings.delivered,
        **{name: fault.count for name, fault in faults.items()},
        "reconnects": findings.reconnects,
        "recovered": findings.recovered,
        "unrecovered": findings.unrecovered,
        "missed_while_away": findings.missed_while_away.count,
        "retried_copies": findings.retried,
        "absent": len(findings.absent),
        "longest_away_seconds": round(max(findings.longest_away, default=0.0), 3),
        "longest_wait_seconds": round(max(findings.longest_wait, default=0.0), 3),
        "errors": run.errors,
        "examples": {
            name: fault.examples for name, fault in (faults | told).items() if fault.count
        },
        **{f"{name}_latency": summary for name, summary in latencies.items()},
    }
    overview = [
        ("published", f"{published:,} by {plan.publishers:,} publishers"),
        ("acknowledged", data["acknowledged"]),
        ("delivered", f"{data['delivered']:,} to {plan.subscribers:,} subscribers"),
        *((_words(name), fault.count) for name, fault in faults.items()),
        ("copies, sent again without a key", data["retried_copies"]),
        ("reconnects of subscribers", data["reconnects"]),
        ("recovered", data["recovered"]),
        ("not recovered, and told so", data["unrecovered"]),
        ("missed while away, and known", data["missed_while_away"]),
        ("longest without the channel", f"{data['longest_away_seconds']:,.3f} s"),
        ("longest until an ack", f"{data['longest_wait_seconds']:,.3f} s"),
    ]
    columns = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")
    speed = [(name, *(summary[c] for c in columns)) for name, summary in latencies.items()]
    views: list[RenderableType] = [
        table(f"delivery, {plan.protocol}, {plan.channel}", ("", ">value"), overview),
        table("latency", ("", ">p50 ms", ">p95 ms", ">p99 ms", ">max ms", ">n"), speed),
    ]
    if run.errors:
        columns_of_errors = ("errors, answered by trying again", ">times")
        views.append(table("", columns_of_errors, sorted(run.errors.items())))
    if data["examples"]:
        examples = [
            (_words(name), example)
            for name, all_of_it in data["examples"].items()
            for example in all_of_it[:SHOWN_EXAMPLES]
        ]
        fields = list(dict.fromkeys(field for _, example in examples for field in example))
        rows = [(name, *(str(example.get(f, "")) for f in fields)) for name, example in examples]
        views.append(table("examples (--json has more)", ("", *map(_words, fields)), rows))
    criteria = [
        Criterion("something was published", published > 0, wanted=True),
        *(Criterion(f"{_words(name)}: {FAULTS[name]}", f.count) for name, f in faults.items()),
        Criterion("messages that were not acknowledged", unacknowledged),
        Criterion("subscribers that did not come back", len(findings.absent)),
    ]
    figures: list[Figure] = [
        Course("Delivery over time", findings.delivery_latency, dropped_at=findings.dropped_at),
        Course("Acknowledgement over time", findings.ack_latency, dropped_at=findings.dropped_at),
        Spread("Delivery latency", deliveries),
        Spread("Acknowledgement latency", acks),
    ]
    return Report(data, views, problems, criteria, figures, f"Delivery, {plan.protocol}")


def _words(name: str) -> str:
    return name.replace("_", " ")


def run(endpoint: Endpoint, plan: Plan) -> Report:
    """Publish, listen, and compare.

    Raises:
        CannotRun: the run is too large, not every subscriber got in, or the events' file cannot be
            written.

    """
    if plan.protocol == "plain" and plan.channel != PLAIN_CHANNEL:
        raise CannotRun(f"the plain protocol has one channel, {PLAIN_CHANNEL}: leave --channel out")
    if plan.events is None:
        return uvloop.run(_verify(endpoint, plan, None))
    try:
        log = plan.events.open("wb")
    except OSError as error:
        raise CannotRun(f"cannot write {plan.events}: {error.strerror}") from error
    with log:
        return uvloop.run(_verify(endpoint, plan, log))
