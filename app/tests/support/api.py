"""The server API of a node, and a client of it that shows each line."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from lab.waiting import TIMEOUT
from tests.support.clients import centrifuge
from tests.support.nodes import RunningNode

KEY = "a key"


class Raw:
    """A client of the Centrifuge protocol that shows the lines that it is sent."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._lines: list[str] = []
        self._pushed: list[str] = []

    async def command(self, **request: Any) -> Any:
        """Send a command, and read its reply."""
        await self.socket.send(json.dumps({"id": 1} | request))
        while True:
            line = await self._line()
            if json.loads(line).get("id"):
                return json.loads(line)
            self._pushed.append(line)

    async def line(self, kind: str) -> str:
        """The next push of a kind, as it came; others before it are passed over."""
        while True:
            line = self._pushed.pop(0) if self._pushed else await self._line()
            if kind in json.loads(line).get("push", {}):
                return line

    async def push(self, kind: str) -> Any:
        """Return the content of that push, with its channel."""
        push = json.loads(await self.line(kind))["push"]
        return push[kind] | {"channel": push.get("channel")}

    async def closed(self) -> int | None:
        """The code that it is closed with, whatever comes before."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self._line()
        return self.socket.close_code

    async def _line(self) -> str:
        while not self._lines:
            self._lines = str(await asyncio.wait_for(self.socket.recv(), TIMEOUT)).splitlines()
        line = self._lines.pop(0)
        if line == "{}":
            await self.socket.send("{}")
        return line


@contextlib.asynccontextmanager
async def raw(node: RunningNode, shown: str = "") -> AsyncIterator[Raw]:
    """A connected one, with a token or without."""
    async with centrifuge(node) as socket:
        client = Raw(socket)
        assert "connect" in await client.command(connect={"token": shown} if shown else {})
        yield client


class Api:
    """A caller of the API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def __call__(self, method: str, **request: Any) -> Any:
        """Call a method that must succeed; its result."""
        response = await self.http.post(f"/api/{method}", json=request)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method: str, **request: Any) -> int:
        """Call a method that must not; the code of its error."""
        code: int = (await self.http.post(f"/api/{method}", json=request)).json()["error"]["code"]
        return code
