"""The servers to measure: how to start each, and the messages by which its clients subscribe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = Path(sys.executable).parent
BUILT = HERE / ".built"
PYTHON = str(HERE / ".venv/bin/python")


@dataclass(frozen=True)
class ClientScript:
    """A client's path and greetings: texts, each with the reply to await after it (client.c)."""

    path: str = "/ws/%r"
    greetings: tuple[tuple[str, str], ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The arguments for the command line of client.c."""
        return [self.path, *(text for greeting in self.greetings for text in greeting)]


@dataclass(frozen=True)
class Peer:
    """A server to measure; {port}, {redis} … in its command and configuration are replaced.

    `ack` is a part of the answer to a publish, if that answer means that Redis has the message.
    `pipelines`: it is faster if one publisher sends all messages in flight. `closes`: it
    disconnects a client that does not read. `echo` is the path of a route that sends messages back.
    `calls` are messages that call a handler, which answers with their text: an `async` one, or one
    in a `thread`. `only` are the modes in which it is measured; if empty, all that suit it.
    """

    name: str
    title: str
    command: tuple[str, ...]
    subscriber: ClientScript = ClientScript()
    publisher: ClientScript | None = None
    publish: str = "%m"
    ack: str = ""
    subprotocol: str = ""
    rooms: bool = True
    pipelines: bool = False
    closes: bool = False
    echo: str = ""
    calls: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    config: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def _python(file: str) -> tuple[str, ...]:
    return (PYTHON, str(HERE / "peers" / file), "{port}", "{redis}")


def _node(file: str, *arguments: str) -> tuple[str, ...]:
    return ("node", str(HERE / "peers" / file), "{port}", "{redis}", *arguments)


def _asgi(name: str, title: str, *command: str, **environment: str) -> Peer:
    """Return a server of the application in peers/asgi_app.py.

    Its loop ends its own publisher once it sends to a client that the server has closed, so it is
    not measured beside clients that do not read.
    """
    return Peer(name, title, command, echo="/echo", environment=environment)


_ASGI_APP = ("asgi_app:app", str(HERE / "peers"))
_UVICORN = (
    *(PYTHON, "-m", "uvicorn", _ASGI_APP[0], "--app-dir", _ASGI_APP[1]),
    *("--port", "{port}", "--log-level", "warning", "--backlog", "4096", "--ws"),
)

_SERVE = (str(PROGRAMS / "wsfleet"), "serve")
# All other settings are those of production. Limits are on, but above the number of connections
# and any publisher's rate. No balancer checks the node, so it stops without a delay.
_SETTINGS = {
    "WSFLEET_PORT": "{port}",
    "WSFLEET_NODE_NAME": "node-{port}",
    "WSFLEET_REDIS_URL": "redis://127.0.0.1:{redis}/0",
    "WSFLEET_MAX_CONNECTIONS": "20000",
    "WSFLEET_MESSAGE_RATE": "1000000",
    "WSFLEET_BYTE_RATE": "1000000000",
    "WSFLEET_DRAIN_DELAY": "0",
}
# Pings are frames of RFC 6455, which client.c answers.
_CENTRIFUGE_PATH = "/connection/websocket?cf_ws_frame_ping_pong=true"
_CENTRIFUGE = ('{"id":1,"connect":{}}', '"connect":')
_CENTRIFUGE_SUBSCRIBER = ClientScript(
    _CENTRIFUGE_PATH, (_CENTRIFUGE, ('{"id":2,"subscribe":{"channel":"%r"}}', '"subscribe":'))
)
_CENTRIFUGE_PUBLISHER = ClientScript(_CENTRIFUGE_PATH, (_CENTRIFUGE,))
_CENTRIFUGE_PUBLISH = '{"id":%n,"publish":{"channel":"%r","data":"%m"}}'
_NATS = 'CONNECT {"verbose":false,"pedantic":false,"protocol":1}\r\n'
_SOCKETIO = ClientScript(
    "/socket.io/?EIO=4&transport=websocket", (("40", "40{"), ('420["join","%r"]', "430["))
)
_SOCKETIO_PUBLISHER = ClientScript(_SOCKETIO.path, _SOCKETIO.greetings[:1])
_SOCKETIO_PUBLISH = '42%n["publish","%r","%m"]'
_SOCKETIO_CALLS = {"async": '42%n["call","%m"]'}
_HANDLERS = ("handlers:realtime", "--app-dir", str(HERE / "peers"))
_APP = shlex.join((_SERVE[0], "app", *_HANDLERS))


def _handlers(
    name: str, title: str, command: tuple[str, ...], config: str = "", **environment: str
) -> Peer:
    """Return a node that asks the handlers in peers/handlers.py."""
    methods = {"async": "echo", "thread": "echo.thread"}
    return Peer(
        name,
        title,
        command,
        _CENTRIFUGE_SUBSCRIBER,
        _CENTRIFUGE_PUBLISHER,
        _CENTRIFUGE_PUBLISH,
        '"publish":',
        calls={
            kind: f'{{"id":%n,"rpc":{{"method":"{method}","data":"%m"}}}}'
            for kind, method in methods.items()
        },
        only=("publish", "rpc", "rpc-thread"),
        config=config,
        environment=_SETTINGS | environment,
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "wsfleet",
            "wsfleet, `/ws`",
            _SERVE,
            ClientScript("/ws"),
            rooms=False,
            closes=True,
            environment=_SETTINGS,
        ),
        Peer(
            "wsfleet-centrifuge",
            "wsfleet, `/connection/websocket`",
            _SERVE,
            _CENTRIFUGE_SUBSCRIBER,
            _CENTRIFUGE_PUBLISHER,
            _CENTRIFUGE_PUBLISH,
            '"publish":',
            closes=True,
            environment=_SETTINGS,
        ),
        _handlers(
            "handlers",
            "wsfleet, handlers in its process",
            (*_SERVE, *_HANDLERS),
            WSFLEET_INTERNAL_PORT="{other_port}",
        ),
        # Both processes count: the handlers' is a child of the node's.
        _handlers(
            "handlers-http",
            "wsfleet, handlers asked by HTTP",
            ("sh", "-c", f"{_APP} --listen 127.0.0.1:{{other_port}} & exec {_SERVE[0]} serve"),
            config="handlers_http.yml",
            WSFLEET_CONFIG="{config}",
        ),
        _asgi(
            "application",
            "wsfleet, a FastAPI application",
            *(*_SERVE, _ASGI_APP[0], "--app-dir", _ASGI_APP[1]),
            **_SETTINGS,
            WSFLEET_INTERNAL_PORT="{other_port}",
        ),
        _asgi("uvicorn", "uvicorn, `websockets`, the same application", *_UVICORN, "websockets"),
        _asgi("uvicorn-wsproto", "uvicorn, `wsproto`, the same", *_UVICORN, "wsproto"),
        _asgi(
            "granian",
            "granian, the same",
            *(PYTHON, "-m", "granian", "--interface", "asgi", "--ws", "--no-access-log"),
            *("--port", "{port}", "--working-dir", _ASGI_APP[1], _ASGI_APP[0]),
        ),
        _asgi(
            "hypercorn",
            "hypercorn, the same",
            *(PYTHON, "-m", "hypercorn", "--worker-class", "uvloop", "--backlog", "4096"),
            *("--bind", "127.0.0.1:{port}", _ASGI_APP[0]),
            PYTHONPATH=_ASGI_APP[1],
        ),
        Peer("guide", "FastAPI, a loop, blocking Redis", _python("guide.py"), ack='"ack"'),
        Peer("broadcast", "uvicorn, `websockets.broadcast`", _python("broadcast.py")),
        Peer(
            "python-socketio",
            "python-socketio, Redis",
            _python("python_socketio.py"),
            _SOCKETIO,
            _SOCKETIO_PUBLISHER,
            _SOCKETIO_PUBLISH,
            '["published"]',
            calls=_SOCKETIO_CALLS,
        ),
        Peer("channels", "Django Channels, Redis", _python("django_channels.py")),
        Peer(
            "socket.io",
            "Socket.IO (Node), Redis",
            _node("socketio.js"),
            _SOCKETIO,
            _SOCKETIO_PUBLISHER,
            _SOCKETIO_PUBLISH,
            '["published"]',
            calls=_SOCKETIO_CALLS,
        ),
        Peer("ws", "`ws` (Node)", _node("ws.js")),
        Peer("ws-framed", "`ws` (Node), framed once", _node("ws.js", "framed")),
        Peer(
            "nchan",
            "nchan (nginx)",
            ("nginx", "-c", "{config}"),
            ClientScript(),
            ClientScript("/publish/%r"),
            config="nginx.conf",
            pipelines=True,
        ),
        Peer(
            "nats",
            "nats-server, WebSocket",
            ("nats-server", "--config", "{config}"),
            ClientScript("/", ((_NATS + "SUB %r 1\r\nPING\r\n", "PONG"),)),
            ClientScript("/", ((_NATS + "PING\r\n", "PONG"),)),
            "PUB %r 120\r\n%m\r\n",
            config="nats.conf",
            pipelines=True,
        ),
        Peer(
            "socketify", "socketify (uWebSockets)", _python("socketify_topics.py"), pipelines=True
        ),
        Peer("picows", "picows, framed once", _python("picows_frames.py")),
        Peer("limit", "C, epoll", (str(BUILT / "limit"), "{port}")),
        Peer(
            "limit-joined",
            "C, epoll, joined",
            (str(BUILT / "limit"), "{port}", "joined"),
            pipelines=True,
        ),
    )
}
