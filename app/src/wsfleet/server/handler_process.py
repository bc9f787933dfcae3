"""The process of `wsfleet app`: an application's handlers, as endpoints that nodes ask."""

import asyncio
import contextlib
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
import uvloop
from redis.exceptions import RedisError
from uvicorn.config import STARTUP_FAILURE

from wsfleet.application.application import Application
from wsfleet.application.http_proxy.endpoints import ProxyEndpoints
from wsfleet.application.realtime.realtime import Realtime
from wsfleet.config.file import ConfigError
from wsfleet.config.settings import Settings
from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.store import UnavailableError
from wsfleet.server import systemd
from wsfleet.server.server import load, read_settings
from wsfleet.tasks import end
from wsfleet.telemetry import logs

SOCKET_MODE = 0o660
"""Permissions of the socket: its owner and its group may ask."""
BACKLOG = 1024
"""Connections that wait to be accepted."""
KNOWN = 3600
"""Seconds for which the others know a process that has died."""
ACCEPTED = 0.1
"""Seconds, before a stop, in which the request of a connection that was just accepted is read."""

log = structlog.get_logger(__name__)


class HandlerServer(uvicorn.Server):
    """The server of a `Realtime`'s handlers, and of nothing else of the application.

    Its node has no clients and is not in the registry: it is for the calls of the application.
    """

    def __init__(self, node: Node, realtime: Realtime) -> None:
        endpoints = ProxyEndpoints(realtime.router, node.channels, realtime)
        super().__init__(
            uvicorn.Config(
                cast(Any, endpoints),
                http="httptools",
                ws="none",
                lifespan="auto",
                server_header=False,
                date_header=False,
                access_log=False,
                log_config=None,
            )
        )
        self._node = node
        self._realtime = realtime

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then send READY=1 to systemd.

        Raises:
            SystemExit: the application's start-up failed.
        """
        self._realtime.attach(self._node)
        await self._node.start()
        await super().startup(sockets)
        self._heartbeats = asyncio.create_task(self._beat())
        self._watchdog = asyncio.create_task(
            systemd.keep_watchdog_quiet(lambda: "serving handlers")
        )
        systemd.notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the calls that run, and stop the application.

        uvicorn closes a connection without a request at once, which would lose its call.
        """
        systemd.notify("STOPPING=1")
        for server in self.servers:
            server.close()
        await asyncio.sleep(ACCEPTED)
        await super().shutdown(sockets)
        await self._realtime.finish()
        self._watchdog.cancel()
        await end([self._heartbeats])
        with contextlib.suppress(UnavailableError, RedisError):
            await self._node.store.call("ZREM", key_names.HANDLERS, self._node.settings.name)
        await self._node.stop()
        self._realtime.detach(self._node)

    async def _beat(self) -> None:
        """Send heartbeats, by which `wsfleet status` knows that this process answers."""
        settings, store = self._node.settings, self._node.store
        while True:
            with contextlib.suppress(UnavailableError, RedisError):
                _, dead = await store.function(
                    "heartbeat", [key_names.HANDLERS], settings.name, KNOWN
                )
                for name in dead:
                    await store.function("forget", [key_names.HANDLERS], name, KNOWN)
            await asyncio.sleep(settings.heartbeat_interval)


def run(target: str, app_dir: str, listen: str) -> None:
    """Serve the handlers of a `Realtime`, MODULE:NAME, until SIGTERM or SIGINT.

    `listen` is the path of a unix socket, or HOST:PORT; empty for the sockets that systemd passes,
    which other processes may have as well.

    Raises:
        SystemExit: 2 if the settings or the configuration are invalid; 3 if it cannot listen, or
            the application cannot be imported or started.
    """
    settings = read_settings()
    if not settings.node_name:
        name = f"app-{os.getpid()}-{socket.gethostname()}"[:64]
        settings = settings.model_copy(update={"node_name": name})
    logs.configure(settings.log_level, settings.name)
    uvloop.run(_serve(settings, target, app_dir or settings.app_dir, listen))


async def _serve(settings: Settings, target: str, app_dir: str, listen: str) -> None:
    try:
        node = Node(settings, member=False)
    except ConfigError as mistakes:
        print(mistakes, file=sys.stderr)
        raise SystemExit(2) from None
    realtime = _imported(target, app_dir, node)
    try:
        sockets = [_listen(listen)] if listen else systemd.listening_sockets()
    except OSError as error:
        print(f"{listen}: {error.strerror}", file=sys.stderr)
        raise SystemExit(STARTUP_FAILURE) from None
    if not sockets:
        print(
            "there is no socket to listen on: give its address by --listen, or start the command "
            "in a unit of systemd with Sockets=",
            file=sys.stderr,
        )
        raise SystemExit(STARTUP_FAILURE)
    log.info("listening", address=listen or [each.getsockname() for each in sockets])
    await HandlerServer(node, realtime).serve(sockets=sockets)


def _imported(target: str, app_dir: str, node: Node) -> Realtime:
    application = Application(target, app_dir)
    load(application, node.channels)
    if application.realtime is None:
        print(
            f"{target} cannot run here: it is not a Realtime, so it has no handlers; name the "
            "Realtime of the module",
            file=sys.stderr,
        )
        raise SystemExit(STARTUP_FAILURE)
    return application.realtime


def _listen(address: str) -> socket.socket:
    """Return a listening socket; one that a process left behind is replaced.

    Raises:
        OSError: the address is not available.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        return socket.create_server((host.strip("[]"), int(port)), backlog=BACKLOG)
    path = Path(address)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~SOCKET_MODE)  # its mode is right from its first moment on
    try:
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening
