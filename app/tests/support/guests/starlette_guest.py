"""Starlette: class-based endpoints."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

rooms: dict[str, set[WebSocket]] = defaultdict(set)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Prepare the state."""
    yield {"word": "ready"}


async def hello(request: Request) -> JSONResponse:
    """Greet."""
    return JSONResponse({"hello": request.state.word})


async def echo(websocket: WebSocket) -> None:
    """Send back text and bytes."""
    offered = websocket.scope["subprotocols"]
    await websocket.accept("chat.v1" if "chat.v1" in offered else None)
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        await websocket.send({**message, "type": "websocket.send"})


class Room(WebSocketEndpoint):
    """Send to all."""

    encoding = "text"

    async def on_connect(self, websocket: WebSocket) -> None:
        """Enter."""
        await websocket.accept()
        rooms[websocket.path_params["name"]].add(websocket)

    async def on_receive(self, websocket: WebSocket, data: str) -> None:
        """Speak."""
        for member in list(rooms[websocket.path_params["name"]]):
            await member.send_text(data)

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Leave."""
        rooms[websocket.path_params["name"]].discard(websocket)


async def boom(websocket: WebSocket) -> None:
    """Raise an exception."""
    await websocket.accept()
    raise ValueError("boom")


async def members(websocket: WebSocket) -> None:
    """Say who it is, or refuse with a response."""
    if (session := websocket.cookies.get("session")) is None:
        await websocket.send_denial_response(PlainTextResponse("no session", 401))
        return
    await websocket.accept()
    await websocket.send_text(session)
    await websocket.close()


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/hello", hello),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/room/{name}", Room),
        WebSocketRoute("/boom", boom),
        WebSocketRoute("/members", members),
    ],
)
