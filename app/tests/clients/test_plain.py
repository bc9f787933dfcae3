"""The plain protocol over real sockets, two nodes and a real Redis."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lab.waiting import TIMEOUT, settled
from tests.support.clients import exchange, silent
from tests.support.nodes import StartNode
from tests.support.redis import RedisServer

pytestmark = pytest.mark.backends("redis", "memory")


async def test_ack_names_client_node_and_counts(start_node: StartNode) -> None:
    """The sender gets an ack with its name, the node, a time, and two counts; nothing before it."""
    node = await start_node()
    async with node.connect() as client:
        assert await silent(client)
        answer = await exchange(client, {"type": "x", "client_id": "alice", "timestamp": 1})
        assert answer.pop("timestamp")
        assert answer == {
            "type": "ack",
            "client_id": "alice",
            "hostname": "node1",
            "connections": 1,
            "message_count": 1,
        }
        assert (await exchange(client, "again"))["message_count"] == 2


async def test_broadcast_reaches_every_other_client_on_every_node(start_node: StartNode) -> None:
    """All but the sender hear a message, with its number digits untouched."""
    one, two = await start_node(), await start_node()
    async with one.connect() as sender, one.connect() as near, two.connect() as far:
        text = '{"client_id": "alice", "n": 12345678901234567890.123456789}'
        assert (await exchange(sender, text))["type"] == "ack"
        for other in (near, far):
            heard = await asyncio.wait_for(other.recv(), TIMEOUT)
            assert isinstance(heard, str)
            assert heard.endswith(f'"data":{text}}}')
            message = json.loads(heard)
            assert message["type"] == "message"
            assert (message["client_id"], message["hostname"]) == ("alice", "node1")
        assert await silent(sender)


@pytest.mark.usefixtures("processes")
def test_a_restarted_node_delivers_older_publications_to_all() -> None:
    """A publication that outlives its node's process is for everybody on the next one."""
    program = "from wsfleet.hub.connection import _numbers; print(next(_numbers))"
    first, second = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert abs(int(first) - int(second)) > 1_000_000


async def test_text_that_is_not_json_is_a_message(start_node: StartNode) -> None:
    """Text goes through as a JSON string, quotes and all."""
    node = await start_node()
    async with node.connect() as sender, node.connect() as other:
        await exchange(sender, 'say "hi"\n')
        assert json.loads(await other.recv())["data"] == 'say "hi"\n'


async def test_messages_of_one_tick_arrive_one_by_one_and_in_order(start_node: StartNode) -> None:
    """Frames that are written together are still separate messages, in the order of sending."""
    one, two = await start_node(), await start_node()
    async with one.connect() as sender, two.connect() as other:
        for number in range(200):
            await sender.send(str(number))
        acks = [json.loads(await sender.recv())["message_count"] for _ in range(200)]
        assert acks == list(range(1, 201))
        assert [json.loads(await other.recv())["data"] for _ in range(200)] == list(range(200))


async def test_state_and_connection_keys(start_node: StartNode, store: Any) -> None:
    """`state:` holds the last text and stays a while; `connection:` the node, and goes."""
    node = await start_node(resume_window=60)
    async with node.connect() as client:
        await exchange(client, '{"client_id": "alice"}')
        assert await store.get("state:alice") == '{"client_id": "alice"}'
        assert await store.ttl("state:alice") == -1
        assert await store.get("connection:alice") == "node1"
        assert [key async for key in store.scan_iter("connection:*")] == ["connection:alice"]

    async def released() -> bool:
        return not await store.exists("connection:alice")

    await settled(released, "connection:alice went with its client")
    assert 0 < await store.ttl("state:alice") <= 60
    assert await store.get("state:alice") == '{"client_id": "alice"}'


async def test_state_is_found_again_on_another_node(start_node: StartNode, store: Any) -> None:
    """A client that comes back elsewhere keeps its name, and its state stops expiring."""
    one, two = await start_node(), await start_node()
    async with one.connect() as client:
        await exchange(client, {"client_id": "alice", "n": 1})
    await settled(lambda: len(one.node.hub) == 0, "the first connection closed")
    async with two.connect() as client:
        assert (await exchange(client, {"client_id": "alice", "n": 2}))["client_id"] == "alice"
        assert await store.get("connection:alice") == "node2"
        assert await store.ttl("state:alice") == -1


@pytest.mark.parametrize("same_node", [True, False])
async def test_a_name_in_use_is_not_given_away(
    start_node: StartNode, store: Any, same_node: bool
) -> None:
    """A client that asks for the name of a connected client gets one made by the server."""
    one, two = await start_node(), await start_node()
    async with one.connect() as owner, (one if same_node else two).connect() as other:
        assert (await exchange(owner, {"client_id": "alice"}))["client_id"] == "alice"
        await other.recv()
        given = (await exchange(other, {"client_id": "alice"}))["client_id"]
        assert given != "alice"
        assert await store.get("connection:alice") == "node1"
        assert await store.get("state:alice") == '{"client_id": "alice"}'
        assert await store.exists(f"state:{given}")


async def test_two_clients_ask_for_a_name_at_once(start_node: StartNode) -> None:
    """Of many who ask at the same moment, exactly one gets the name."""
    one, two = await start_node(), await start_node()
    clients = [await node.connect() for node in (one, two) for _ in range(10)]
    try:
        await asyncio.gather(*(client.send('{"client_id": "alice"}') for client in clients))
        names = []
        for client in clients:
            while True:
                answer = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT))
                if answer["type"] == "ack":
                    names.append(answer["client_id"])
                    break
        assert names.count("alice") == 1
        assert len(set(names)) == len(names)
    finally:
        for client in clients:
            await client.close()


