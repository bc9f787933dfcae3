"""The application's own WebSockets in a testbed: messages, refusals, drains."""

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI, WebSocket

from wsfleet import Disconnect, Realtime
from wsfleet.testing import HandshakeRefused, Testbed


def application(ends: list[str]) -> tuple[FastAPI, Realtime]:
    """Return an application with WebSockets; `ends` has what happens to them."""
    app = FastAPI()
    realtime = Realtime(app)

    @app.websocket("/echo/{name}")
    async def echo(websocket: WebSocket, name: str) -> None:
        if name == "nobody":
            await websocket.close()
            return
        await websocket.accept()
        await websocket.send_json([name, websocket.query_params.get("x"), websocket.cookies])
        while (message := await websocket.receive())["type"] == "websocket.receive":
            if (text := message.get("text")) is None:
                await websocket.send_bytes(message["bytes"])
            else:
                await websocket.send_text(text)
        ends.append(f"{name}: {message['code']}")

    @app.websocket("/held")
    async def held(websocket: WebSocket) -> None:
        await websocket.accept()
        async with realtime.hold(websocket), realtime.feed(websocket, "news"):
            await websocket.send_text("fed")
            await websocket.receive_text()
            ends.append("saved")
            await websocket.close(4000, "over")

    @realtime.on_drain
    async def drain() -> None:
        ends.append("drain")

    return app, realtime


async def test_websockets_of_the_application(tmp_path: Path) -> None:
    """Messages of both kinds come back as they were; the handler has path, query and cookies."""
    ends: list[str] = []
    app, _ = application(ends)
    config = tmp_path / "wsfleet.yml"
    config.write_text("client: {allowed_origins: ['https://example.com']}")
    async with Testbed(app, config=config) as bed:
        socket = await bed.websocket("/echo/ann?x=1", cookies={"session": "s3cret"})
        assert await socket.receive() == '["ann","1",{"session":"s3cret"}]'
        for message in ("two\nlines", "", "ä", b"\x00\n\xff", b""):
            socket.send(message)
            assert await socket.receive() == message
        await socket.close()
        assert ends == ["ann: 1000"]
        with pytest.raises(Disconnect, match="1000"):
            await socket.receive()
        with pytest.raises(HandshakeRefused, match="403"):
            await bed.websocket("/echo/nobody")
        with pytest.raises(HandshakeRefused, match="403: this origin"):
            await bed.websocket("/echo/ann", headers={"Origin": "https://mallory.example"})
    async with Testbed() as bed:
        with pytest.raises(ValueError, match="no application"):
            await bed.websocket("/echo/ann")


async def test_what_a_client_sent_before_it_left_is_handled() -> None:
    """As over a socket: its last messages, and then the end."""
    app = FastAPI()
    received: list[object] = []

    @app.websocket("/slow")
    async def slow(websocket: WebSocket) -> None:
        await websocket.accept()
        while (message := await websocket.receive())["type"] == "websocket.receive":
            received.append(message["text"])
            await asyncio.sleep(0)
        received.append(message["code"])

    async with Testbed(app) as bed:
        socket = await bed.websocket("/slow")
        for number in range(5):
            socket.send(str(number))
        await socket.close(1001)
    assert received == ["0", "1", "2", "3", "4", 1001]


async def test_websockets_of_the_application_are_drained() -> None:
    """A held one goes when its block has ended; a feed is the node's own."""
    ends: list[str] = []
    _, realtime = application(ends)
    async with Testbed(realtime, nodes=2) as bed:
        echo = await bed.websocket("/echo/ann")
        held = await bed.websocket("/held")
        assert echo.node == held.node == "node1"
        assert await held.receive() == "fed"
        await realtime.publish("news", {"today": 1})
        assert await held.receive() == '{"today":1}'
        draining = asyncio.create_task(bed.drain())
        assert (await echo.disconnected()).code == 1012
        held.send("I am done")
        assert str(await held.disconnected()) == "4000: over"
        await draining
        assert ends == ["drain", "ann: 1012", "saved"]
        assert (await bed.websocket("/echo/ann")).node == "node2"
