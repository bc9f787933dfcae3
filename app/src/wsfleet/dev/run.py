"""The process of `wsfleet dev`: listening sockets and state that outlive each node."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wsfleet.config.settings import Settings
from wsfleet.dev.defaults import API_KEY
from wsfleet.dev.supervisor import Supervisor
from wsfleet.redis.memory.server import MemoryServer

BACKLOG = 4096
"""Connections that wait for the next node."""


class PortError(Exception):
    """A port that cannot be listened on."""


async def develop(
    settings: Settings, folders: Sequence[Path], memory: bool, say: Callable[[str], None]
) -> None:
    """Run nodes with these settings until SIGINT or SIGTERM; restart after changes in `folders`.

    With `memory` the state is in this process, whatever Redis the settings name.

    Raises:
        PortError: a port is not available.
        OSError: the files cannot be watched.
    """
    stopped, key = asyncio.Event(), secrets.token_urlsafe(16)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        sockets = stack.enter_context(_listening(settings))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsfleet-")))
        environment = {**os.environ, **_variables(settings), API_KEY: key}
        environment["PYTHONUNBUFFERED"] = "1"  # what the application prints is seen at once
        if memory:
            server = await stack.enter_async_context(MemoryServer(folder / "redis.sock"))
            environment["WSFLEET_REDIS_URL"] = server.url
        say(f"Application  {settings.client_url}")
        say(f"Console      {settings.url}/console/#key={key}")
        say(f"State        {'memory, until the end' if memory else 'Redis'}")
        say(f"Restarts on  *.py, *.yml, *.yaml in {', '.join(map(str, folders))}")
        await Supervisor(sockets, environment, folders, say).run(folder / "notify.sock", stopped)


def _variables(settings: Settings) -> dict[str, str]:
    """Return the environment variables of the settings that were given."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    return {f"WSFLEET_{name.upper()}": str(value) for name, value in given.items()}


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[list[socket.socket]]:
    addresses = (
        (settings.host, settings.port),
        (settings.internal_host or settings.host, settings.internal_port),
    )
    with contextlib.ExitStack() as stack:
        sockets = []
        for host, port in addresses:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
            except OSError as error:
                raise PortError(f"{host} port {port}: {error.strerror}") from None
            sockets.append(stack.enter_context(listener))
        yield sockets
