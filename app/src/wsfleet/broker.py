"""Publications between the nodes: Redis pub/sub, watched by a probe."""

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from wsfleet import keys
from wsfleet.store import Store, UnavailableError

log = structlog.get_logger(__name__)

PROBES_MISSED = 3


class Broker:
    """One pub/sub connection a process; who hears what on this process is the hub's business.

    A publication travels as a line with its node and connection number, so that its sender alone
    does not hear it, and the payload behind it: the bytes that everybody else gets.
    """

    def __init__(
        self,
        store: Store,
        node: str,
        channels: list[str],
        on_publication: Callable[[str, bytes, int | None], None],
        probe_interval: float,
    ) -> None:
        self._store = store
        self._node = node
        self._channels = {keys.channel(name).encode(): name for name in channels}
        self._control = keys.control(node)
        self._on_publication = on_publication
        self._probe_interval = probe_interval
        self.subscribed = False

    async def publish(self, channel: str, payload: bytes, origin: int) -> None:
        """Send `payload` to every node; `origin` is the number of the sender's connection here.

        Raises:
            UnavailableError: Redis is away.
        """
        envelope = b"%s %d\n%s" % (self._node.encode(), origin, payload)
        await self._store.call("PUBLISH", keys.channel(channel), envelope)

    async def run(self) -> None:
        """Stay subscribed until cancelled; a subscription that went silent is made anew."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                if self.subscribed:
                    log.warning("subscription lost", error=str(error) or type(error).__name__)
            self.subscribed = False
            await asyncio.sleep(0.2)

    async def probe(self) -> None:
        """Every interval, send a message to the node itself: silence would look like no traffic.

        A connection can be dead without an error (its peer frozen, or cut off by a firewall).
        """
        while True:
            await asyncio.sleep(self._probe_interval)
            try:
                await self._store.call("PUBLISH", self._control, b"probe")
            except (UnavailableError, RedisError) as error:
                log.debug("probe failed", error=str(error))

    async def _listen(self) -> None:
        silence = PROBES_MISSED * self._probe_interval
        async with self._store.redis.pubsub() as pubsub:
            await pubsub.subscribe(self._control, *self._channels)
            heard_at = time.monotonic()
            while time.monotonic() - heard_at < silence:
                message = await pubsub.get_message(timeout=self._probe_interval)
                if message is None:
                    continue
                heard_at = time.monotonic()
                if message["type"] == "subscribe":
                    self.subscribed = True
                elif (name := self._channels.get(message["channel"])) is not None:
                    self._receive(name, message["data"])
        raise TimeoutError(f"no answer to {PROBES_MISSED} probes")

    def _receive(self, channel: str, envelope: bytes) -> None:
        source, _, payload = envelope.partition(b"\n")
        node, _, number = source.rpartition(b" ")
        origin = int(number) if node == self._node.encode() else None
        self._on_publication(channel, payload, origin)
