"""``wsfleet verify-delivery``: is anything that was acknowledged lost, doubled or out of order?"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import centrifuge  # type: ignore[import-untyped]
import orjson
import uvloop

from wsfleet.cli import CannotRun
from wsfleet.cli.client import Asker, Client, ConnectError, DisconnectedError, Endpoint
from wsfleet.cli.delivery import (
    Account,
    Acknowledged,
    Disconnected,
    Event,
    Faults,
    Findings,
    Position,
    Received,
    Sent,
    Subscribed,
    Terms,
)
from wsfleet.cli.output import Report, table

CENTRIFUGE_PATH = "/connection/websocket"
PLAIN_CHANNEL = "broadcast"
RETRY_PAUSE = 0.2
SHORTEST_DELAY, LONGEST_DELAY = 0.1, 1.0
ENTRY, DRAIN = 20.0, 20.0
"""Seconds for all subscribers to get in, and at the end to get what is still on its way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `rate` is messages a second of each publisher, `timeout` seconds in all."""

    publishers: int = 4
    subscribers: int = 20
    messages: int = 50
    rate: float = 20.0
    protocol: str = "centrifuge"
    channel: str = PLAIN_CHANNEL
    timeout: float = 300.0


class Run:
    """One run: its account, and what publishers and subscribers of both protocols share."""

    def __init__(self, endpoint: Endpoint, plan: Plan) -> None:
        self.endpoint = endpoint
        self.plan = plan
        self.id = secrets.token_hex(4)
        self.account = Account(Terms(plan.publishers, plan.subscribers, plan.messages))
        self.errors: dict[str, int] = {}
        self.last_error = "no answer"
        self.stopping = False
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    @property
    def at(self) -> float:
        """Seconds since the run began."""
        return self._loop.time() - self._started

    def enter(self, event: Event) -> None:
        """Enter an event, until the run is being taken down."""
        if not self.stopping:
            self.account.enter(event)

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

    def failed(self, error: object) -> None:
        """Note an error that is answered by trying again."""
        self.last_error = str(error) or type(error).__name__
        self.errors[self.last_error] = self.errors.get(self.last_error, 0) + 1

    async def publish_all(
        self, publisher: int, publish: Callable[[dict[str, Any]], Awaitable[None]], *, keyed: bool
    ) -> None:
        """Publish each message until it is acknowledged, at the plan's pace."""
        for sequence in range(self.plan.messages):
            message = self.message(publisher, sequence)
            while True:
                self.enter(Sent(self.at, publisher, sequence, keyed))
                try:
                    await publish(message)
                except (ConnectError, DisconnectedError, TimeoutError, _RefusedError) as error:
                    self.failed(error)
                except centrifuge.CentrifugeError as error:
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
    """The server answered a message with an error."""


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
            self._asker = None
            raise
        if answer["type"] != "ack":
            raise _RefusedError(f"{answer.get('code')}: {answer.get('message')}")


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


def _sdk(run: Run, events: Any = None) -> Any:
    url = run.endpoint.http.replace("http", "ws", 1) + CENTRIFUGE_PATH
    return centrifuge.Client(
        url,
        events=events,
        min_reconnect_delay=SHORTEST_DELAY,
        max_reconnect_delay=LONGEST_DELAY,
    )


class SdkPublisher:
    """Publishes with the SDK; its protocol has no idempotency key."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._number = number
        self._client = _sdk(run)

    async def work(self) -> None:
        """Publish everything."""
        await self._client.connect()
        await self._run.publish_all(self._number, self._publish, keyed=False)

    async def stop(self) -> None:
        """Disconnect."""
        await self._client.disconnect()

    async def _publish(self, message: dict[str, Any]) -> None:
        await self._client.publish(self._run.plan.channel, message)


class SdkSubscriber:
    """Subscribes with the SDK, which reconnects and recovers by itself."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._client = _sdk(run)
        self.events = _SdkEvents(run, number)
        self.ready = self.events.ready

    async def work(self) -> None:
        """Subscribe; everything else is the SDK's."""
        await self._client.connect()
        subscription = self._client.new_subscription(self._run.plan.channel, events=self.events)
        await subscription.subscribe()

    async def stop(self) -> None:
        """Disconnect."""
        await self._client.disconnect()


