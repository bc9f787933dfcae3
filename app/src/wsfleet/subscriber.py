"""The process's pub/sub connections, one to each primary of Redis, and the proof that they live."""

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from redis.asyncio.client import PubSub
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError

from wsfleet import keys
from wsfleet.metrics import Metrics
from wsfleet.primary import Primary
from wsfleet.store import Store, UnavailableError
from wsfleet.tasks import race

log = structlog.get_logger(__name__)

PROBES_MISSED = 3
RECONNECT_PAUSE = 0.2


@dataclass
class Probe:
    """What the node says to itself, on a pub/sub channel of its own: the time, as it is then."""

    channel: str
    said: float = 0.0
    heard: float = 0.0


class Link(NamedTuple):
    """One connection, its probe, and how often each channel was left that it may still confirm."""

    pubsub: PubSub
    probe: Probe
    leaving: Counter[str]


class Subscriber:
    """Hears the pub/sub channels that are wanted, again after each reconnect.

    `on_confirmed` is told of each channel from when on nothing is missed, `on_message` what is
    said in it; `on_subscribed` is told when everything is heard from one more primary.
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
        self._links: dict[Primary, Link] = {}

    @property
    def subscribed(self) -> bool:
        """Whether everything that is wanted is heard, from all primaries there are."""
        primaries = self._store.primaries
        return bool(primaries) and all(primary in self._links for primary in primaries)

    def want(self, *channels: str) -> None:
        """Hear pub/sub channels from the next connection on."""
        self._wanted.update(channels)

    async def subscribe(self, channel: str) -> None:
        """Hear a pub/sub channel from now on; `on_confirmed` says when it is true."""
        self._wanted.add(channel)
        try:
            link = self._links.get(self._store.owner(channel))
            if link is not None:
                await link.pubsub.ssubscribe(channel)
        except (UnavailableError, RedisError, OSError) as error:
            # The connection's own loop finds out as well, and subscribes to all that is wanted.
            log.debug("subscribe failed", channel=channel, error=str(error))

    async def unsubscribe(self, channel: str) -> None:
        """Hear it no more.

        Raises:
            UnavailableError, redis.exceptions.RedisError, OSError: Redis is away, and forgets.
        """
        self._wanted.discard(channel)
        link = self._links.get(self._store.owner(channel))
        if link is not None:
            link.leaving[channel] += 1
            await link.pubsub.sunsubscribe(channel)

    async def run(self) -> None:
        """Listen to all primaries; what breaks is made anew."""
        while True:
            primaries = self._store.primaries
            if not primaries:
                await self._store.changed()
                continue
            await race(self._store.changed(), *(self._stay(primary) for primary in primaries))

    async def _stay(self, primary: Primary) -> None:
        while True:
            try:
                await self._listen(primary)
            except MovedError as error:
                primary.lost(error)
            except (UnavailableError, RedisError, OSError, TimeoutError) as error:
                log.warning("subscription lost", error=str(error) or type(error).__name__)
            finally:
                self._links.pop(primary, None)
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _listen(self, primary: Primary) -> None:
        probe = Probe(self._probe_channel(primary))
        probing = asyncio.create_task(self._probe(primary, probe))
        try:
            # A client of its own: redis-py reconnects in it, and does not bear to be disconnected
            # by somebody else meanwhile.
            async with primary.connect() as redis, redis.pubsub() as pubsub:
                await pubsub.ssubscribe(probe.channel)
                sent: set[str] = set()
                while missing := self._wanted_of(primary) - sent:  # some may come while we wait
                    for group in [missing] if primary.owns_all else _by_slot(missing):
                        await pubsub.ssubscribe(*group)
                    sent |= missing
                link = self._links[primary] = Link(pubsub, probe, Counter())
                self._on_subscribed()
                heard_at = time.monotonic()
                while time.monotonic() - heard_at < PROBES_MISSED * self._probe_interval:
                    message = await pubsub.get_message(timeout=self._probe_interval)
                    if message is not None:
                        heard_at = time.monotonic()
                        self._hear(link, message)
            raise TimeoutError(f"no answer to {PROBES_MISSED} probes")
        finally:
            probing.cancel()

    def _hear(self, link: Link, message: dict[str, Any]) -> None:
        kind, channel = message["type"], message["channel"].decode()
        if kind == "sunsubscribe":
            if not link.leaving[channel]:
                raise MovedError(f"{key_slot(channel.encode())} elsewhere:0")
            link.leaving[channel] -= 1
        elif channel in self._wanted:
            if kind == "smessage":
                self._on_message(channel, message["data"])
            elif kind == "ssubscribe":
                self._on_confirmed(channel)
        elif kind == "smessage" and channel == link.probe.channel:
            link.probe.heard = float(message["data"])
            self._metrics.pubsub_probe_seconds.observe(time.monotonic() - link.probe.heard)

    async def _probe(self, primary: Primary, probe: Probe) -> None:
        """Every interval, send a message to the node itself: silence would look like no traffic.

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
                log.debug("probe failed", error=str(error))
            else:
                self._metrics.redis_seconds.observe(time.monotonic() - probe.said)

    def _probe_channel(self, primary: Primary) -> str:
        tags = (keys.probe(self._node, tag) for tag in itertools.count())
        return next(channel for channel in tags if primary.owns(channel))

    def _wanted_of(self, primary: Primary) -> set[str]:
        return {channel for channel in self._wanted if primary.owns(channel)}


def _by_slot(channels: Iterable[str]) -> Iterable[set[str]]:
    """In a Redis Cluster one command must stay in one slot."""
    groups: dict[int, set[str]] = defaultdict(set)
    for channel in channels:
        groups[key_slot(channel.encode())].add(channel)
    return groups.values()
