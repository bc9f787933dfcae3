"""A uvicorn server that drains before it stops, and the process of `wsfleet serve`."""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import structlog
import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.lifespan.off import LifespanOff

from wsfleet.application.application import Application, ApplicationError
from wsfleet.application.http_proxy.process_router import ProcessRouter
from wsfleet.application.http_proxy.router import ProxyRouter
from wsfleet.application.port import Router
from wsfleet.application.routing import RoutingError, merge
from wsfleet.auth.tokens import verifiers
from wsfleet.channels.permissions import Channels
from wsfleet.clients.asgi import ASGI
from wsfleet.clients.centrifuge.endpoint import Centrifuge
from wsfleet.clients.plain import Plain
from wsfleet.config import file
from wsfleet.config.schema import Config
from wsfleet.config.settings import Settings
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.negotiation import PATH as CENTRIFUGE_PATH
from wsfleet.protocol.plain import PATH as PLAIN_PATH
from wsfleet.server import systemd
from wsfleet.server.app import Guest, create_internal_app, create_public_app, is_reserved
from wsfleet.telemetry import logs
from wsfleet.transports.http import HTTP, KEYLESS_BODY_LIMIT, Routing
from wsfleet.transports.websocket import WebSocket

log = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """The server of one node process: its node, the port for clients, and the internal port.

    When uvicorn stops it closes all WebSockets with 1012 at once; this server closes them at a
    limited rate. The internal port opens before the clients' port, and closes after it.

    `sockets` are listening sockets that outlive this process, for clients and for the internal
    port. Clients that connect while it stops then wait for the next process.
    """

    def __init__(
        self,
        centrifuge: Centrifuge,
        routers: Sequence[Router],
        config: uvicorn.Config,
        internal: uvicorn.Config | None = None,
        application: Application | None = None,
    ) -> None:
        super().__init__(config)
        self._node = centrifuge.node
        self._centrifuge = centrifuge
        self._routers = routers
        self._application = application
        self._internal = uvicorn.Server(internal) if internal is not None else None
        self._watchdog: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the node and its application, listen, then send READY=1 to systemd.

        Raises:
            SystemExit: a port is not available, or the application's start-up failed.
        """
        if self._application is not None:
            load(self._application, self._node.channels)
            if (realtime := self._application.realtime) is not None:
                realtime.attach(self._node)
        router = merged(
            [*self._routers, *handlers(self._application, self._node.settings.app_socket)],
            self._node.channels,
        )
        self._centrifuge.route(router)
        await self._node.start()
        clients, internal = _split(sockets)
        try:
            if sockets:  # their first clients are waiting, so there is no check before them
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._node.settings.redis_timeout):
                        await self._node.store.wait_connected()
            if self._internal is not None:
                self._internal.config.load()
                self._internal.lifespan = LifespanOff(self._internal.config)
                await self._internal.startup(internal)
            await super().startup(clients)
        except SystemExit:
            await self._stop_internal()
            await self._stop_node()
            raise
        self._node.listening.set()
        self._watchdog = asyncio.create_task(
            systemd.keep_watchdog_quiet(lambda: f"{len(self._node.hub)} connections")
        )
        systemd.notify("READY=1")
        log.info("listening", url=self._node.settings.url)

    async def on_tick(self, counter: int) -> bool:
        """Run uvicorn's periodic work, such as the Date header, for both ports."""
        if self._internal is not None:
            await self._internal.on_tick(counter)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the node, shut uvicorn down, and stop the node."""
        systemd.notify("STOPPING=1")
        if sockets:
            for server in self.servers:
                server.close()
        await self._node.drained()
        if self._application is not None and self._application.realtime is not None:
            await self._application.realtime.finish()  # before the application's shutdown
        await super().shutdown(sockets)
        await self._stop_internal()
        await self._stop_node()
        if self._watchdog is not None:
            self._watchdog.cancel()

    async def _stop_node(self) -> None:
        await self._node.stop()
        if self._application is not None and self._application.realtime is not None:
            self._application.realtime.detach(self._node)

    async def _stop_internal(self) -> None:
        if self._internal is not None and self._internal.started:
            await self._internal.shutdown()


def _split(
    sockets: list[socket.socket] | None,
) -> tuple[list[socket.socket] | None, list[socket.socket] | None]:
    return (sockets[:1], sockets[1:]) if sockets else (None, None)


def create_server(
    settings: Settings, config: Config | None = None, routers: Sequence[Router] = ()
) -> Server:
    """Return the server of one node process, not yet running.

    `config` replaces the file that the settings name. `routers` have backends for the events of
    Centrifuge clients, beside the application's handlers and the configuration's proxies.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    node = Node(settings, config)
    centrifuge = Centrifuge(node)
    proxies = ProxyRouter(node.config)
    node.on_drained.append(proxies.close)
    serve = partial(Server, centrifuge, [*routers, proxies])
    internal_app = create_internal_app(node)
    endpoints = {CENTRIFUGE_PATH: centrifuge.endpoint}
    if plain_path := settings.plain_path or ("" if settings.app else PLAIN_PATH):
        endpoints[plain_path] = Plain(node).endpoint
    public = Routing(
        endpoint=endpoints.get,
        no_endpoint=f"WebSockets are at {' and '.join(endpoints)}",
        on_refused=node.metrics.refused,
        body_limit=internal_app.body_limit,
        body_timeout=settings.body_timeout,
    )
    address = settings.host, settings.port
    if not settings.internal_port:
        return serve(_configuration(settings, address, internal_app, public))
    internal = _configuration(
        settings,
        (settings.internal_host or settings.host, settings.internal_port),
        internal_app,
        public._replace(
            endpoint=lambda _: None, no_endpoint=f"WebSockets are on port {settings.port}"
        ),
    )
    if not settings.app:
        public = public._replace(body_limit=lambda _: KEYLESS_BODY_LIMIT)
        app = create_public_app(node)
        return serve(_configuration(settings, address, app, public), internal)
    application = Application(settings.app, settings.app_dir)
    guest = ASGI(node, application, settings.trusted_proxies).endpoint
    public = public._replace(
        endpoint=lambda path: endpoints.get(path) or (None if is_reserved(path) else guest),
        body_limit=lambda _: settings.max_request_size,
    )
    public_config = _configuration(settings, address, Guest(node, application), public)
    return serve(public_config, internal, application)


