"""A server as in many tutorials: FastAPI, a loop over all clients, blocking Redis calls."""

import json
import socket
import time
from collections import defaultdict

import redis
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from launch import REDIS_PORT, serve

app = FastAPI()
store = redis.Redis(port=REDIS_PORT)
rooms: dict[str, set[WebSocket]] = defaultdict(set)
hostname = socket.gethostname()


@app.websocket("/ws/{room}")
async def endpoint(websocket: WebSocket, room: str) -> None:
    """Store and acknowledge each message, then send it to the other clients one by one."""
    await websocket.accept()
    clients = rooms[room]
    clients.add(websocket)
    client_id = str(id(websocket))
    store.set(f"connection:{client_id}", hostname)
    try:
        while True:
            text = await websocket.receive_text()
            store.set(f"state:{client_id}", text)
            await websocket.send_text(
                json.dumps({"type": "ack", "hostname": hostname, "timestamp": time.time()})
            )
            for client in list(clients):
                if client is not websocket:
                    await client.send_text(text)
    except (WebSocketDisconnect, RuntimeError):
        clients.discard(websocket)


serve(app)
