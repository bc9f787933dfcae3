"""uvicorn, with `websockets.broadcast` directly to the connections, without ASGI."""

from collections import defaultdict
from typing import Any

from launch import serve
from websockets.legacy.protocol import broadcast

rooms: dict[str, set[Any]] = defaultdict(set)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one client: send each of its messages to all clients of the room."""
    await receive()
    await send({"type": "websocket.accept"})
    clients = rooms[scope["path"]]
    protocol = receive.__self__
    clients.add(protocol)
    try:
        while (event := await receive())["type"] == "websocket.receive":
            broadcast(clients, event["text"])
    finally:
        clients.discard(protocol)


serve(app, ws="websockets", lifespan="off", proxy_headers=False)
