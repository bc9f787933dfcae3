"""uvicorn, told to drain before it stops, and the `wsfleet serve` process around it."""

import asyncio
import socket
import ssl
import sys

import structlog
import uvicorn
from pydantic import ValidationError

from wsfleet.auth.tokens import verifiers
from wsfleet.config import file
from wsfleet.config.settings import Settings
from wsfleet.node.node import Node
from wsfleet.server import systemd
from wsfleet.server.app import create_app
from wsfleet.telemetry import logs
from wsfleet.transports.http import HTTP
from wsfleet.transports.websocket import WebSocket

log = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """uvicorn closes every WebSocket with 1012 in one instant when it stops; this one paces it."""

    def __init__(self, config: uvicorn.Config, node: Node) -> None:
        super().__init__(config)
        self._node = node
        self._watchdog: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say READY=1."""
        await super().startup(sockets)
        self._watchdog = asyncio.create_task(
            systemd.keep_watchdog_quiet(lambda: f"{len(self._node.hub)} connections")
        )
        systemd.notify("READY=1")
        log.info("listening", url=self._node.settings.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then do what uvicorn does."""
        systemd.notify("STOPPING=1")
        await self._node.drain.finish()
        await super().shutdown(sockets)
        if self._watchdog is not None:
            self._watchdog.cancel()


def create_server(settings: Settings) -> Server:
    """The server of one node process, not yet running."""
    node = Node(settings)
    uvicorn_config = uvicorn.Config(
        create_app(node),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=HTTP,
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
        access_log=False,
        log_config=None,
    )
    return Server(uvicorn_config, node)


def run(*, check: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; settings come from the environment. `check`: read them only.

    Raises:
        SystemExit: 2 with one line a mistake if the settings or the configuration are wrong, 3 if
            it cannot listen.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            variable = "WSFLEET_" + "_".join(str(part) for part in problem["loc"]).upper()
            print(f"{variable}: {problem['msg']} (it is {problem['input']!r})", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        verifiers(file.load(settings.config).client)
    except file.ConfigError as mistakes:
        print(mistakes, file=sys.stderr)
        raise SystemExit(2) from None
    if settings.tls_certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_certificate, settings.tls_key
            )
        except OSError as error:  # a file is not there or not readable, or the two do not match
            print(f"WSFLEET_TLS_CERTIFICATE, WSFLEET_TLS_KEY: {error}", file=sys.stderr)
            raise SystemExit(2) from None
    if check:
        return
    logs.configure(settings.log_level, settings.name)
    create_server(settings).run()
