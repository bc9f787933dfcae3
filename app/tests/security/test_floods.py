"""Floods: the attacker is stopped, and other clients are served."""

import asyncio
import contextlib
import json

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from lab.waiting import TIMEOUT, settled
from tests.support.clients import closed, command
from tests.support.tcp import TCPPeer, masked
from tests.support.victim import ANYWHERE, MEMORY, WITH_APPLICATION, Victim, ended, told
from wsfleet.transports.frames import PING, TEXT


async def send(peer: TCPPeer, data: bytes, times: int) -> None:
    """Write as fast as the socket accepts data, until it is closed."""
    with contextlib.suppress(ConnectionError):
        for _ in range(times):
            peer.write(data)
            await asyncio.sleep(0)


async def answered(client: ClientConnection) -> None:
    """Wait until a healthy client's message is acknowledged."""
    await client.send("healthy")
    await told(client, type="ack")


@WITH_APPLICATION
async def test_messages(victim: Victim) -> None:
    """Five clients with 20,000 messages are closed with 3013; a healthy one is served."""
    before = await victim.disconnected(3013)
    async with contextlib.AsyncExitStack() as stack:
        healthy = await stack.enter_async_context(victim.client("/ws", max_queue=None))
        peers = [await stack.enter_async_context(victim.upgraded()) for _ in range(5)]
        ends = [asyncio.create_task(ended(peer)) for peer in peers]
        floods = [asyncio.create_task(send(p, masked(TEXT, b"x") * 1000, 20)) for p in peers]
        for _ in range(5):
            await answered(healthy)
        assert set(await asyncio.gather(*ends)) == {(3013, "too many requests")}
        for flood in floods:
            flood.cancel()
    await victim.has_disconnected(3013, before + 5)


@WITH_APPLICATION
async def test_messages_without_content(victim: Victim) -> None:
    """Empty messages count towards the rate limit."""
    before = await victim.disconnected(3013)
    async with victim.upgraded() as peer:
        flood = asyncio.create_task(send(peer, masked(TEXT, b"") * 5000, 20))
        assert await ended(peer) == (3013, "too many requests")
        flood.cancel()
    await victim.has_disconnected(3013, before + 1)


@WITH_APPLICATION
async def test_pings_of_a_client_that_does_not_read(victim: Victim) -> None:
    """Pongs fill a small buffer only, and a metric counts the withheld ones."""
    before = await victim.metric("wsfleet_pongs_withheld_total")
    async with victim.upgraded() as peer, victim.client("/ws") as healthy:
        await send(peer, masked(PING, b"x" * 125) * 1000, 200)

        async def withheld() -> bool:
            return await victim.metric("wsfleet_pongs_withheld_total") > before

        await settled(withheld, "pings go without their pongs")
        await answered(healthy)
        assert await victim.metric("wsfleet_outbox_bytes") < 200_000


async def test_clients_that_do_not_read(victim: Victim) -> None:
    """100 slow readers are closed with 1013 at their limits; 200 healthy ones get all."""
    before, memory = await victim.disconnected(1013), await victim.resident()
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(victim.upgraded()) for _ in range(100)]
        healthy = [await stack.enter_async_context(victim.client()) for _ in range(200)]
        sender = await stack.enter_async_context(victim.client())
        text = "x" * 60_000
        for number in range(300):
            await sender.send(f"{number} {text}")
            assert json.loads(await sender.recv())["type"] == "ack"
            for client in healthy:
                assert json.loads(await client.recv())["data"] == f"{number} {text}"
            assert await victim.metric("wsfleet_outbox_bytes") < 100 * 200_000
            assert await victim.resident() - memory < MEMORY
            if await victim.disconnected(1013) == before + 100:
                break
        else:
            raise AssertionError("they are still there")
        ends = await asyncio.gather(*(ended(peer) for peer in slow))
    assert {code for code, _ in ends} == {1013}


