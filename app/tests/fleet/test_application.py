"""An application on two node processes behind HAProxy: one is blocked; a slow upload."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from lab.waiting import settled
from tests.support.fleet import Rig, running_fleet, server_statuses
from tests.support.tcp import TCPPeer

TIMEOUT = 3
"""Seconds of the nodes for a part of a body, and of HAProxy for a head."""
BLOCKED, OTHER = "host1-8001", "host2-8001"


@pytest.fixture
def rig(processes: None, tmp_path: Path) -> Iterator[Rig]:
    """Return a fleet with an application whose answers name their node."""
    with running_fleet(
        tmp_path,
        haproxy={"haproxy_timeout_http_request": TIMEOUT, "haproxy_timeout_server": 3 * TIMEOUT},
        WSFLEET_APP="tests.support.guest:app",
        WSFLEET_NODE_HEADER="X-Wsfleet-Node",
        WSFLEET_BODY_TIMEOUT=str(TIMEOUT),
    ) as running:
        yield running


def opened(rig: Rig, node: str) -> connect:
    """Open a WebSocket of the application through HAProxy, with the cookie of a node."""
    url = rig.base_url.replace("http", "ws") + "/echo"
    return connect(url, proxy=None, additional_headers={"Cookie": f"WSNODE={node}"})


def node_of(client: ClientConnection) -> str:
    """Return the node that the answer to the handshake names."""
    assert client.response is not None
    return client.response.headers["X-Wsfleet-Node"]


class Talker:
    """A client that sends again and again, and waits for each answer."""

    def __init__(self, client: ClientConnection) -> None:
        self.answers = 0
        self._client = client
        self.task = asyncio.create_task(self._talk())

    async def _talk(self) -> None:
        while True:
            await self._client.send(str(self.answers))
            assert await self._client.recv() == str(self.answers)
            self.answers += 1
            await asyncio.sleep(0.05)


async def test_a_blocked_process_is_taken_out_and_comes_back(rig: Rig, tmp_path: Path) -> None:
    """Clients of the other process notice nothing; its own are kept, and answered afterwards."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def status() -> str:
        return (await asyncio.to_thread(server_statuses, rig))[BLOCKED]

    async def is_down() -> bool:
        return await status() == "DOWN"

    async def is_up() -> bool:
        return await status() == "UP"

    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=None, trust_env=False))  # noqa: S113
        kept = [await stack.enter_async_context(opened(rig, BLOCKED)) for _ in range(5)]
        others = [await stack.enter_async_context(opened(rig, OTHER)) for _ in range(20)]
        assert {node_of(client) for client in kept} == {BLOCKED}
        assert {node_of(client) for client in others} == {OTHER}
        talkers = [Talker(client) for client in others]
        for talker in talkers:
            stack.callback(talker.task.cancel)
        url = f"{rig.nodes[BLOCKED]}/block_on"
        blocking = asyncio.create_task(http.get(url, params={"pipe": str(pipe)}))
        await settled(is_down, "HAProxy takes the blocked process out")
        before = [talker.answers for talker in talkers]
        async with opened(rig, BLOCKED) as moved:
            assert node_of(moved) == OTHER
        await settled(
            lambda: all(t.answers > count for t, count in zip(talkers, before, strict=True)),
            "the others are answered meanwhile",
        )
        await asyncio.to_thread(pipe.write_text, "go on")
        assert (await blocking).json() == "go on"
        await settled(is_up, "it is back")
        async with opened(rig, BLOCKED) as back:
            assert node_of(back) == BLOCKED
        for client in kept:
            await client.send("still here")
            assert await client.recv() == "still here"
        assert not any(talker.task.done() for talker in talkers)


async def test_an_upload_may_take_its_time_but_not_stall(rig: Rig) -> None:
    """Neither HAProxy nor the node bounds the whole; the node answers one that stalls with 408."""
    address = urlsplit(rig.base_url)
    for stalls in (False, True):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        peer = TCPPeer(reader, writer)
        pieces = 40
        writer.write(
            b"POST /api/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (1000 * pieces)
        )
        for _ in range(pieces - stalls):
            writer.write(bytes(1000))
            await asyncio.sleep(TIMEOUT / 10)  # four timeouts altogether
        head = await peer.head()
        writer.close()
        assert (b" 408 " if stalls else b" 200 ") in head.partition(b"\r\n")[0]
