"""An ASGI application as in many tutorials: a loop over the clients of a room, and an echo."""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()
rooms: dict[str, set[WebSocket]] = defaultdict(set)


@app.websocket("/ws/{room}")
async def broadcast(websocket: WebSocket, room: str) -> None:
    """Send each message to all other clients of the room, one by one."""
    await websocket.accept()
    clients = rooms[room]
    clients.add(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            for client in list(clients):
                if client is not websocket:
                    await client.send_text(text)
    except (WebSocketDisconnect, RuntimeError):
        pass
    finally:
        clients.discard(websocket)


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    """Send each message back."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass
