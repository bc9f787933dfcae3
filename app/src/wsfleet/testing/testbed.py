"""The nodes of a test, and how clients get to them."""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import jwt
from pydantic import SecretStr
from pydantic_core import to_json
from starlette.types import ASGIApp

from wsfleet.application.realtime.realtime import Realtime
from wsfleet.channels.permissions import Channels
from wsfleet.clients.asgi import ASGI
from wsfleet.clients.centrifuge.endpoint import Centrifuge
from wsfleet.cluster.node_state import DRAIN, NodeState
from wsfleet.config import file
from wsfleet.config.schema import Config
from wsfleet.config.settings import Settings
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.messages import ConnectRequest
from wsfleet.protocol.centrifuge.negotiation import PATH
from wsfleet.redis.memory.primary import DATABASES
from wsfleet.testing.client import TestbedClient
from wsfleet.testing.lifespan import running
from wsfleet.testing.transport import MemoryTransport, Peer
from wsfleet.testing.websocket import TestbedWebSocket
from wsfleet.transports.handshake import Request
from wsfleet.transports.websocket import Endpoint

ORIGIN = "http://testbed"
"""The application's own address, for `Testbed.http`."""
TOKEN_LIFETIME = 3600
KEYS = ("hmac_secret_key", "rsa_public_key", "ecdsa_public_key", "jwks_file")
"""Keys of `client.token` that verify tokens."""
READY_TIMEOUT = 5.0
TURN = 0.001
"""Seconds between two looks at a node that starts or drains."""

_numbers = itertools.count(1)


@dataclass
class _RunningNode:
    node: Node
    centrifuge: Endpoint
    websocket: Endpoint | None
    transports: list[MemoryTransport] = field(default_factory=list)


