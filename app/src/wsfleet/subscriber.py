"""The process's pub/sub connections, one to each primary of Redis, and the proof that they live."""

import asyncio
import contextlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from redis.crc import key_slot
from redis.exceptions import MovedError, RedisError

from wsfleet import keys
from wsfleet.link import Link, Push, pack
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


class Listening:
    """What is heard from one primary; `leaving` counts what it has yet to confirm."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.leaving: Counter[str] = Counter()
        self.heard_at = time.monotonic()
        self.link: Link | None = None

    def send(self, command: str, *channels: str) -> None:
        """Send a command, if it is connected: the next connection asks for all that is wanted."""
        if self.link is not None and self.link.alive:
            self.link.send((command, *channels))


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
        self._listening: dict[Primary, Listening] = {}

    @property
    def subscribed(self) -> bool:
        """Whether everything that is wanted is heard, from all primaries there are."""
        primaries = self._store.primaries
        return bool(primaries) and all(primary in self._listening for primary in primaries)

    def want(self, *channels: str) -> None:
        """Hear pub/sub channels from the next connection on."""
        self._wanted.update(channels)

    def subscribe(self, channel: str) -> None:
        """Hear a pub/sub channel from now on; `on_confirmed` says when it is true.

        Raises:
            redis.exceptions.DataError: its name is not Unicode.
        """
        pack(("SSUBSCRIBE", channel))  # every connection to come would fail at this name
        self._wanted.add(channel)
        if (listening := self._owner(channel)) is not None:
            listening.send("SSUBSCRIBE", channel)

    def unsubscribe(self, channel: str) -> None:
        """Hear it no more."""
        self._wanted.discard(channel)
        if (listening := self._owner(channel)) is not None:
            listening.leaving[channel] += 1
            listening.send("SUNSUBSCRIBE", channel)

    def _owner(self, channel: str) -> Listening | None:
        try:
            return self._listening.get(self._store.owner(channel))
        except UnavailableError:
            return None

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
                self._listening.pop(primary, None)
            await asyncio.sleep(RECONNECT_PAUSE)

    async def _listen(self, primary: Primary) -> None:
        listening = Listening(Probe(self._probe_channel(primary)))
        link = listening.link = await primary.listen(lambda push: self._take(listening, push))
        probing = asyncio.create_task(self._probe(primary, listening.probe))
        try:
            listening.send("SSUBSCRIBE", listening.probe.channel)
            wanted = {channel for channel in self._wanted if primary.owns(channel)}
            for group in [wanted] if primary.owns_all else _by_slot(wanted):
                listening.send("SSUBSCRIBE", *group)
            self._listening[primary] = listening
            self._on_subscribed()
            while time.monotonic() - listening.heard_at < PROBES_MISSED * self._probe_interval:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._probe_interval):
                        await link.lost()
            raise TimeoutError(f"no answer to {PROBES_MISSED} probes")
        finally:
            probing.cancel()
            await link.close()

    def _take(self, listening: Listening, push: Push) -> None:
        """Handle a push: an exception ends its handling, not the connection that all share."""
        try:
            self._hear(listening, push)
        except Exception:
            log.exception("push failed", kind=push[0])
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
                    log.warning("probe not understood", channel=channel)
                    return
                self._metrics.pubsub_probe_seconds.observe(time.monotonic() - listening.probe.heard)
        elif kind == b"ssubscribe":
            if channel in self._wanted:
                self._on_confirmed(channel)
        elif listening.leaving[channel]:
            listening.leaving[channel] -= 1
        elif listening.link is not None:  # its slot was moved
            listening.link.lose(MovedError(f"{key_slot(channel.encode())} elsewhere:0"))

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


def _by_slot(channels: Iterable[str]) -> Iterable[set[str]]:
    """In a Redis Cluster one command must stay in one slot."""
    groups: dict[int, set[str]] = defaultdict(set)
    for channel in channels:
        groups[key_slot(channel.encode())].add(channel)
    return groups.values()
