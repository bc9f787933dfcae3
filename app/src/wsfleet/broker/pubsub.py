"""The process's pub/sub connections, one to each Redis primary, and their probes."""

import asyncio
import contextlib
import itertools
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import structlog
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError

from wsfleet.redis import key_names
from wsfleet.redis.connection import Push, pack
from wsfleet.redis.store import AnyLink, AnyPrimary, Store, UnavailableError
from wsfleet.tasks import race
from wsfleet.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

PROBES_MISSED = 3
RECONNECT_PAUSE = 0.2
BLIP = 1.0
"""Seconds without pub/sub that callers wait for its return before they fail."""
PORTION_COUNT, PORTION_BYTES = 500, 65_536
"""Limits of one portion of subscribe commands. Redis confirms each channel by itself, and closes
the connection if more confirmations wait than `client-output-buffer-limit pubsub` allows.
"""


@dataclass
class Probe:
    """A round-trip probe.

    The node publishes the current time to its own channel and measures when it returns.
    """

    channel: str
    said: float = 0.0
    heard: float = 0.0


class Listening:
    """The pub/sub connection to one primary, and its pending subscribe and unsubscribe commands.

    They are sent in portions: the next one when Redis has confirmed all of the one before. Of
    pending commands for one channel the last one counts.
    """

    def __init__(self, probe: Probe, on_complete: Callable[[], None], *, by_slot: bool) -> None:
        self.probe = probe
        self.heard_at = time.monotonic()
        self.complete = False
        self.link: AnyLink | None = None
        self._on_complete = on_complete
        self._by_slot = by_slot
        self._missing = 0
        self._waiting: dict[bytes, bool] = {}
        self._sent: dict[bytes, bool] = {}

    def begin(self, link: AnyLink, channels: Iterable[str]) -> None:
        """Subscribe to all channels; the connection is `complete` when they are confirmed."""
        self.link = link
        self._waiting = {channel.encode(): True for channel in (self.probe.channel, *channels)}
        self._missing = len(self._waiting)
        self._send_portion(link)

    def change(self, channel: bytes, *, subscribe: bool) -> None:
        """Subscribe to a channel, or unsubscribe."""
        self._waiting[channel] = subscribe
        if not self._sent and self.link is not None and self.link.alive:
            self._send_portion(self.link)

    def confirmed(self, channel: bytes, *, subscribed: bool) -> bool:
        """Handle a confirmation; return False if it was not expected."""
        if self._sent.get(channel) is not subscribed:
            return False
        del self._sent[channel]
        if not self._sent and self._waiting and self.link is not None:
            self._send_portion(self.link)
        if not self.complete:  # Redis confirms in order: the first channels come first
            self._missing -= 1
            if not self._missing:
                self.complete = True
                self._on_complete()
        return True

    def _send_portion(self, link: AnyLink) -> None:
        """Send the next portion."""
        size = 0
        for channel in itertools.islice(self._waiting, PORTION_COUNT):
            size += len(channel)
            if self._sent and size > PORTION_BYTES:
                break
            self._sent[channel] = self._waiting[channel]
        for channel in self._sent:
            del self._waiting[channel]
        for command, subscribe in (("SSUBSCRIBE", True), ("SUNSUBSCRIBE", False)):
            channels = [channel for channel, value in self._sent.items() if value is subscribe]
            for group in _by_slot(channels) if self._by_slot else [channels]:
                if group:
                    link.send((command, *group))


