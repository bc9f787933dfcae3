"""The process's pub/sub connections, one to each primary of Redis, and the proof that they live."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import structlog
from redis.asyncio.client import PubSub
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError

from wsfleet import keys
from wsfleet.primary import Primary
from wsfleet.store import Store, UnavailableError
from wsfleet.tasks import race

log = structlog.get_logger(__name__)

PROBES_MISSED = 3
RECONNECT_PAUSE = 0.2


class Subscriber:
    """Hears the pub/sub channels that are wanted, again after each reconnect.

    `on_confirmed` is told of each channel from when on nothing is missed, `on_message` what is
    said in it.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        probe_interval: float,
        on_confirmed: Callable[[str], None],
        on_message: Callable[[str, bytes], None],
    ) -> None:
        self._store = store
        self._node = node
        self._probe_interval = probe_interval
        self._on_confirmed = on_confirmed
        self._on_message = on_message
        self._wanted: set[str] = set()
        self._leaving: Counter[str] = Counter()
        self._pubsubs: dict[Primary, PubSub] = {}

    @property
    def subscribed(self) -> bool:
        """Whether everything that is wanted is heard, from all primaries there are."""
        primaries = self._store.primaries
        return bool(primaries) and all(primary in self._pubsubs for primary in primaries)

    def want(self, *channels: str) -> None:
        """Hear pub/sub channels from the next connection on."""
        self._wanted.update(channels)

    async def subscribe(self, channel: str) -> None:
        """Hear a pub/sub channel from now on; `on_confirmed` says when it is true."""
        self._wanted.add(channel)
        try:
            pubsub = self._pubsubs.get(self._store.owner(channel))
            if pubsub is not None:
                await pubsub.ssubscribe(channel)
        except (UnavailableError, RedisError, OSError) as error:
            # The connection's own loop finds out as well, and subscribes to all that is wanted.
            log.debug("subscribe failed", channel=channel, error=str(error))

    async def unsubscribe(self, channel: str) -> None:
        """Hear it no more.

        Raises:
            UnavailableError, redis.exceptions.RedisError, OSError: Redis is away, and forgets.
        """
        self._wanted.discard(channel)
        pubsub = self._pubsubs.get(self._store.owner(channel))
        if pubsub is not None:
            self._leaving[channel] += 1
            await pubsub.sunsubscribe(channel)

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
                self._pubsubs.pop(primary, None)
                self._leaving.clear()
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _listen(self, primary: Primary) -> None:
        probe = self._probe_channel(primary)
        probing = asyncio.create_task(self._probe(primary, probe))
        try:
            async with primary.redis.pubsub() as pubsub:
                await pubsub.ssubscribe(probe)
                sent: set[str] = set()
                while missing := self._wanted_of(primary) - sent:  # some may come while we wait
                    for group in _by_slot(missing, self._store):
                        await pubsub.ssubscribe(*group)
                    sent |= missing
                self._pubsubs[primary] = pubsub
                heard_at = time.monotonic()
                while time.monotonic() - heard_at < PROBES_MISSED * self._probe_interval:
                    message = await pubsub.get_message(timeout=self._probe_interval)
                    if message is not None:
                        heard_at = time.monotonic()
                        self._hear(message["type"], message["channel"].decode(), message["data"])
            raise TimeoutError(f"no answer to {PROBES_MISSED} probes")
        finally:
            probing.cancel()

    def _hear(self, kind: str, channel: str, data: bytes) -> None:
        if kind == "sunsubscribe":
            if self._leaving[channel] <= 0:
                raise MovedError(f"{key_slot(channel.encode())} elsewhere:0")
            self._leaving[channel] -= 1
        elif channel in self._wanted:
            if kind == "smessage":
                self._on_message(channel, data)
            elif kind == "ssubscribe":
                self._on_confirmed(channel)

    async def _probe(self, primary: Primary, channel: str) -> None:
        """Every interval, send a message to the node itself: silence would look like no traffic.

        A connection can be dead without an error (its peer frozen, or cut off by a firewall).
        """
        while True:
            await asyncio.sleep(self._probe_interval)
            try:
                await primary.call("SPUBLISH", channel, b"probe")
            except (UnavailableError, RedisError) as error:
                log.debug("probe failed", error=str(error))

    def _probe_channel(self, primary: Primary) -> str:
        tag = 0
        while self._store.owner(keys.probe(self._node, tag)) is not primary:
            tag += 1
        return keys.probe(self._node, tag)

    def _wanted_of(self, primary: Primary) -> set[str]:
        return {channel for channel in self._wanted if self._store.owner(channel) is primary}


def _by_slot(channels: Iterable[str], store: Store) -> Iterable[list[str]]:
    """One command must stay in one slot, where there are several primaries."""
    if len(store.primaries) == 1:
        return [list(channels)]
    groups: dict[int, list[str]] = defaultdict(list)
    for channel in channels:
        groups[key_slot(channel.encode())].append(channel)
    return groups.values()