async def test_a_new_name_replaces_the_old_one(start_node: StartNode, store: Any) -> None:
    """A connection has one name; the one it leaves is free again."""
    node = await start_node()
    async with node.connect() as client:
        await exchange(client, {"client_id": "alice"})
        assert (await exchange(client, {"client_id": "bob"}))["client_id"] == "bob"
        assert [key async for key in store.scan_iter("connection:*")] == ["connection:bob"]
        assert (await exchange(client, "no name"))["client_id"] == "bob"


@pytest.mark.parametrize(
    "client_id", ["", "two words", "x" * 129, "tab\t", [1], {"a": 1}, True, 1.5]
)
async def test_an_invalid_client_name_is_refused(start_node: StartNode, client_id: Any) -> None:
    """An error frame says what a name may be, and the connection stays open."""
    node = await start_node()
    async with node.connect() as client:
        answer = await exchange(client, {"client_id": client_id})
        assert (answer["type"], answer["code"]) == ("error", "invalid_client_id")
        assert (await exchange(client, "still here"))["message_count"] == 1


async def test_a_number_is_a_name(start_node: StartNode) -> None:
    """A client that calls itself 42 is `42`."""
    node = await start_node()
    async with node.connect() as client:
        assert (await exchange(client, {"client_id": 42}))["client_id"] == "42"


async def test_binary_is_refused_and_the_connection_lives(start_node: StartNode) -> None:
    """A binary message is answered with an error frame."""
    node = await start_node()
    async with node.connect() as client:
        assert (await exchange(client, b"\x00"))["code"] == "unsupported_data"
        assert (await exchange(client, "text"))["type"] == "ack"


async def test_oversize_closes_with_1009(start_node: StartNode) -> None:
    """A message over the limit ends its own connection, and no other."""
    node = await start_node(max_message_size=1000)
    async with node.connect() as big, node.connect() as other:
        await big.send("x" * 1001)
        with pytest.raises(ConnectionClosed) as closed:
            await big.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert (await exchange(other, "x" * 900))["type"] == "ack"


async def test_invalid_utf8_closes_with_1007(start_node: StartNode) -> None:
    """RFC 6455, section 8.1: text that is not UTF-8 fails the connection."""
    node = await start_node()
    async with node.connect() as client:
        await client.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


async def test_a_full_node_refuses_with_503(start_node: StartNode) -> None:
    """Over the limit a handshake gets 503 and Retry-After; a place that is freed is given again."""
    node = await start_node(max_connections=2)
    async with node.connect():
        async with node.connect():
            assert node.node.not_ready_reason() == "full: 2 connections"
            with pytest.raises(InvalidStatus) as refused:
                await node.connect()
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["Retry-After"] == "1"
        await settled(lambda: len(node.node.hub) == 1, "the second client left")
        async with node.connect() as client:
            assert (await exchange(client, "in"))["connections"] == 2


async def test_an_idle_client_is_closed(start_node: StartNode) -> None:
    """Without a message for `idle_timeout`, a client is closed with 1000; a busy one is not."""
    node = await start_node(idle_timeout=0.4)
    async with node.connect() as idle, node.connect() as busy:
        for _ in range(8):
            await busy.send("busy")
            await asyncio.sleep(0.1)
        assert {json.loads(text)["data"] async for text in idle} == {"busy"}
        assert (idle.close_code, idle.close_reason) == (1000, "idle for 0.4 s")
        while json.loads(await busy.recv())["type"] != "ack":
            pass


async def test_a_client_that_answers_no_ping_is_closed(start_node: StartNode) -> None:
    """A dead peer is found by ping and its name is released."""
    node = await start_node(ping_interval=0.2, ping_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", node.settings.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    await settled(lambda: len(node.node.hub) == 0, "the silent client was closed")
    assert b"\x03\xf3" in await reader.read()  # close code 1011
    writer.close()


async def test_a_slow_client_is_sent_away(start_node: StartNode) -> None:
    """A client that does not read is closed with 1013 at the limit; others get everything."""
    node = await start_node(outbox_limit=200_000)
    async with node.connect() as sender, node.connect() as healthy:
        _, writer = await asyncio.open_connection("127.0.0.1", node.settings.port, limit=1)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        await settled(lambda: len(node.node.hub) == 3, "the slow client came")
        slow = list(node.node.hub)[-1]
        for number in range(200):
            assert (await exchange(sender, f"{number} " + "x" * 60_000))["type"] == "ack"
            assert json.loads(await healthy.recv())["data"].startswith(f"{number} ")
        assert (slow.close_code, slow.reason) == (1013, "slow consumer")
        writer.transport.abort()


async def test_redis_away_and_back(start_node: StartNode, redis_process: RedisServer) -> None:
    """Without Redis senders are told so and new clients sent elsewhere; it heals by itself."""
    node = await start_node()
    async with node.connect() as client, node.connect() as other:
        await exchange(client, {"client_id": "alice"})
        await other.recv()
        redis_process.stop()
        answer = await exchange(client, "lost?")
        assert (answer["type"], answer["code"]) == ("error", "unavailable")
        assert "again" in answer["message"]
        assert node.node.not_ready_reason() == "redis is not reachable"
        assert node.node.health()["status"] == "degraded"
        assert node.node.health()["redis_connected"] is False
        redis_process.start()
        await node.wait_ready()
        assert (await exchange(client, "kept"))["type"] == "ack"
        assert json.loads(await other.recv())["data"] == "kept"
