"""fastapi-websocket-pubsub: its endpoint below a FastAPI application."""

from fastapi import FastAPI
from fastapi_websocket_pubsub import PubSubEndpoint

app = FastAPI()
endpoint = PubSubEndpoint()
endpoint.register_route(app, path="/pubsub")


@app.get("/publish/{topic}/{data}")
async def publish(topic: str, data: str) -> dict[str, str]:
    """Publish from the server's side."""
    await endpoint.publish([topic], data)
    return {}
