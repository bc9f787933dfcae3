"""Litestar: handlers with dependencies by annotation, and its own exceptions."""

from collections import defaultdict

from litestar import Litestar, WebSocket, get, websocket
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException, WebSocketDisconnect
from litestar.params import FromPath

rooms: dict[str, set[WebSocket]] = defaultdict(set)


def prepare(app: Litestar) -> None:
    """Prepare the state."""
    app.state.word = "ready"


@get("/hello", sync_to_thread=False)
def hello(state: State) -> dict[str, str]:
    """Greet."""
    return {"hello": state.word}


@websocket("/echo")
async def echo(socket: WebSocket) -> None:
    """Send back text and bytes."""
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocols="chat.v1" if "chat.v1" in offered else None)
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        await socket.send({**message, "type": "websocket.send"})


@websocket("/room/{name:str}")
async def room(socket: WebSocket, name: FromPath[str]) -> None:
    """Send to all."""
    await socket.accept()
    rooms[name].add(socket)
    try:
        while True:
            text = await socket.receive_text()
            for member in list(rooms[name]):
                await member.send_text(text)
    except WebSocketDisconnect:
        pass
    finally:
        rooms[name].discard(socket)


@websocket("/boom")
async def boom(socket: WebSocket) -> None:
    """Raise an exception."""
    await socket.accept()
    raise ValueError("boom")


@websocket("/members")
async def members(socket: WebSocket) -> None:
    """Say who it is, or refuse."""
    if (session := socket.cookies.get("session")) is None:
        raise NotAuthorizedException("no session")
    await socket.accept()
    await socket.send_text(session)
    await socket.close()


app = Litestar([hello, echo, room, boom, members], on_startup=[prepare])
