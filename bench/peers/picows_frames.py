"""picows: each frame is built once and written to every transport."""

import struct
from collections import defaultdict
from typing import Any

import uvloop
from launch import PORT
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

rooms: dict[bytes, set[Any]] = defaultdict(set)


class Client(WSListener):  # type: ignore[misc]
    """A client of a room."""

    def __init__(self, room: bytes) -> None:
        self._clients = rooms[room]

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Join the room."""
        self._transport = transport.underlying_transport
        self._clients.add(self._transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Send each text to all clients of the room."""
        if frame.msg_type == WSMsgType.TEXT:
            data = frame.get_payload_as_bytes()
            size = len(data)
            head = (
                struct.pack("!BB", 0x81, size)
                if size < 126
                else struct.pack("!BBH", 0x81, 126, size)
            )
            framed = head + data
            for client in self._clients:
                client.write(framed)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Leave the room."""
        self._clients.discard(self._transport)


def client(request: WSUpgradeRequest) -> Client:
    """Return the listener of a new connection; the end of its path is the room."""
    return Client(request.path.rpartition(b"/")[2])


async def main() -> None:
    """Serve until the process ends."""
    server = await ws_create_server(client, "127.0.0.1", PORT, backlog=4096)
    await server.serve_forever()


uvloop.run(main())
