"""WebSocket clients of both protocols, by messages."""

import asyncio
import contextlib
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from lab.waiting import TIMEOUT
from tests.support.nodes import RunningNode


async def silent(client: ClientConnection, seconds: float = 0.3) -> bool:
    """Whether nothing arrives for a while."""
    try:
        await asyncio.wait_for(client.recv(), seconds)
    except TimeoutError:
        return True
    return False


async def closed(client: ClientConnection) -> tuple[int, str]:
    """The code and the reason that the server closes with."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(TIMEOUT):
            while True:
                await client.recv()
    assert client.close_code is not None
    return client.close_code, client.close_reason or ""


async def command(client: ClientConnection, **request: Any) -> dict[str, Any]:
    """Send a command of the Centrifuge protocol, and read its reply."""
    await client.send(json.dumps({"id": 1} | request))
    while True:
        reply: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT))
        if reply.get("id"):
            return reply


def centrifuge(node: RunningNode, **options: Any) -> connect:
    """Open a WebSocket to the Centrifuge endpoint."""
    return connect(f"{node.url.replace('http', 'ws')}/connection/websocket", proxy=None, **options)


async def close_code(client: ClientConnection) -> int | None:
    """Read until the server closes."""
    try:
        async with asyncio.timeout(TIMEOUT):
            while True:
                await client.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


async def exchange(client: ClientConnection, message: Any) -> dict[str, Any]:
    """Send one message and read one answer."""
    await client.send(message if isinstance(message, str | bytes) else json.dumps(message))
    answer: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT))
    return answer
