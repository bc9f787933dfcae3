"""Types of the fixture `serve_websocket`."""

from collections.abc import Awaitable, Callable

from websockets.asyncio.server import ServerConnection

Handler = Callable[[ServerConnection], Awaitable[None]]


Serve = Callable[..., Awaitable[str]]
