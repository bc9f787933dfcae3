import json
import os
from datetime import datetime

import redis
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()

redis_client = redis.Redis(host="redis", port=6379, db=0, decode_responses=True)

active_connections: dict[str, WebSocket] = {}


@app.websocket("/ws")
async def websocket_endpoint(websocket: WebSocket):
    await websocket.accept()
    client_id = f"{websocket.client.host}:{websocket.client.port}"
    active_connections[client_id] = websocket

    try:
        while True:
            data = await websocket.receive_text()
            message = json.loads(data)
            client_id_in_message = message.get("client_id", client_id)
            redis_client.set(f"state:{client_id_in_message}", data)

            await websocket.send_text(
                json.dumps(
                    {
                        "type": "ack",
                        "client_id": client_id_in_message,
                        "hostname": os.uname().nodename,
                        "timestamp": datetime.now().isoformat(),
                        "connections": len(active_connections),
                    }
                )
            )

            for other_id, connection in list(active_connections.items()):
                if other_id != client_id:
                    await connection.send_text(data)
    except WebSocketDisconnect:
        pass
    finally:
        active_connections.pop(client_id, None)


@app.get("/state/{client_id}")
async def state(client_id: str):
    return json.loads(redis_client.get(f"state:{client_id}") or "null")


@app.get("/health")
async def health():
    try:
        redis_connected = redis_client.ping()
    except redis.RedisError:
        redis_connected = False
    return {
        "status": "healthy",
        "hostname": os.uname().nodename,
        "connections": len(active_connections),
        "redis_connected": redis_connected,
    }


if __name__ == "__main__":
    uvicorn.run(app, host="0.0.0.0", port=8000)
