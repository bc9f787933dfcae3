"""Nodes in this process."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import connect

from lab.waiting import TIMEOUT, settled
from wsfleet.config.settings import Settings
from wsfleet.server.server import Server
from wsfleet.tasks import end


class RunningNode:
    """A node that serves on the loopback, in this process."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self.server = server
        self.settings = settings
        self.node = server._node
        self.task = asyncio.create_task(server._serve())

    @property
    def url(self) -> str:
        """Base URL for operators, without a path."""
        return self.settings.url

    @property
    def client_url(self) -> str:
        """Base URL for clients, without a path."""
        return self.settings.client_url

    async def wait_ready(self) -> None:
        """Wait until new clients should come."""

        def ready() -> bool:
            return self.server.started and self.node.not_ready_reason() is None

        await settled(ready, f"{self.settings.name} is ready", pause=0.01)

    def connect(self, **options: Any) -> connect:
        """Open a WebSocket to the plain endpoint."""
        options.setdefault("proxy", None)
        return connect(self.client_url.replace("http", "ws") + "/ws", **options)

    async def stop(self) -> None:
        """Stop as SIGTERM does."""
        self.server.should_exit = True
        _, running = await asyncio.wait([self.task], timeout=TIMEOUT)
        if running:
            for task in asyncio.all_tasks():
                task.print_stack()
            raise AssertionError("it did not stop in time: its tasks are on stderr")
        self.task.result()

    async def crash(self) -> None:
        """Vanish without a word, as after kill -9: no release, no farewell, sockets cut."""
        self.task.cancel()
        await end(self.node._tasks)
        for server in self.server.servers:
            server.close()
        for protocol in list(self.server.server_state.connections):
            protocol.transport.abort()


StartNode = Callable[..., Awaitable[RunningNode]]
