"""FastAPI: dependencies, a router, lifespan."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi import WebSocketException as Refused

rooms: dict[str, set[WebSocket]] = defaultdict(set)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Prepare the state."""
    yield {"word": "ready"}


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello(request: Request) -> dict[str, str]:
    """Greet."""
    return {"hello": request.state.word}


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    """Send back text and bytes."""
    offered = websocket.scope["subprotocols"]
    await websocket.accept("chat.v1" if "chat.v1" in offered else None)
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])


@app.websocket("/room/{name}")
async def room(websocket: WebSocket, name: str) -> None:
    """Send to all."""
    await websocket.accept()
    rooms[name].add(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            for member in list(rooms[name]):
                await member.send_text(text)
    except WebSocketDisconnect:
        pass
    finally:
        rooms[name].discard(websocket)


@app.websocket("/boom")
async def boom(websocket: WebSocket) -> None:
    """Raise an exception."""
    await websocket.accept()
    raise ValueError("boom")


async def member(session: Annotated[str | None, Cookie()] = None) -> str:
    """Let in who has a session."""
    if session is None:
        raise Refused(4401, "no session")
    return session


@app.websocket("/members")
async def members(websocket: WebSocket, session: Annotated[str, Depends(member)]) -> None:
    """Say who it is."""
    await websocket.accept()
    await websocket.send_text(session)
    await websocket.close()
