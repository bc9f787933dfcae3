"""One node process: its parts, and what it says of itself."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog
from msgspec import DecodeError

from wsfleet import __version__, records
from wsfleet import config as configuration
from wsfleet.auth import verifiers
from wsfleet.broker import Broker, Listener
from wsfleet.channels import Channels
from wsfleet.connection import NORMAL, Connection
from wsfleet.drain import Drain, State
from wsfleet.health import Sampler
from wsfleet.hub import Hub
from wsfleet.metrics import Metrics
from wsfleet.protocol import plain
from wsfleet.records import Member
from wsfleet.registry import Registry
from wsfleet.sessions import Sessions
from wsfleet.settings import Settings
from wsfleet.store import Store, UnavailableError
from wsfleet.stream import Entry

log = structlog.get_logger(__name__)


class Speaker(Protocol):
    """A protocol's part of what happens in channels: it makes the frames, the hub sends them."""

    def published(self, channel: str, entry: Entry, record: records.Record) -> None:
        """Deliver a publication to those of its clients who hear the channel."""

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Tell those of its clients who want to know that somebody joined or left."""

    def lost(self, channel: str) -> None:
        """Tell its clients that publications are lost to them."""

    def commanded(self, command: bytes) -> None:
        """Carry out an operator's command."""


def plain_topic(channel: str) -> str:
    """The hub's name for those who hear a channel in the plain protocol."""
    return f"plain {channel}"


class PlainSpeaker:
    """The plain protocol knows publications alone: whoever was away has missed them."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def published(self, channel: str, entry: Entry, record: records.Record) -> None:
        """Deliver to all but the sender."""
        topic = plain_topic(channel)
        if self._node.hub.has(topic):
            own = record.node == self._node.settings.name
            self._node.hub.publish(
                topic, plain.broadcast(record), exclude=record.number if own else None
            )

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Say nothing: the protocol has no word for it."""

    def lost(self, channel: str) -> None:
        """Say nothing: the protocol has no word for it."""

    def commanded(self, command: bytes) -> None:
        """Do nothing: no command is about its clients."""