class Testbed:
    """Nodes with an application, for tests of it; an async context manager.

    The nodes are real ones and share a database in memory. Their clients have no sockets: they
    are in the same event loop. `config` is the path of a configuration file; None is the built-in
    configuration, as for `wsfleet serve`. Keywords after it are settings of the nodes: their names
    are those of the variables WSFLEET_* in lower case.

    Raises:
        wsfleet.config.file.ConfigError: the configuration is invalid.
        ValueError: a handler is for a namespace that the configuration does not have.
    """

    __test__ = False  # for pytest

    http: httpx.AsyncClient
    """A client of the application's routes; it keeps cookies."""

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        config: str | Path | None = None,
        nodes: int = 1,
        **settings: Any,
    ) -> None:
        self._app = app
        self._config = _with_secret(file.load(None if config is None else Path(config)))
        self._realtime = app if isinstance(app, Realtime) else None
        if self._realtime is not None:
            namespaces = Channels(self._config.channel).namespaces
            if mistakes := self._realtime.mistakes(namespaces):
                raise ValueError("\n".join(mistakes))
        self._count = nodes
        self._settings: dict[str, Any] = {"drain_delay": 0.0, "drain_rate": 1_000_000} | settings
        self._url = f"memory://testbed{next(_numbers)}"
        self._names = itertools.count(1)
        self._nodes: dict[str, _RunningNode] = {}
        self._clients: list[TestbedClient | TestbedWebSocket] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start the nodes, and then the application."""
        async with contextlib.AsyncExitStack() as stack:
            DATABASES.open(self._url)
            stack.callback(DATABASES.close, self._url)
            stack.push_async_callback(self._stop)
            for _ in range(self._count):
                await self.start_node()
            if self._app is not None:
                await stack.enter_async_context(running(self._app))
                transport = httpx.ASGITransport(self._app)
                self.http = httpx.AsyncClient(transport=transport, base_url=ORIGIN)
                await stack.enter_async_context(self.http)
            stack.push_async_callback(self._drain_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the clients, drain the nodes, and stop the application, then the nodes."""
        await self._stack.aclose()

    async def start_node(self) -> str:
        """Start one more node; return its name."""
        name = f"node{next(self._names)}"
        settings = Settings(node_name=name, redis_url=self._url, **self._settings)
        node = Node(settings, self._config)
        centrifuge = Centrifuge(node)
        if self._realtime is not None:
            self._realtime.attach(node)
            centrifuge.route(self._realtime.router)
        websocket = None if self._app is None else ASGI(node, self._app, "").endpoint
        self._nodes[name] = _RunningNode(node, centrifuge.endpoint, websocket)
        await node.start()
        node.listening.set()
        await _turns(lambda: node.not_ready_reason() is None, f"{name} is ready")
        return name

    async def connect(
        self,
        *,
        node: str = "",
        user: str | None = None,
        token: str = "",
        cookies: Mapping[str, str] | httpx.Cookies | None = None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        name: str = "",
        version: str = "",
    ) -> TestbedClient:
        """Connect a client, to one node or to any that takes clients.

        `user` connects with a token for this user. `token` is a connection token of the test's own.
        `cookies` and `headers` are those of the handshake, `data` is sent with the connect command,
        `name` and `version` are those of the client's program.

        Raises:
            HandshakeRefused: the node refuses the handshake, for instance for its origin.
            Error, Disconnect: the node refuses the client.
        """
        request = ConnectRequest(
            token=self.token(user) if user is not None else token,
            data=b"" if data is None else to_json(data),
            name=name,
            version=version,
        )

        async def open_(peer: Peer) -> MemoryTransport:
            chosen = self._node_for_clients(node)
            handshake = _handshake(PATH, headers, cookies)
            return await self._open(chosen, chosen.centrifuge, handshake, peer)

        client = TestbedClient(open_, request)
        await client.connect()
        self._clients.append(client)
        return client

    async def websocket(
        self,
        path: str,
        *,
        node: str = "",
        cookies: Mapping[str, str] | httpx.Cookies | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> TestbedWebSocket:
        """Open one of the application's own WebSockets, at one node or at any that takes clients.

        A path may have a query.

        Raises:
            HandshakeRefused: the node or the application refuses the handshake.
            ValueError: the testbed has no application.
        """
        chosen = self._node_for_clients(node)
        if chosen.websocket is None:
            raise ValueError("the testbed has no application with WebSockets: Testbed(app)")
        client = TestbedWebSocket(chosen.node.settings.name)
        handshake = _handshake(path, headers, cookies)
        client.attach(await self._open(chosen, chosen.websocket, handshake, client))
        self._clients.append(client)
        return client

    def token(self, user: str, **claims: Any) -> str:
        """Return a connection token for a user, with any other claims.

        Raises:
            ValueError: the configuration has no `client.token.hmac_secret_key`, but other keys.
        """
        secret = self._config.client.token.hmac_secret_key.get_secret_value()
        if not secret:
            raise ValueError("client.token has no hmac_secret_key: give a token of your own")
        claims = {"sub": user, "exp": int(time.time()) + TOKEN_LIFETIME} | claims
        return jwt.encode(claims, secret, algorithm="HS256")

    async def drain(self, node: str = "node1") -> None:
        """Drain a node, as an operator does; return when its clients are told to reconnect."""
        drained = self._nodes[node].node
        drain = drained.drain
        await drained.registry.want(node, DRAIN)
        drained.registry.hurry()
        await _turns(lambda: drain.state is NodeState.DRAINED, f"{node} is drained")

    async def kill_node(self, node: str = "node1") -> None:
        """Kill a node: neither its clients nor the other nodes are notified."""
        killed = self._nodes[node]
        await killed.node.abandon()
        for transport in killed.transports:
            await transport.cut()
        self._detach(killed.node)
        del self._nodes[node]

    def _node_for_clients(self, wanted: str) -> _RunningNode:
        names = sorted(self._nodes, key=lambda name: self._nodes[name].node.drain.refuses)
        return self._nodes[wanted if wanted in self._nodes else names[0]]

    async def _open(
        self, node: _RunningNode, endpoint: Endpoint, handshake: Request, peer: Peer
    ) -> MemoryTransport:
        transport = MemoryTransport(peer)
        await transport.open(endpoint, handshake)
        node.transports.append(transport)
        return transport

    async def _drain_all(self) -> None:
        for client in self._clients:
            await client.close()
        for running_node in self._nodes.values():
            await running_node.node.drained()

    async def _stop(self) -> None:
        for running_node in self._nodes.values():
            await running_node.node.stop()
            self._detach(running_node.node)

    def _detach(self, node: Node) -> None:
        if self._realtime is not None:
            self._realtime.detach(node)


def _with_secret(config: Config) -> Config:
    """Return a configuration that can verify the tokens of `Testbed.token`."""
    token = config.client.token
    if token.model_fields_set.intersection(KEYS):
        return config
    token = token.model_copy(update={"hmac_secret_key": SecretStr(secrets.token_hex(32))})
    client = config.client.model_copy(update={"token": token})
    return config.model_copy(update={"client": client})


def _handshake(
    path: str,
    headers: Mapping[str, str] | None,
    cookies: Mapping[str, str] | httpx.Cookies | None,
) -> Request:
    fields = {"host": "testbed"} | {name.lower(): text for name, text in (headers or {}).items()}
    if cookies:
        fields["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    path, _, query = path.partition("?")
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "server": ("testbed", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
        "headers": raw,
        "state": {},
    }
    return Request("GET", path.encode(), query, raw, scope)


async def _turns(condition: Any, what: str) -> None:
    """Let the event loop turn until a condition holds."""
    async with asyncio.timeout(READY_TIMEOUT):
        while not condition():
            await asyncio.sleep(TURN)
