"""Django with Channels: consumers and groups; Django knows no lifespan."""

from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path, re_path

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="tests",  # noqa: S106 - nothing is signed
        CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    )
    django.setup()


def hello(_: HttpRequest) -> JsonResponse:
    """Greet."""
    return JsonResponse({"hello": "ready"})


urlpatterns = [path("hello", hello)]


class Echo(AsyncWebsocketConsumer):
    """Send back text and bytes."""

    async def connect(self) -> None:
        """Accept."""
        await self.accept("chat.v1" if "chat.v1" in self.scope["subprotocols"] else None)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Send it back."""
        await self.send(text_data=text_data, bytes_data=bytes_data)


class Room(AsyncWebsocketConsumer):
    """Send to all."""

    async def connect(self) -> None:
        """Enter."""
        self.name = self.scope["url_route"]["kwargs"]["name"]
        await self.channel_layer.group_add(self.name, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave."""
        await self.channel_layer.group_discard(self.name, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Speak."""
        await self.channel_layer.group_send(self.name, {"type": "said", "text": text_data})

    async def said(self, event: dict[str, Any]) -> None:
        """Hear."""
        await self.send(text_data=event["text"])


class Boom(AsyncWebsocketConsumer):
    """Raise an exception."""

    async def connect(self) -> None:
        """Accept, and fail."""
        await self.accept()
        raise ValueError("boom")


class Members(AsyncWebsocketConsumer):
    """Say who it is, or refuse."""

    async def connect(self) -> None:
        """Look for the cookie."""
        cookies = dict(self.scope["headers"]).get(b"cookie", b"").decode()
        if "session=" not in cookies:
            await self.close()
            return
        await self.accept()
        await self.send(text_data=cookies.partition("session=")[2])
        await self.close()


app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter(
            [
                path("echo", Echo.as_asgi()),
                re_path(r"^room/(?P<name>\w+)$", Room.as_asgi()),
                path("boom", Boom.as_asgi()),
                path("members", Members.as_asgi()),
            ]
        ),
    }
)
