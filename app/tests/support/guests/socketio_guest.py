"""python-socketio: long polling, and the upgrade to a WebSocket."""

from typing import Any

import socketio

server = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(server)


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Enter the room."""
    await server.enter_room(sid, "all")


@server.event
async def say(sid: str, data: str) -> str:
    """Send to all, and acknowledge."""
    await server.emit("said", data, room="all")
    return f"ack {data}"
