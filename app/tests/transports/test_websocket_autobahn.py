"""The Autobahn suite's cases against the node's WebSockets, run by kosoku.

Left out are limits and timings (9.*), and compression (12.*, 13.*): kosoku 0.1.0 takes a text that
comes back uncompressed for an error of its own. `test_deflate.py` has the latter.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import uvicorn
from kosoku import run_fuzzingclient

from lab.ports import free_port
from tests.support.nodes import StartNode
from wsfleet.transports.frames import BINARY, TEXT, frame
from wsfleet.transports.handshake import Request
from wsfleet.transports.http import HTTP, Routing
from wsfleet.transports.websocket import WebSocket


class Echo:
    """A handler that sends back each message."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def begin(self) -> None:
        """Do nothing."""

    async def receive(self, message: str | bytes) -> None:
        """Send it back."""
        text = isinstance(message, str)
        payload = message.encode() if isinstance(message, str) else message
        if self._websocket.writer is not None:
            self._websocket.writer.write(frame(TEXT if text else BINARY, payload))

    def take_pong(self, message: str | bytes) -> bool:
        """Return False."""
        return False

    def pong_withheld(self) -> None:
        """Do nothing."""

    def slow(self) -> None:
        """Do nothing."""

    def ended(self, code: int, reason: str) -> None:
        """Do nothing."""

    async def closed(self) -> None:
        """Do nothing."""


async def echo(websocket: WebSocket, _: Request) -> None:
    """Accept every client."""
    websocket.accept()
    await websocket.attend(Echo(websocket))


ROUTING = Routing(
    endpoint={"/": echo}.get,
    no_endpoint="",
    on_refused=lambda status: None,
    body_limit=lambda request: 0,
    body_timeout=10.0,
)


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    """Be asked for nothing."""


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """The URL of a server that speaks with the node's classes."""
    port = free_port()
    config = uvicorn.Config(
        no_app,
        port=port,
        http=cast(Any, partial(HTTP, routing=ROUTING)),
        ws=WebSocket,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"ws://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def application(start_node: StartNode) -> AsyncIterator[str]:
    """The URL of an application's route."""
    node = await start_node(
        app="tests.support.guest:app", max_message_size=16 * 2**20, message_rate=0, byte_rate=0
    )
    yield node.client_url.replace("http", "ws") + "/echo"


@pytest.mark.parametrize("served_by", ["transport", "application"])
async def test_each_case_is_passed(start_node: StartNode, served_by: str) -> None:
    """None is failed, nor passed as one that is not strict, or not implemented."""
    server = echo_server() if served_by == "transport" else application(start_node)
    async with server as url:
        results = await run_fuzzingclient(url, [f"{group}.*" for group in (*range(1, 8), 10)])
    assert results
    verdicts = {case.case_id: (case.behavior.value, case.behavior_close.value) for case in results}
    good = [("OK", "OK"), ("INFORMATIONAL", "INFORMATIONAL")]
    assert {case: verdict for case, verdict in verdicts.items() if verdict not in good} == {}