class Node(Listener):
    """Everything that lives as long as the process; made before the first connection.

    Raises:
        wsfleet.config.ConfigError: the configuration cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config = configuration.load(settings.config)
        self.channels = Channels(self.config.channel)
        self.connection_tokens, self.subscription_tokens = verifiers(self.config.client)
        self.started_at = time.time()
        self.metrics = Metrics()
        self.sampler = Sampler()
        self.hub = Hub(on_delivered=self.metrics.deliveries.inc)
        self.store = Store(settings, on_connected=self._on_connected)
        self.registry = Registry(self.store, settings, self._describe)
        self.drain = Drain(self.hub, settings, on_change=self.registry.hurry)
        self.registry.on_wanted = self.drain.obey
        self.sessions = Sessions(self.store, self.registry, settings.name, settings.resume_window)
        self.broker = Broker(
            self.store, settings.name, self, probe_interval=settings.heartbeat_interval
        )
        self.broker.keep(plain.CHANNEL, self.channels.find(plain.CHANNEL).options)
        self.speakers: list[Speaker] = [PlainSpeaker(self)]
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.metrics.watch(
            connections=lambda: len(self.hub),
            ready=lambda: self.not_ready_reason() is None,
            redis=lambda: self.store.connected,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the background tasks; a Redis that is away does not keep the node from starting."""
        loops = [
            *self.store.loops(),
            *self.broker.loops(),
            self.registry.run(),
            self.sampler.run(),
            *(loop() for loop in self.background),
        ]
        if self.settings.idle_timeout:
            loops.append(self._close_idle())
        self._tasks = [asyncio.create_task(self._guard(loop)) for loop in loops]

    async def stop(self) -> None:
        """Leave the registry and end the background tasks."""
        try:
            await self.registry.leave()
        except UnavailableError:
            log.warning("left without saying so: redis is away, the others will reap")
        running = set(self._tasks)
        while running:
            # Once is not enough: asyncio.wait_for of Python 3.11 can swallow a cancellation that
            # comes in the moment of its time-out, and redis-py uses it.
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=1.0)
        await self.store.close()

    def not_ready_reason(self) -> str | None:
        """Why new clients should go elsewhere; None if they should come."""
        if self.drain.refuses:
            return self.drain.state.value
        if not self.store.connected:
            return "redis is not reachable"
        if not self.broker.subscribed:
            return "not subscribed to the other nodes"
        if self.drain.state is State.STARTING:
            return "starting"
        if len(self.hub) >= self.settings.max_connections:
            return f"full: {self.settings.max_connections} connections"
        return None

    def refusal_reason(self) -> str | None:
        """Why a handshake is refused; None to accept it.

        A node without Redis still accepts: the others may be no better off, and its clients learn
        the reason from an error frame instead of from a closed door.
        """
        if self.drain.refuses:
            return self.drain.state.value
        if len(self.hub) >= self.settings.max_connections:
            return "full"
        return None

    def health(self) -> dict[str, Any]:
        """What `/health` says."""
        healthy = self.store.connected and self.broker.subscribed
        status = "healthy" if healthy else "degraded"
        return {
            "status": self.drain.state.value if self.drain.refuses else status,
            "connections": len(self.hub),
            "memory_usage": self.sampler.memory_usage,
            "cpu_usage": self.sampler.cpu_usage,
            "redis_connected": self.store.connected,
            "hostname": self.settings.name,
            "version": __version__,
            "uptime": round(time.time() - self.started_at, 3),
        }

    def opened(self, connection: Connection) -> None:
        """Count a connection in."""
        self.hub.add(connection)
        self.metrics.connections_opened.inc()
        log.info("opened", client_id=connection.client_id, connections=len(self.hub))
        if self.drain.state is State.DRAINED:  # its handshake began before
            connection.restart()

    def closed(self, connection: Connection) -> None:
        """Count a connection out."""
        self.hub.remove(connection)
        self.metrics.disconnected(connection.close_code)
        log.info(
            "closed",
            client_id=connection.client_id,
            code=connection.close_code,
            reason=connection.reason,
            messages=connection.message_count,
            duration=round(time.monotonic() - connection.opened_at, 3),
        )

    def _describe(self) -> dict[str, str]:
        return {
            "connections": str(len(self.hub)),
            "url": self.settings.url,
            "version": __version__,
            "started": f"{self.started_at:.3f}",
            "state": self.not_ready_reason() or "ready",
        }

    def published(self, channel: str, entry: Entry) -> None:
        """Let each protocol deliver; see `Listener`."""
        try:
            record = records.decode_record(entry.record)
        except DecodeError as error:  # of a newer node, or not of a node
            log.warning("record not understood", channel=channel, error=str(error))
            return
        for speaker in self.speakers:
            speaker.published(channel, entry, record)

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Let each protocol tell; see `Listener`."""
        for speaker in self.speakers:
            speaker.member_changed(channel, joined, member)

    def lost(self, channel: str) -> None:
        """Let each protocol tell; see `Listener`."""
        for speaker in self.speakers:
            speaker.lost(channel)

    def commanded(self, command: bytes) -> None:
        """Let each protocol carry it out; see `Listener`."""
        for speaker in self.speakers:
            speaker.commanded(command)

    async def _on_connected(self) -> None:
        await self.registry.beat()
        await self.sessions.reconcile()
        await self.broker.resync()

    async def _close_idle(self) -> None:
        timeout = self.settings.idle_timeout
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            limit = time.monotonic() - timeout
            for connection in self.hub:
                if connection.last_message_at < limit:
                    connection.close(NORMAL, f"idle for {timeout:g} s")

    async def _guard(self, loop: Coroutine[Any, Any, None]) -> None:
        """A background task that dies of a defect must not leave a half-dead node behind."""
        try:
            await loop
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.critical("background task failed", exc_info=True)
            signal.raise_signal(signal.SIGTERM)  # drain and stop; systemd starts a new one
