"""An application with a `Realtime`, for the tests of what serves it."""

import asyncio
import threading
from typing import Any

from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.tokens import SECRET
from wsfleet import (
    Accept,
    Allow,
    Connect,
    Disconnect,
    Disconnected,
    Error,
    Publish,
    Published,
    Realtime,
    Rpc,
    Subscribe,
)

CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  allowed_origins: ["*"]
channel:
  namespaces:
    - {{name: room, history_size: 100, history_ttl: 300s, force_recovery: true, presence: true}}
    - {{name: short, history_size: 2, history_ttl: 300s}}
    - {{name: live}}
"""

go_on = asyncio.Event()
"""Lets those go on that wait for it; the test makes a new one."""
may_drain = asyncio.Event()
"""Lets `on_drain` end."""
release = threading.Event()
"""Lets a blocked handler go on."""
drains: list[str] = []
disconnected: list[Disconnected] = []


class Message(BaseModel):
    """Data of a publication."""

    text: str = Field(min_length=1, max_length=50)


async def feed(websocket: WebSocket) -> None:
    """Hear the channels of the path until the client goes; a message ends it."""
    await websocket.accept()
    async with realtime.feed(websocket, *websocket.path_params["channels"].split(",")):
        await websocket.send_text("ready")
        await websocket.receive_text()
    await websocket.send_text("over")
    await websocket.receive()


async def unaccepted(websocket: WebSocket) -> None:
    """Feed a WebSocket that is not accepted."""
    async with realtime.feed(websocket, "room:1"):
        pass


async def hold(websocket: WebSocket) -> None:
    """Hold the WebSocket until the test lets go, then receive to the end."""
    await websocket.accept()
    async with realtime.hold(websocket):
        await websocket.send_text("held")
        await go_on.wait()
    await websocket.send_text("let go")
    await websocket.receive()


async def echo(websocket: WebSocket) -> None:
    """Send back what comes."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def publish(request: Request) -> JSONResponse:
    """Publish from a route."""
    position = await realtime.publish(request.path_params["channel"], await request.json())
    return JSONResponse({"offset": position.offset})


app = Starlette(
    routes=[
        WebSocketRoute("/feed/{channels}", feed),
        WebSocketRoute("/unaccepted", unaccepted),
        WebSocketRoute("/hold", hold),
        WebSocketRoute("/echo", echo),
        Route("/publish/{channel}", publish, methods=["POST"]),
    ]
)
realtime = Realtime(app, timeout=2.0, threads=2)


@realtime.on_connect
async def enter(event: Connect[dict[str, Any] | None]) -> Accept | None:
    """Let in who has a name: in the data, or in a cookie."""
    name = (event.data or {}).get("name") or event.cookies.get("name")
    if name is None:
        return None
    if name == "mallory":
        raise Disconnect(4501, "not you")
    event.client.state["greeting"] = f"hello {name}"
    return Accept(name, info={"name": name}, data={"welcome": name})


@realtime.on_subscribe("room")
async def join(event: Subscribe) -> Allow:
    """Let clients into all rooms but one."""
    if event.name == "secret":
        raise Error(403, "not your room")
    return Allow(info={"room": event.name}, data={"topic": event.name})


@realtime.on_publish("room")
async def say(event: Publish[Message]) -> Published[Message]:
    """Publish the text in upper case, with a tag."""
    return Published(Message(text=event.data.text.upper()), tags={"by": event.client.user})


@realtime.on_rpc("greeting")
async def greeting(event: Rpc) -> str:
    """Return what the connection's state has."""
    return str(event.client.state["greeting"])


@realtime.on_rpc("block")
def block(event: Rpc[str]) -> str:
    """Wait in a thread, and publish from it."""
    release.wait()
    realtime.from_thread(realtime.publish("room:block", {"text": event.data}))
    return event.data


@realtime.on_rpc("broken")
def broken(event: Rpc) -> None:
    """Raise an exception."""
    raise KeyError("oops")


@realtime.on_disconnect
async def left(event: Disconnected) -> None:
    """Write down who has left."""
    disconnected.append(event)


@realtime.on_drain
async def drain() -> None:
    """Write down that the process drains, and wait for the test."""
    drains.append("begun")
    await may_drain.wait()
    drains.append("ended")
