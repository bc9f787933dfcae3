"""The publishers and subscribers of ``wsfleet verify-delivery``, for both protocols."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import centrifuge  # type: ignore[import-untyped]
import orjson

from wsfleet.cli.access.websocket_client import Asker, Client, ConnectError, ConnectionEndedError
from wsfleet.cli.errors import CannotRun
from wsfleet.cli.measure.delivery_events import DeliveryPosition, Disconnected, Subscribed
from wsfleet.cli.traffic.delivery_run import (
    RETRY_PAUSE,
    DeliveryRun,
    TemporaryServerError,
    refused_for_good,
)
from wsfleet.protocol.centrifuge.negotiation import PATH

#: Seconds until the SDK reconnects, at least and at most, and for an answer or a handshake.
SHORTEST_DELAY, LONGEST_DELAY, SDK_TIMEOUT = 0.1, 1.0, 5.0


class Party(Protocol):
    """A publisher or a subscriber."""

    def work(self) -> Coroutine[Any, Any, None]:
        """Publish everything, or listen until cancelled; raise CannotRun if retrying is useless."""

    def stop(self) -> Coroutine[Any, Any, None]:
        """Close the connection."""


class DeliverySubscriber(Party, Protocol):
    """A party that is `ready` when it is subscribed."""

    ready: asyncio.Event


class PlainPublisher:
    """A publisher on `/ws` that reconnects until every message is acknowledged."""

    def __init__(self, run: DeliveryRun, number: int) -> None:
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
        except (ConnectionEndedError, TimeoutError):
            # A late answer would be matched with the next message.
            self._asker.transport.disconnect(graceful=False)
            self._asker = None
            raise
        if answer["type"] != "ack":
            code, text = answer.get("code"), str(answer.get("message"))
            if code != "unavailable":
                raise refused_for_good(f"publisher {self._number}", code, text)
            raise TemporaryServerError(f"{code}: {text}")


class PlainSubscriber:
    """A subscriber on `/ws`, which has no recovery: messages missed while away are known."""

    def __init__(self, run: DeliveryRun, number: int) -> None:
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
    def __init__(self, run: DeliveryRun, number: int, ended: asyncio.Event) -> None:
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
    """A client of the SDK; `refusal` is the error after which the SDK does not reconnect."""

    def __init__(self, run: DeliveryRun, name: str) -> None:
        self.run = run
        self.name = name
        self.refusal: asyncio.Future[CannotRun] = asyncio.get_running_loop().create_future()
        self.client = centrifuge.Client(
            run.endpoint.http.replace("http", "ws", 1) + PATH,
            events=self,
            timeout=SDK_TIMEOUT,
            min_reconnect_delay=SHORTEST_DELAY,
            max_reconnect_delay=LONGEST_DELAY,
        )

    async def stop(self) -> None:
        """Disconnect."""
        await self.client.disconnect()

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        self.run.connected(ctx.client)

    async def on_error(self, ctx: centrifuge.ErrorContext) -> None:
        self.run.failed(ctx.error)

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        self.refused(ctx.code, ctx.reason)

    def refused(self, code: int, reason: str) -> None:
        """Record a code after which the SDK does not reconnect."""
        if not self.refusal.done():
            self.refusal.set_result(refused_for_good(self.name, code, reason))


class SdkPublisher(_Sdk):
    """A publisher that uses the SDK; only a handler can publish with an idempotency key."""

    def __init__(self, run: DeliveryRun, number: int) -> None:
        super().__init__(run, f"publisher {number}")
        self._number = number

    async def work(self) -> None:
        """Publish everything."""
        await self.client.connect()
        await self.run.publish_all(self._number, self._publish, keyed=self.run.plan.keyed)

    async def _publish(self, message: dict[str, Any]) -> None:
        try:
            await self.client.publish(self.run.plan.channel, message)
        except centrifuge.ReplyError as error:
            if error.temporary:
                raise
            raise refused_for_good(self.name, error.code, error.message) from None
        except centrifuge.ClientDisconnectedError:
            if self.refusal.done():
                raise self.refusal.result() from None
            raise


class SdkSubscriber(_Sdk):
    """A subscriber that uses the SDK, which reconnects and recovers by itself."""

    def __init__(self, run: DeliveryRun, number: int) -> None:
        super().__init__(run, f"subscriber {number}")
        self._events = _Subscription(self, number)
        self.ready = self._events.ready

    async def work(self) -> None:
        """Subscribe; the SDK does the rest."""
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
        position = DeliveryPosition(place.epoch, place.offset) if place is not None else None
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