@WITH_APPLICATION
async def test_connections(victim: Victim) -> None:
    """Connections above the limit are refused with 503."""
    before = await victim.refused("full")
    async with contextlib.AsyncExitStack() as stack:

        async def attempt() -> int:
            try:
                await stack.enter_async_context(victim.client())
            except InvalidStatus as error:
                return error.response.status_code
            return 101

        outcomes = []
        for _ in range(15):
            outcomes += await asyncio.gather(*(attempt() for _ in range(30)))
        assert outcomes.count(101) == 400
        assert outcomes.count(503) == 50
        assert await victim.refused("full") == before + 50


@ANYWHERE
async def test_half_requests(victim: Victim) -> None:
    """A thousand unfinished requests keep no client from being served."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(1000):
            await stack.enter_async_context(victim.tcp(b"GET /ws HTTP/1.1\r\nHost: x\r\n"))
        await victim.serves()


BODIES = {
    "a length": (b"Content-Length: 314572800\r\n", b""),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"100000\r\n"),
}


@pytest.mark.parametrize("framing", BODIES)
@pytest.mark.parametrize("path", ["/api/publish", "/console/api/drain", "/health", "/nowhere"])
async def test_a_body_of_300_megabytes(victim: Victim, framing: str, path: str) -> None:
    """Without a key the body is refused with 413, and its rest is not stored."""
    field, size = BODIES[framing]
    before = await victim.metric("wsfleet_requests_refused_total", status="413")
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), field)
    async with victim.tcp(head) as peer:
        part = size + b"x" * 2**20 + (b"\r\n" if size else b"")
        flood = asyncio.create_task(send(peer, part, 300))
        with contextlib.suppress(ConnectionError):
            assert (await peer.rest()).count(b"HTTP/1.1 ") == 1
        flood.cancel()
    assert await victim.metric("wsfleet_requests_refused_total", status="413") == before + 1


async def test_bodies_that_never_come(victim: Victim) -> None:
    """200 unfinished bodies are answered and closed; clients are served meanwhile."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    async with contextlib.AsyncExitStack() as stack:
        first = head + b"x" * 50_000
        peers = [await stack.enter_async_context(victim.tcp(first)) for _ in range(200)]
        await victim.serves()
        async with asyncio.timeout(TIMEOUT):
            for peer in peers:
                assert (await peer.head()).startswith(b"HTTP/1.1 404 ")
                await peer.rest()


async def test_more_channels_than_one_may_have(victim: Victim) -> None:
    """Too many channels in connect disconnect; later each one gets an error."""
    path = "/connection/websocket"
    before = await victim.disconnected(3505)
    async with victim.client(path) as client:
        subs: dict[str, object] = {f"c{number}": {} for number in range(3000)}
        await client.send(json.dumps({"id": 1, "connect": {"subs": subs}}))
        assert (await closed(client))[0] == 3505
    await victim.has_disconnected(3505, before + 1)

    before = await victim.metric("wsfleet_reply_errors_total", code="106")
    async with victim.client(path, max_queue=None) as client:
        await command(client, connect={})
        lines = (json.dumps({"id": n, "subscribe": {"channel": f"c{n}"}}) for n in range(1, 1001))
        await client.send("\n".join(lines))
        errors = 0
        while errors < 900:
            for line in str(await asyncio.wait_for(client.recv(), TIMEOUT)).split("\n"):
                errors += json.loads(line).get("error", {}).get("code") == 106
    assert await victim.metric("wsfleet_reply_errors_total", code="106") == before + 900


async def test_more_commands_than_a_frame_may_have(victim: Victim) -> None:
    """A frame with too many commands is refused as a whole, with 3013."""
    before = await victim.disconnected(3013)
    async with victim.client("/connection/websocket") as client:
        await client.send("\n".join(["{}"] * 2000))
        assert (await closed(client))[0] == 3013
    await victim.has_disconnected(3013, before + 1)