class Subscriber:
    """The subscriptions to pub/sub channels on all primaries, restored after each reconnect.

    `on_confirmed` is called for each channel from which on no message is missed, `on_message` for
    each message, and `on_subscribed` when all channels of one more primary are confirmed.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        metrics: Metrics,
        probe_interval: float,
        on_confirmed: Callable[[str], None],
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[], None],
    ) -> None:
        self._store = store
        self._node = node
        self._metrics = metrics
        self._probe_interval = probe_interval
        self._on_confirmed = on_confirmed
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._wanted: set[str] = set()
        self._listening: dict[AnyPrimary, Listening] = {}
        self._patient_until = math.inf
        self._deadlines: set[asyncio.Timeout] = set()

    @property
    def subscribed(self) -> bool:
        """Whether all wanted channels are confirmed on all primaries."""
        listening = [self._listening.get(primary) for primary in self._store.primaries]
        return bool(listening) and all(each is not None and each.complete for each in listening)

    @contextlib.asynccontextmanager
    async def patience(self, seconds: float, excuse: str) -> AsyncIterator[None]:
        """Wait inside the block for a pub/sub message, for at most `seconds`.

        While pub/sub is down, callers wait until `BLIP` seconds after it was lost; later ones do
        not wait.

        Raises:
            UnavailableError: the message did not come; the error's text is `excuse`.
        """
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now + seconds, self._patient_until)) as deadline:
                self._deadlines.add(deadline)
                try:
                    yield
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError:
            raise UnavailableError(excuse) from None

    def _be_away(self) -> None:
        """Note that pub/sub is down."""
        self._patient_until = asyncio.get_running_loop().time() + BLIP
        for deadline in self._deadlines:
            when = deadline.when()
            if when is not None and not deadline.expired() and when > self._patient_until:
                deadline.reschedule(self._patient_until)

    def want(self, *channels: str) -> None:
        """Subscribe to pub/sub channels from the next connection on."""
        self._wanted.update(channels)

    def subscribe(self, channel: str) -> None:
        """Subscribe to a pub/sub channel; `on_confirmed` is called when it is confirmed.

        Raises:
            redis.exceptions.DataError: the name is not Unicode.
        """
        pack(("SSUBSCRIBE", channel))  # every later connection would fail at this name
        self._wanted.add(channel)
        if (listening := self._owner(channel)) is not None:
            listening.change(channel.encode(), subscribe=True)

    def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a pub/sub channel."""
        self._wanted.discard(channel)
        if (listening := self._owner(channel)) is not None:
            listening.change(channel.encode(), subscribe=False)

    def _owner(self, channel: str) -> Listening | None:
        try:
            return self._listening.get(self._store.owner(channel))
        except UnavailableError:
            return None

    async def run(self) -> None:
        """Keep a connection to each primary; reconnect those that fail."""
        self._be_away()
        while True:
            primaries = self._store.primaries
            if not primaries:
                await self._store.changed()
                continue
            await race(self._store.changed(), *(self._stay(primary) for primary in primaries))

    async def _stay(self, primary: AnyPrimary) -> None:
        while True:
            try:
                await self._listen(primary)
            except MovedError as error:
                primary.lost(error)
            except (UnavailableError, RedisError, OSError, TimeoutError) as error:
                log.warning("pubsub_connection_lost", error=str(error) or type(error).__name__)
            finally:
                if self._listening.pop(primary, None) is not None:
                    self._be_away()
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _listen(self, primary: AnyPrimary) -> None:
        probe = Probe(self._probe_channel(primary))
        listening = Listening(probe, self._on_subscribed, by_slot=not primary.owns_all)
        link = await primary.listen(lambda push: self._take(listening, push))
        probing = asyncio.create_task(self._probe(primary, probe))
        try:
            listening.begin(link, filter(primary.owns, self._wanted))
            self._listening[primary] = listening
            if all(each in self._listening for each in self._store.primaries):
                self._patient_until = math.inf
            while time.monotonic() - listening.heard_at < PROBES_MISSED * self._probe_interval:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._probe_interval):
                        await link.lost()
            raise TimeoutError(f"no answer to {PROBES_MISSED} probes")
        finally:
            probing.cancel()
            await link.close()

    def _take(self, listening: Listening, push: Push) -> None:
        """Handle a push; an exception must not end the connection, which all channels share."""
        try:
            self._hear(listening, push)
        except Exception:
            log.exception("pubsub_push_failed", kind=push[0])
            self._metrics.handler_failed("pubsub")

    def _hear(self, listening: Listening, push: Push) -> None:
        listening.heard_at = time.monotonic()
        kind, channel = push[0], push[1].decode()
        if kind == b"smessage":
            if channel in self._wanted:
                self._on_message(channel, push[2])
            elif channel == listening.probe.channel:
                try:
                    listening.probe.heard = float(push[2])
                except ValueError:  # not of this node
                    log.warning("probe_invalid", channel=channel)
                    return
                self._metrics.pubsub_probe_seconds.observe(time.monotonic() - listening.probe.heard)
        elif kind == b"ssubscribe":
            listening.confirmed(push[1], subscribed=True)
            if channel in self._wanted:
                self._on_confirmed(channel)
        elif not listening.confirmed(push[1], subscribed=False) and listening.link is not None:
            # Its slot was moved.
            listening.link.lose(MovedError(f"{key_slot(push[1])} elsewhere:0"))

    async def _probe(self, primary: AnyPrimary, probe: Probe) -> None:
        """Send a probe every interval: a dead connection looks like a silent one.

        A connection can be dead without an error (its peer frozen, or cut off by a firewall).
        """
        while True:
            await asyncio.sleep(self._probe_interval)
            if probe.heard < probe.said:
                self._metrics.pubsub_probes_failed.inc()
            probe.said = time.monotonic()
            try:
                await primary.call("SPUBLISH", probe.channel, repr(probe.said))
            except (UnavailableError, RedisError) as error:
                log.debug("probe_failed", error=str(error))
            else:
                self._metrics.redis_seconds.observe(time.monotonic() - probe.said)

    def _probe_channel(self, primary: AnyPrimary) -> str:
        tags = (key_names.probe(self._node, tag) for tag in itertools.count())
        return next(channel for channel in tags if primary.owns(channel))


def _by_slot(channels: Iterable[bytes]) -> Iterable[list[bytes]]:
    """Group channels by slot: in a Redis Cluster one command must stay in one slot."""
    groups: dict[int, list[bytes]] = defaultdict(list)
    for channel in channels:
        groups[key_slot(channel)].append(channel)
    return groups.values()