class _SdkEvents(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]
    def __init__(self, run: Run, number: int) -> None:
        self._run = run
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

    async def on_error(self, ctx: centrifuge.SubscriptionErrorContext) -> None:
        self._run.failed(ctx.error)


async def _verify(endpoint: Endpoint, plan: Plan) -> Report:
    run = Run(endpoint, plan)
    plain = plan.protocol == "plain"
    subscribers: list[PlainSubscriber | SdkSubscriber] = [
        (PlainSubscriber if plain else SdkSubscriber)(run, n) for n in range(plan.subscribers)
    ]
    publishers: list[PlainPublisher | SdkPublisher] = [
        (PlainPublisher if plain else SdkPublisher)(run, n) for n in range(plan.publishers)
    ]
    listening = [asyncio.create_task(subscriber.work()) for subscriber in subscribers]
    publishing: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(plan.timeout):
            async with asyncio.timeout(ENTRY):
                await asyncio.gather(*(subscriber.ready.wait() for subscriber in subscribers))
            publishing = [asyncio.create_task(publisher.work()) for publisher in publishers]
            await asyncio.gather(*publishing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN):
                    while not run.all_there():
                        await asyncio.sleep(RETRY_PAUSE)
    except TimeoutError:
        if not publishing:
            raise CannotRun(
                f"not every subscriber got in ({run.last_error}). "
                "Check the URL, and the fleet with `wsfleet status`."
            ) from None
        # What is unacknowledged by now is reported.
    finally:
        run.stopping = True
        for task in [*listening, *publishing]:
            task.cancel()
        await asyncio.gather(*listening, *publishing, return_exceptions=True)
        ends = (client.stop() for client in [*publishers, *subscribers])
        await asyncio.gather(*ends, return_exceptions=True)
    return _report(run, run.account.findings())


def _report(run: Run, findings: Findings) -> Report:
    plan = run.plan
    unacknowledged = plan.publishers * plan.messages - findings.acknowledged
    faults: dict[str, Faults] = {
        "lost": findings.lost,
        "duplicated": findings.duplicated,
        "reordered": findings.reordered,
        "recovered_wrongly": findings.recovered_wrongly,
    }
    problems = [
        f"{faults[name].count:,} {name.replace('_', ' ')}" for name in faults if faults[name].count
    ]
    if unacknowledged:
        problems.append(f"{unacknowledged:,} not acknowledged: {run.last_error}")
    if findings.absent:
        problems.append(f"{len(findings.absent):,} subscribers did not come back")
    latencies = {"ack": findings.ack_latency, "delivery": findings.delivery_latency}
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
        "longest_away_seconds": round(max(findings.longest_away, default=0.0), 3),
        "longest_wait_seconds": round(max(findings.longest_wait, default=0.0), 3),
        "errors": run.errors,
        "examples": {name: fault.examples for name, fault in faults.items() if fault.count},
        **{f"{name}_latency": latency.summary() for name, latency in latencies.items()},
    }
    shown = [key for key, value in data.items() if isinstance(value, int | float)]
    rows = [(key.replace("_", " "), data[key]) for key in shown]
    return Report(data, [table(f"delivery, {plan.protocol}", ["", ">value"], rows)], problems)


def run(endpoint: Endpoint, plan: Plan) -> Report:
    """Publish, listen, and compare.

    Raises:
        CannotRun: the run is too large, or not every subscriber got in.

    """
    if plan.protocol == "plain" and plan.channel != PLAIN_CHANNEL:
        raise CannotRun(f"the plain protocol has one channel, {PLAIN_CHANNEL}: leave --channel out")
    return uvloop.run(_verify(endpoint, plan))
