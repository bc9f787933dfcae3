"""Django Channels with channels-redis and its pub/sub layer, the faster of its two layers."""

from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path
from launch import REDIS_PORT, serve

settings.configure(
    SECRET_KEY="bench",  # noqa: S106 - it signs nothing
    ALLOWED_HOSTS=["127.0.0.1"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [("127.0.0.1", REDIS_PORT)], "capacity": 10_000},
        }
    },
)
django.setup()


class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A client in the group of its room."""

    async def connect(self) -> None:
        """Join the group."""
        self.room = self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave the group."""
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
        """Send the text to the group."""
        await self.channel_layer.group_send(self.room, {"type": "deliver", "text": text_data})

    async def deliver(self, event: dict[str, Any]) -> None:
        """Send the text of the event to the client."""
        await self.send(text_data=event["text"])


serve(
    ProtocolTypeRouter(
        {
            "http": get_asgi_application(),
            "websocket": URLRouter([path("ws/<room>", Consumer.as_asgi())]),
        }
    )
)