def _configuration(
    settings: Settings, address: tuple[str, int], app: ASGIApp, routing: Routing
) -> uvicorn.Config:
    host, port = address
    return uvicorn.Config(
        cast(Any, app),
        host=host,
        port=port,
        loop="uvloop",
        http=cast(Any, partial(HTTP, routing=routing)),
        ws=WebSocket,
        ws_max_size=settings.max_message_size,
        ws_per_message_deflate=settings.compression,
        ws_ping_interval=settings.ping_interval,
        ws_ping_timeout=settings.ping_timeout,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        backlog=4096,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=10,
        server_header=False,
        headers=[(settings.node_header, settings.name)] if settings.node_header else None,
        access_log=False,
        log_config=None,
    )


def load(application: Application, channels: Channels) -> None:
    """Import the application, and check its handlers against the configuration.

    Raises:
        SystemExit: it cannot be served; standard error has the reason.
    """
    try:
        application.load()
        application.check(channels)
    except ApplicationError as error:
        print(error, file=sys.stderr)
        raise SystemExit(STARTUP_FAILURE) from None


def read_settings(**given: Any) -> Settings:
    """Return the settings; those that are not given come from the environment.

    Raises:
        SystemExit: 2, with a line for each mistake.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"]:
                variable = "WSFLEET_" + "_".join(map(str, problem["loc"])).upper()
                print(f"{variable}: {problem['msg']} (it is {problem['input']!r})", file=sys.stderr)
            else:  # it is about several settings, and its text names them
                print(problem["msg"].removeprefix("Value error, "), file=sys.stderr)
        raise SystemExit(2) from None


def handlers(application: Application | None, app_socket: str) -> list[Router]:
    """Return the router of the application's handlers, if it is a `Realtime`.

    With `app_socket`, they run in the processes of `wsfleet app` that listen there.

    Raises:
        SystemExit: there is a socket, and the application is not a `Realtime`.
    """
    realtime = application.realtime if application is not None else None
    if realtime is not None:
        own = realtime.router
        return [ProcessRouter(own, app_socket, realtime.timeout) if app_socket else own]
    if app_socket:
        print(
            "WSFLEET_APP_SOCKET cannot be used: WSFLEET_APP is not a Realtime, so it has no "
            "handlers; name the Realtime of the module, or remove the socket",
            file=sys.stderr,
        )
        raise SystemExit(STARTUP_FAILURE)
    return []


def merged(routers: Sequence[Router], channels: Channels) -> Router | None:
    """Return one router for all; None if none has a backend.

    Raises:
        SystemExit: two have a backend for one event; standard error has a line for each.
    """
    try:
        return merge(routers, channels.namespaces)
    except RoutingError as error:
        print(error, file=sys.stderr)
        raise SystemExit(STARTUP_FAILURE) from None


def run(*, check: bool = False, **given: str) -> None:
    """Serve until SIGTERM or SIGINT; settings that are not given come from the environment.

    `check` reads the settings and the configuration, imports the application, and returns.

    Raises:
        SystemExit: 2 with a line for each mistake in the settings or the configuration; 3 if a port
            is not available, or the application cannot be imported or started.
    """
    settings = read_settings(**given)
    try:
        config = file.load(settings.config)
        if check:
            verifiers(config.client)
            proxies = ProxyRouter(config)
        else:
            server = create_server(settings, config)
    except file.ConfigError as mistakes:
        print(mistakes, file=sys.stderr)
        raise SystemExit(2) from None
    if settings.tls_certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_certificate, settings.tls_key
            )
        except OSError as error:  # a file is missing or not readable, or they do not match
            print(f"WSFLEET_TLS_CERTIFICATE, WSFLEET_TLS_KEY: {error}", file=sys.stderr)
            raise SystemExit(2) from None
    if check:
        channels = Channels(config.channel)
        application = Application(settings.app, settings.app_dir) if settings.app else None
        if application is not None:
            load(application, channels)
        merged([proxies, *handlers(application, settings.app_socket)], channels)
        return
    logs.configure(settings.log_level, settings.name)
    server.run()
