"""The parent of `wsfleet dev`: it restarts the node when a file changes."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from watchfiles import PythonFilter, awatch

from wsfleet.dev.process import NodeProcess
from wsfleet.tasks import end

WATCHED = (".yml", ".yaml")
"""Endings of files besides Python's whose change restarts the node."""
PAUSE = 50
"""Milliseconds without a further change after which the node restarts."""


class Supervisor:
    """The parent process: it runs one node at a time, and starts the next one after a change.

    While a node serves, a spare process waits with the node's code imported. `say` prints a line.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        environment: dict[str, str],
        folders: Sequence[Path],
        say: Callable[[str], None],
    ) -> None:
        self._sockets = sockets
        self._environment = environment
        self._folders = folders
        self._say = say
        self._changed = asyncio.Event()
        self._began = time.monotonic()
        self._ready = asyncio.Event()
        self._processes: list[NodeProcess] = []  # one that serves, and a spare one

    async def run(self, notify: Path, stopped: asyncio.Event) -> None:
        """Run nodes until `stopped` is set; `notify` is the path of a socket.

        Raises:
            OSError: the files cannot be watched.
        """
        endings = [asyncio.create_task(self._watch()), asyncio.create_task(stopped.wait())]
        try:
            async with self._notifications(notify):
                while not any(task.done() for task in endings):
                    await self._run_one(*endings)
            for task in endings:
                if task.done():
                    task.result()
        finally:
            await end(endings)
            await asyncio.gather(*(process.stop() for process in self._processes))

    async def _run_one(self, *endings: asyncio.Task[Any]) -> None:
        """Run a node until the next change, or an ending."""
        if not self._processes:
            await self._spawn()
        # Changes before now are seen by the import.
        self._changed.clear()
        self._ready.clear()
        node = self._processes[0]
        node.serve()
        changed = asyncio.create_task(self._changed.wait())
        ready = asyncio.create_task(self._ready.wait())
        ended = asyncio.create_task(node.ended())
        pending: set[asyncio.Task[Any]] = {changed, ready, ended, *endings}
        try:
            while changed in pending and pending.issuperset(endings):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if ready in done:
                    self._say(f"Serving, after {time.monotonic() - self._began:.1f} s.")
                    await self._spawn()
                if ended in done:
                    self._say("The node ended: correct the error; clients wait for it.")
        finally:
            await end([changed, ready, ended])
        if not await node.stop():
            self._say("The node did not stop in time, and was killed.")
        self._processes.remove(node)

    async def _spawn(self) -> None:
        self._processes.append(await NodeProcess.spawn(self._sockets, self._environment))

    async def _watch(self) -> None:
        only = PythonFilter(extra_extensions=WATCHED)
        async for changes in awatch(*self._folders, watch_filter=only, step=PAUSE):
            names = sorted({Path(path).name for _, path in changes})
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._say(f"Restarting: {names[0]}{more} changed.")
            self._began = time.monotonic()
            self._changed.set()

    @contextlib.asynccontextmanager
    async def _notifications(self, path: Path) -> AsyncIterator[None]:
        """Receive what nodes tell systemd: READY=1 is that it serves (sd_notify(3))."""
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        receiver.bind(str(path))
        self._environment["NOTIFY_SOCKET"] = str(path)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Readiness(self._ready), sock=receiver
        )
        try:
            yield
        finally:
            transport.close()


class _Readiness(asyncio.DatagramProtocol):
    """A receiver of notifications that sets an event when a node is ready."""

    def __init__(self, ready: asyncio.Event) -> None:
        self._ready = ready

    def datagram_received(self, data: bytes, addr: object) -> None:
        if b"READY=1" in data.split(b"\n"):
            self._ready.set()
