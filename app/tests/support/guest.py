"""A Starlette application for the tests of what serves it: one route a behaviour."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

lifespan_events: list[str] = []
ends: list[tuple[int, str]] = []
"""Codes and reasons of `websocket.disconnect`."""
handlers: set[WebSocket] = set()
"""The WebSocket that `hold` holds."""
go_on = asyncio.Event()
"""Lets those go on that wait for it; the test makes a new one."""


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Write down when it starts and stops; the state has a name and a list."""
    lifespan_events.append("startup")
    yield {"name": "guest", "shared": []}
    lifespan_events.append("shutdown")


async def where(request: Request) -> JSONResponse:
    """Say what the application sees of a request."""
    return JSONResponse(
        {
            "path": request.url.path,
            "state": request.state.name,
            "client": request.client.host if request.client else "",
            "scheme": request.url.scheme,
            "body": len(await request.body()),
        }
    )


async def boom(_: Request) -> JSONResponse:
    """Raise an exception."""
    raise ValueError("boom over HTTP")


async def block(request: Request) -> JSONResponse:
    """Block the event loop."""
    time.sleep(request.path_params["seconds"])  # noqa: ASYNC251 - that is what it is for
    return JSONResponse({})


async def block_on(request: Request) -> JSONResponse:
    """Block the event loop until something is written to a named pipe."""
    with open(request.query_params["pipe"]) as pipe:  # noqa: ASYNC230 - that is what it is for
        return JSONResponse(pipe.read())


async def echo(websocket: WebSocket) -> None:
    """Send back what comes, until the client goes."""
    await websocket.accept()
    while (message := await websocket.receive())["type"] == "websocket.receive":
        await websocket.send({**message, "type": "websocket.send"})
    ends.append((message["code"], message["reason"]))


async def scope(websocket: WebSocket) -> None:
    """Send the scope."""
    await websocket.accept()
    found = websocket.scope
    fields = ("type", "asgi", "http_version", "scheme", "path", "root_path", "client", "server")
    text = {name: str(found[name]) for name in ("raw_path", "query_string")}
    await websocket.send_json(
        {name: found[name] for name in fields}
        | text
        | {"subprotocols": found["subprotocols"], "state": found["state"]["name"]}
        | {"headers": [[name.decode(), value.decode()] for name, value in found["headers"]]}
        | {"extensions": list(found["extensions"])}
    )


async def choose(websocket: WebSocket) -> None:
    """Accept with the client's last subprotocol and a field of its own."""
    await websocket.accept(websocket.scope["subprotocols"][-1], [(b"X-App", b"yes")])


async def reject(websocket: WebSocket) -> None:
    """Close instead of accepting."""
    await websocket.close(4000)


async def teapot(websocket: WebSocket) -> None:
    """Answer with a response of its own."""
    await websocket.send_denial_response(
        PlainTextResponse("short and stout", 418, headers={"X-Spout": "here"})
    )


async def bye(websocket: WebSocket) -> None:
    """Close with a code and a reason, and see its own close."""
    await websocket.accept()
    await websocket.close(4001, "bye")
    message = await websocket.receive()
    ends.append((message["code"], message["reason"]))


async def raise_before(_: WebSocket) -> None:
    """Raise an exception during the handshake."""
    raise ValueError("boom before accept")


async def raise_after(websocket: WebSocket) -> None:
    """Raise an exception in an open WebSocket."""
    await websocket.accept()
    raise ValueError("boom after accept")


async def no_answer(_: WebSocket) -> None:
    """Return, and leave the handshake without an answer."""


async def no_close(websocket: WebSocket) -> None:
    """Return, and leave the WebSocket open."""
    await websocket.accept()


async def uncaught(websocket: WebSocket) -> None:
    """Let the disconnect propagate, as many handlers do."""
    await websocket.accept()
    while True:
        await websocket.receive_text()


async def hold(websocket: WebSocket) -> None:
    """Accept, and leave the rest to the test; then receive to the end."""
    await websocket.accept()
    handlers.add(websocket)
    await go_on.wait()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as end:
        ends.append((end.code, end.reason))
    finally:
        handlers.discard(websocket)


async def late(websocket: WebSocket) -> None:
    """Accept when the test says so, or hear that the client is gone."""
    await websocket.receive()
    gone = asyncio.create_task(websocket.receive())
    going_on = asyncio.create_task(go_on.wait())
    await asyncio.wait([gone, going_on], return_when=asyncio.FIRST_COMPLETED)
    if gone.done():
        ends.append((gone.result()["code"], gone.result()["reason"]))
        going_on.cancel()
        return
    gone.cancel()
    try:
        await websocket.accept()
    except OSError:
        ends.append((0, "cannot accept"))


room: set[WebSocket] = set()


async def chat(websocket: WebSocket) -> None:
    """Send each message to all in a loop, as every tutorial does."""
    await websocket.accept()
    room.add(websocket)
    try:
        async for text in websocket.iter_text():
            for member in list(room):
                try:
                    await member.send_text(text)
                except WebSocketDisconnect:
                    room.discard(member)
    finally:
        room.discard(websocket)


async def stream(websocket: WebSocket) -> None:
    """Send as many megabytes as asked for, in a loop that waits for nothing else."""
    await websocket.accept()
    for _ in range(16 * int(await websocket.receive_text())):
        await websocket.send_bytes(bytes(65_536))


app = Starlette(
    lifespan=lifespan,
    routes=[
        *(Route(path, where, methods=["GET", "POST"]) for path in ("/health", "/ready", "/api/x")),
        Route("/boom", boom),
        Route("/block/{seconds:float}", block),
        Route("/block_on", block_on),
        WebSocketRoute("/where/{name:path}", scope),
        *(
            WebSocketRoute(f"/{endpoint.__name__}", endpoint)
            for endpoint in (
                *(echo, choose, reject, teapot, bye, raise_before, raise_after, no_answer),
                *(no_close, uncaught, hold, late, chat, stream),
            )
        ),
        WebSocketRoute("/ws", echo),
    ],
)
