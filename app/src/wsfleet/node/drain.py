"""The drain of a node: it refuses new clients and asks its own to reconnect, a few at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from wsfleet.cluster import node_state
from wsfleet.cluster.node_state import NodeState
from wsfleet.config.settings import Settings
from wsfleet.hub.connection import Connection
from wsfleet.hub.hub import Hub
from wsfleet.node.pace import STEP, paced

log = structlog.get_logger(__name__)


class Drain:
    """The drain of a node, because an operator wants it or because the node stops.

    A client that is asked to reconnect does so at once. So it is asked only `drain_delay` seconds
    after the balancers can know that this node takes no clients.
    """

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        on_change: Callable[[], None] = lambda: None,
        on_failed: Callable[[str], None] = lambda event: None,
    ) -> None:
        self.wanted = settings.standby
        """Whether the desired state is to drain."""
        self.before: list[Callable[[], Awaitable[None]]] = []
        """Called just before clients are sent away, for half of `drain_timeout` at most."""
        self.state = NodeState.DRAINED if settings.standby else NodeState.STARTING
        self._hub = hub
        self._settings = settings
        self._on_change = on_change
        self._on_failed = on_failed
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def refuses(self) -> bool:
        """Whether new clients are refused."""
        return self.state in (NodeState.DRAINING, NodeState.DRAINED)

    def obey(self, wanted: str | None) -> None:
        """Set the desired state of the node; None: there is none, so `standby` decides.

        A node that stops completes its drain in any case.
        """
        if self._stopping:
            return
        match wanted or (node_state.DRAIN if self._settings.standby else node_state.SERVE):
            case node_state.DRAIN:
                self.wanted = True
                if not self.refuses:
                    self._begin()
            case node_state.SERVE:
                self.wanted = False
                if self._task is not None:
                    self._task.cancel()
                    self._task = None
                self._change(NodeState.SERVING)
            case unknown:  # of a newer command line
                log.warning("desired_state_unknown", wanted=unknown)

    async def finish(self) -> None:
        """Drain for the last time, and return when the node is empty: it stops."""
        self._stopping = True
        if not self.refuses:
            self._begin()
        if self._task is not None:
            await self._task

    def _begin(self) -> None:
        self._change(NodeState.DRAINING)
        self._task = asyncio.create_task(self._empty())

    def _change(self, state: NodeState) -> None:
        if self.state is not state:
            self.state = state
            log.info(state.value, connections=len(self._hub))
            self._on_change()

    async def _empty(self) -> None:
        settings = self._settings
        await asyncio.sleep(settings.drain_delay if self._hub else 0.0)
        deadline = time.monotonic() + settings.drain_timeout
        # After the delay: clients go on until they are sent away, and state that the application
        # saved earlier would be outdated.
        await self._prepare()
        waiting: list[Connection] = []

        def rate() -> float:
            """List the clients that may go now; return how many of them a second."""
            nonlocal waiting
            now = time.monotonic()
            held = now < deadline
            waiting = [each for each in self._hub if each.is_open and not (held and each.holds)]
            return max(settings.drain_rate, len(waiting) / max(STEP, deadline - now))

        async for count in paced(rate):
            if not self._hub:
                break
            # The first to come is the first to go: in a roll, clients that moved here from a node
            # that was restarted leave last, and so `Shedding`, which also begins with the first to
            # come, moves none of them a third time.
            for client in waiting[:count]:
                client.restart()
        self._change(NodeState.DRAINED)

    async def _prepare(self) -> None:
        """Run the work due before clients are sent away; they go even if it fails."""
        limit = self._settings.drain_timeout / 2
        try:
            async with asyncio.timeout(limit):
                await asyncio.gather(*(self._call(work) for work in self.before))
        except TimeoutError:
            log.warning("drain_preparation_timeout", seconds=limit)

    async def _call(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            log.exception("drain_preparation_failed")
            self._on_failed("drain")
