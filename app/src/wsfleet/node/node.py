"""One node process: its parts, readiness and health."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from wsfleet import __version__
from wsfleet.auth.denylist import Denylist
from wsfleet.auth.tokens import verifiers
from wsfleet.broker.broker import Broker
from wsfleet.broker.events import Dispatcher
from wsfleet.broker.survey import Surveys
from wsfleet.channels.permissions import Channels
from wsfleet.cluster.client_names import ClientNames
from wsfleet.cluster.node_state import FULL, READY, NodeState
from wsfleet.cluster.registry import Registry
from wsfleet.config import file as configuration
from wsfleet.config.schema import Config
from wsfleet.config.settings import Settings
from wsfleet.hub.connection import NORMAL, Connection
from wsfleet.hub.hub import Hub
from wsfleet.node.admission import Admission
from wsfleet.node.delivery_timer import DeliveryTimer
from wsfleet.node.drain import Drain
from wsfleet.node.shedding import Shedding
from wsfleet.node.users import Users
from wsfleet.protocol import plain
from wsfleet.redis.primary import DIGEST
from wsfleet.redis.store import Store, UnavailableError
from wsfleet.tasks import end
from wsfleet.telemetry.blocked_loop import BlockedLoopWatch
from wsfleet.telemetry.host_load import Sampler
from wsfleet.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

FINISH_TIMEOUT = 10.0
"""Seconds for `Node.on_drained`, however long the drain took."""


class Node:
    """A node: everything that lives as long as the process; made before the first connection.

    `config` replaces the file that the settings name. One that is no `member` has no clients and is
    not in the registry: it publishes and reads for a process beside the nodes.

    Raises:
        wsfleet.config.ConfigError: the configuration cannot be used.
    """

    def __init__(
        self, settings: Settings, config: Config | None = None, *, member: bool = True
    ) -> None:
        self._member = member
        self.settings = settings
        self.config = configuration.load(settings.config) if config is None else config
        self.channels = Channels(self.config.channel)
        self.connection_tokens, self.subscription_tokens = verifiers(self.config.client)
        self.started_at = time.time()
        self.listening = asyncio.Event()
        """Set by the server when clients can connect, and the application has started."""
        self.metrics = Metrics()
        self.sampler = Sampler(on_lag=self.metrics.event_loop_lag_seconds.observe)
        self.hub = Hub(on_delivered=self.metrics.deliveries.inc)
        self.handshakes: set[object] = set()
        """Handshakes that are not accepted yet; each takes the place of a connection."""
        self.store = Store(settings, on_connected=self._on_connected)
        self.registry = Registry(self.store, settings, self._describe)
        self.drain = Drain(
            self.hub,
            settings,
            on_change=self.registry.hurry,
            on_failed=self.metrics.handler_failed,
        )
        self.registry.on_wanted = self.drain.obey
        self.client_names = ClientNames(
            self.store, self.registry, settings.name, settings.resume_window
        )
        self.dispatcher = Dispatcher(self.metrics.handler_failed)
        self.dispatcher.add(DeliveryTimer(self.metrics))
        self.users = Users(self.config.client.user_connection_limit, self.metrics.handler_failed)
        self.dispatcher.add(self.users)
        self.shedding = Shedding(self.hub, self._may_shed, self.metrics.connections_shed.inc)
        self.dispatcher.add(self.shedding)
        self.denylist = Denylist(self.store)
        self.admission = Admission(
            self.config.client, self.connection_tokens, self.users, self.denylist
        )
        self.broker = Broker(
            self.store,
            settings.name,
            self.dispatcher,
            self.metrics,
            probe_interval=settings.heartbeat_interval,
            max_publication_size=settings.max_publication_size,
            on_subscribed=self._on_subscribed,
        )
        self.surveys = Surveys(
            self.broker, settings.name, self.dispatcher, self.metrics.handler_failed
        )
        self.broker.followed.follow_always(plain.CHANNEL, self.channels.find(plain.CHANNEL).options)
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self.on_connected: list[Callable[[], Awaitable[None]]] = [self.client_names.reconcile]
        """Repair this node's keys in Redis: after a start, and after an outage."""
        self.on_drained: list[Callable[[], Awaitable[None]]] = []
        """Finish the work that the last clients leave, before the node stops."""
        self.to_be_reaped = False
        """Whether the node leaves work behind for the node that finds it dead."""
        self._watch()
        self._tasks: list[asyncio.Task[None]] = []

    def _watch(self) -> None:
        """Add the gauges that are read at each scrape."""
        self.metrics.watch(
            max_connections=self.settings.max_connections,
            handshakes=lambda: len(self.handshakes),
            weight=self.settings.weight,
            outbox_bytes=lambda: sum(connection.buffered for connection in self.hub),
            ready=lambda: self.not_ready_reason() is None,
            states=[state.value for state in NodeState],
            state=lambda: self.drain.state.value,
            drain_wanted=lambda: self.drain.wanted,
            redis=lambda: self.store.connected,
            pubsub=lambda: self.broker.subscribed,
        )

    async def start(self) -> None:
        """Start the background tasks; the node starts without Redis as well."""
        self._blocked_loop = BlockedLoopWatch(self.metrics.event_loop_blocked_seconds.inc)
        self._blocked_loop.start()
        loops = [
            *self.store.loops(),
            *self.broker.loops(),
            self.sampler.run(),
            *(loop() for loop in self.background),
        ]
        if self._member:
            loops += [self.registry.run(), self.users.recheck(self.denylist)]
        if self.settings.idle_timeout:
            loops.append(self._close_idle())
        self._tasks = [asyncio.create_task(self._guard(loop)) for loop in loops]

    async def drained(self) -> None:
        """Drain for the last time, and finish the work that the last clients leave.

        The drain time-out is the limit for both, but the second has `FINISH_TIMEOUT` seconds.
        """
        deadline = time.monotonic() + self.settings.drain_delay + self.settings.drain_timeout
        await self.drain.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(FINISH_TIMEOUT, deadline - time.monotonic())):
                for work in self.on_drained:
                    await work()

    async def stop(self) -> None:
        """Remove the node from the registry and end the background tasks."""
        try:
            if self._member and not self.to_be_reaped:
                await self.registry.leave()
        except UnavailableError:
            log.warning("deregistration_failed")
        await self.abandon()

    async def abandon(self) -> None:
        """End the background tasks in silence: for the other nodes, this one has died."""
        self.shedding.stop()
        await end(self._tasks)
        await self.store.close()
        self._blocked_loop.stop()

    def not_ready_reason(self) -> str | None:
        """Return why the node is not ready for new clients; None if it is."""
        if self.drain.refuses:
            return self.drain.state.value
        if not self.store.connected:
            return "redis is not reachable"
        if not self.broker.subscribed:
            return "not subscribed to the other nodes"
        if self.drain.state is NodeState.STARTING or not self.listening.is_set():
            return NodeState.STARTING.value
        if self._full:
            return f"{FULL}: {self.settings.max_connections} connections"
        return None

    def refusal_reason(self) -> str | None:
        """Return why a handshake is refused; None to accept it.

        A node without Redis accepts: the others may be no better off, and an error frame tells its
        clients the reason.
        """
        if self.drain.refuses:
            return self.drain.state.value
        return FULL if self._full else None

    @property
    def _full(self) -> bool:
        return len(self.hub) + len(self.handshakes) >= self.settings.max_connections

    def health(self) -> dict[str, Any]:
        """Return the answer of `/health`."""
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
        """Add a connection."""
        self.hub.add(connection)
        self.metrics.connections_opened.inc()
        log.info("connection_opened", client_id=connection.client_id, connections=len(self.hub))
        if self.drain.state is NodeState.DRAINED:  # its handshake began before the drain
            connection.restart()

    def closed(self, connection: Connection) -> None:
        """Remove a connection."""
        self.hub.remove(connection)
        self.metrics.disconnected(connection.close_code)
        log.info(
            "connection_closed",
            client_id=connection.client_id,
            code=connection.close_code,
            reason=connection.reason,
            messages=connection.message_count,
            duration=round(time.monotonic() - connection.opened_at, 3),
        )

    def _describe(self) -> dict[str, str]:
        return {
            "connections": str(len(self.hub)),
            "cpu": f"{self.sampler.cpu_usage:g}",
            "url": self.settings.url,
            "version": __version__,
            "started": f"{self.started_at:.3f}",
            "functions": DIGEST,
            "state": self.not_ready_reason() or READY,
            "weight": str(self.settings.weight),
            "shedding": str(self.shedding.left),
        }

    def _may_shed(self) -> bool:
        """Return whether another node could continue for a client with its state in Redis."""
        serving = self.drain.state is NodeState.SERVING
        return serving and self.store.connected and self.broker.subscribed

    async def _on_connected(self) -> None:
        if not self._member:
            return
        await self.registry.beat()
        for repair in self.on_connected:
            await repair()
        used = {node.get("functions", "") for node in (await self.registry.nodes()).values()}
        await self.store.forget_functions(used)

    def _on_subscribed(self) -> None:
        self.registry.hurry()
        self.users.hurry()

    async def _close_idle(self) -> None:
        timeout = self.settings.idle_timeout
        while True:
            await asyncio.sleep(min(1.0, timeout / 4))
            limit = time.monotonic() - timeout
            for connection in self.hub:
                if connection.last_message_at < limit:
                    connection.close(NORMAL, f"idle for {timeout:g} s")

    async def _guard(self, loop: Coroutine[Any, Any, None]) -> None:
        """Run a background task; stop the process if it fails, rather than run half a node."""
        try:
            await loop
        except asyncio.CancelledError:
            raise
        except BaseException:
            log.critical("background_task_failed", exc_info=True)
            signal.raise_signal(signal.SIGTERM)  # drain and stop; systemd starts a new one
