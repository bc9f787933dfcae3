"""python-socketio with its manager for Redis."""

import socketio
from launch import REDIS_PORT, serve

server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(f"redis://127.0.0.1:{REDIS_PORT}/0"),
    ping_interval=300,
)


@server.event
async def join(sid: str, room: str) -> str:
    """Join a room."""
    await server.enter_room(sid, room)
    return "joined"


@server.event
async def publish(sid: str, room: str, text: str) -> str:
    """Send a text to a room; the answer means that Redis has it."""
    await server.emit("said", text, room=room)
    return "published"


@server.event
async def call(sid: str, text: str) -> str:
    """Answer with the text."""
    return text


serve(socketio.ASGIApp(server))
