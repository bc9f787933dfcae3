"""The client: cookies, refusals, and answers matched with questions."""

import asyncio
import contextlib
import http
import json
from asyncio import StreamReader, StreamWriter
from typing import Any

import pytest
from picows import WSError
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.utils import accept_key

from lab.waiting import TIMEOUT
from tests.support.websocket_server import Serve
from wsfleet.cli.access.endpoint import parse_url
from wsfleet.cli.access.websocket_client import (
    Asker,
    Client,
    ConnectError,
    ConnectionEndedError,
    cookie_node,
    received_cookie,
)


def test_the_stickiness_cookie_is_found_with_its_attributes() -> None:
    """Other cookies are passed over; dates that the balancer adds are not part of the node."""
    headers = ["other=1; Path=/", "WSNODE=node1-8001|aKx|aKx; path=/; HttpOnly; Max-Age=86400"]
    cookie = received_cookie(headers, "WSNODE")
    assert cookie is not None
    assert cookie_node(cookie.value) == "node1-8001"
    assert cookie["max-age"] == "86400"
    assert cookie["httponly"]
    assert not cookie["secure"]
    assert received_cookie(headers[:1], "WSNODE") is None
    assert received_cookie(headers, "OTHER") is None


async def echo_acks(connection: ServerConnection) -> None:
    """Answer every message with an ack that carries it, after a broadcast of somebody else's."""
    async for text in connection:
        await connection.send(json.dumps({"type": "message", "data": "somebody's"}))
        await connection.send(json.dumps({"type": "ack", "question": text}))


async def test_answers_go_to_their_questions(serve_websocket: Serve) -> None:
    """Questions asked at once are answered in order; broadcasts are only counted."""
    client = Asker()
    await client.connect(parse_url(await serve_websocket(echo_acks)))
    answers = await asyncio.gather(*(client.ask(b"%d" % number) for number in range(5)))
    await client.close()
    assert [answer["question"] for answer in answers] == list("01234")
    assert client.broadcasts == 5


async def test_the_end_of_the_connection_fails_open_questions(serve_websocket: Serve) -> None:
    """A call that waits for an answer gets the close code, also one that only applications use."""

    async def leave(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(4321)

    client = Asker()
    await client.connect(parse_url(await serve_websocket(leave)))
    with pytest.raises(ConnectionEndedError, match="4321"):
        await client.ask(b"anybody there?")
    with pytest.raises(ConnectionEndedError):
        await client.ask(b"and now?")
    await client.close()


async def test_cookies_go_in_and_out(serve_websocket: Serve) -> None:
    """The cookie given is sent in the handshake, and the one set on the 101 is kept."""
    seen: list[str | None] = []

    def set_cookie(_: ServerConnection, request: Request, response: Response) -> Response:
        seen.append(request.headers.get("Cookie"))
        response.headers["Set-Cookie"] = "WSNODE=n2; path=/; HttpOnly"
        return response

    url = await serve_websocket(echo_acks, process_response=set_cookie)
    client = Client()
    await client.connect(parse_url(url), cookie="n1|date")
    await client.close()
    assert seen == ["WSNODE=n1|date"]
    assert client.cookie is not None
    assert client.cookie.value == "n2"


async def test_a_refusal_has_its_status(serve_websocket: Serve) -> None:
    """A full or draining node's 503 is told apart, with its Retry-After."""

    def refuse(*_: Any) -> Response:
        headers = Headers({"Retry-After": "5", "Content-Length": "0"})
        return Response(http.HTTPStatus.SERVICE_UNAVAILABLE, "Service Unavailable", headers)

    url = await serve_websocket(echo_acks, process_request=refuse)
    with pytest.raises(ConnectError, match="HTTP 503, Retry-After 5 s") as caught:
        await Client().connect(parse_url(url))
    assert caught.value.status == 503


async def test_an_unreachable_host_is_one_line(unused_tcp_port: int) -> None:
    """Nobody listens: the error says so and has no status."""
    with pytest.raises(ConnectError, match="connection refused") as caught:
        await Client().connect(parse_url(f"http://127.0.0.1:{unused_tcp_port}"))
    assert caught.value.status is None


async def test_fragments_are_joined(serve_websocket: Serve) -> None:
    """A message in several frames arrives as one text."""
    got: list[bytes] = []

    class Listener(Client):
        def on_text(self, text: bytes) -> None:
            got.append(text)

    async def fragmented(connection: ServerConnection) -> None:
        await connection.send(["on", "e", " text"])
        await connection.send("whole")

    client = Listener()
    await client.connect(parse_url(await serve_websocket(fragmented)))
    await client.transport.wait_disconnected()
    assert got == [b"one text", b"whole"]


async def test_a_peer_gone_without_a_word_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that only listens pings in the silence, and notices that its peer is gone."""
    monkeypatch.setattr("wsfleet.cli.access.websocket_client.PING_AFTER", 0.1)
    monkeypatch.setattr("wsfleet.cli.access.websocket_client.PONG_TIMEOUT", 0.1)

    async def upgrade_and_fall_silent(reader: StreamReader, writer: StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in request.decode().splitlines() if "Sec-WebSocket-Key" in line)
        accept = accept_key(key.partition(": ")[2])
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept.encode()
        )
        await reader.read()
        writer.close()

    async with await asyncio.start_server(upgrade_and_fall_silent, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        client = Client()
        await client.connect(parse_url(f"http://127.0.0.1:{port}"))
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(WSError):
                await client.transport.wait_disconnected()
