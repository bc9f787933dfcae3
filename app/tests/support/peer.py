"""A raw client of the Centrifuge protocol: shows each reply and push, and the close code."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from lab.waiting import settled
from tests.support.nodes import RunningNode
from wsfleet.protocol.centrifuge.codec import Codec
from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.messages import (
    Command,
    ConnectRequest,
    Publication,
    Reply,
    Request,
    SubscribeRequest,
)
from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec

JSON, PROTOBUF = JSONCodec(), ProtobufCodec()


class Peer:
    """One raw connection; a context manager that is connected inside."""

    def __init__(self, node: RunningNode, codec: Codec = JSON, token: str = "") -> None:
        self._url = node.client_url.replace("http", "ws") + "/connection/websocket"
        self._codec = codec
        self._token = token
        self._number = 0
        self._reading: asyncio.Task[None] | None = None
        self.socket: ClientConnection | None = None
        self.replies: list[Reply] = []
        self.close_code: int | None = None

    async def __aenter__(self) -> Self:
        """Open the WebSocket and connect."""
        await self.open()
        await self.ask(ConnectRequest(token=self._token))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the WebSocket."""
        assert self.socket is not None
        assert self._reading is not None
        await self.socket.close()
        await self._reading

    async def open(self) -> None:
        """Open the WebSocket, no more."""
        self.socket = await connect(
            self._url,
            subprotocols=[Subprotocol(self._codec.subprotocol)],
            proxy=None,
            ping_interval=None,
        )
        self._reading = asyncio.create_task(self._read(self.socket))

    async def send(self, *requests: Request) -> int:
        """Send commands, each in a frame of its own; returns the number of the last."""
        assert self.socket is not None
        for request in requests:
            self._number += 1
            await self.socket.send(self._codec.encode_commands([Command(self._number, request)]))
        return self._number

    async def ask(self, request: Request) -> Reply:
        """Send a command and return its reply, or an empty one if the connection ends before."""
        number = await self.send(request)
        await self.until(lambda: self.answered(number) or self.close_code is not None)
        return next((reply for reply in self.replies if reply.id == number), Reply())

    async def subscribe(self, channel: str, **options: Any) -> Any:
        """Subscribe; returns the result."""
        return await self.result(SubscribeRequest(channel, **options))

    async def result(self, request: Request) -> Any:
        """Send a command, and return its result or None."""
        return (await self.ask(request)).result

    def answered(self, number: int) -> bool:
        """Whether the command with this number has its reply."""
        return any(reply.id == number for reply in self.replies)

    def pushes(self, kind: type, channel: str) -> list[Any]:
        """The events of a kind that were pushed in a channel."""
        return [
            reply.push.event
            for reply in self.replies
            if reply.push is not None
            and reply.push.channel == channel
            and isinstance(reply.push.event, kind)
        ]

    def data(self, channel: str) -> list[bytes]:
        """The data of the publications in a channel."""
        return [publication.data for publication in self.pushes(Publication, channel)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        await settled(condition, f"a condition on {self.replies}", pause=0.005)

    async def _read(self, socket: ClientConnection) -> None:
        try:
            while True:
                self.replies += self._codec.decode_replies(await socket.recv())
        except ConnectionClosed:
            self.close_code = socket.close_code
