"""A client that is gone is counted out at once, and nothing more is carried out for it."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any, cast

import httpx
import jwt
import pytest
from websockets.exceptions import InvalidStatus

from lab.waiting import TIMEOUT, settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import Peer
from tests.support.redis import RedisServer
from tests.support.tokens import SECRET
from wsfleet.protocol.centrifuge.messages import ConnectRequest, PublishRequest, SubscribeRequest
from wsfleet.redis.primary import Primary

CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  allow_anonymous_connect_without_token: true
  user_connection_limit: 1
  subscribe_to_user_personal_channel: {{enabled: true}}
channel:
  without_namespace:
    presence: true
    history_size: 100
    history_ttl: 300s
    force_recovery: true
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
    allow_publish_for_client: true
    allow_publish_for_anonymous: true
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Each client with a user is subscribed by the server, and has one connection."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return path


async def connections(node: RunningNode) -> int:
    """Return `connections` of `/health`."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = (await http.get(f"{node.url}/health")).json()
    number: int = answer["connections"]
    return number


def token(user: str) -> str:
    """A connection token."""
    return jwt.encode({"sub": user}, SECRET, algorithm="HS256")


async def reconnecting(node: RunningNode, number: int, rounds: int) -> None:
    """Do as an SDK does whose connects are not answered: close, and connect again."""
    for _ in range(rounds):
        peer = Peer(node)
        await peer.open()
        await peer.send(
            ConnectRequest(token=token(f"user{number}")),
            *(SubscribeRequest(f"room{channel}") for channel in range(5)),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await peer.until(lambda: False)
        assert peer.socket is not None
        await peer.socket.close()


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_clients_that_reconnect_without_redis_count_once(
    start_node: StartNode, redis_process: RedisServer, config: Path, how: str
) -> None:
    """A node with a limit refuses nobody: those who gave up do not count, nor does their user."""
    node = await start_node(config=config, max_connections=20, redis_timeout=2.0)
    (redis_process.kill if how == "killed" else redis_process.freeze)()
    highest = 0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, await connections(node))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(reconnecting(node, number, 10) for number in range(20)))
    assert await connections(node) == 0
    watching.cancel()
    assert 0 < highest <= 20
    assert "wsfleet_connections_refused_total{" not in node.node.metrics.render().decode()
    assert not list(node.node.users)


async def test_queued_commands_of_a_gone_client_are_dropped(
    start_node: StartNode, redis_process: RedisServer, store: Any, config: Path
) -> None:
    """Of twenty publications that wait for Redis one is under way; the others never happen."""
    node = await start_node(config=config, redis_timeout=5.0)
    async with Peer(node) as ann:
        await ann.ask(PublishRequest("room", b"0"))
        redis_process.freeze()
        await ann.send(*(PublishRequest("room", b"%d" % number) for number in range(1, 21)))
        primary = cast(Primary, node.node.store.primaries[0])
        await settled(lambda: primary._lane._link is not None, "it is asked")
        await asyncio.sleep(0.1)  # until the node has read the commands
    redis_process.thaw()
    await settled(lambda: not node.server.server_state.tasks, "the clean-up is done")
    assert await store.xlen("wsfleet:stream:{room}") <= 2


async def test_a_plain_message_before_the_close_is_carried_out(
    start_node: StartNode, store: Any
) -> None:
    """A client that sends and closes at once is not gone before it has spoken."""
    node = await start_node()
    async with node.connect() as listener:
        client = await node.connect()
        for number in range(50):
            await client.send(f'{{"n": {number}}}')
        await client.close()
        for number in range(50):
            async with asyncio.timeout(TIMEOUT):
                assert f'"data":{{"n": {number}}}' in await listener.recv()


async def test_a_name_that_a_gone_client_asked_for_is_free(
    start_node: StartNode, redis_process: RedisServer, store: Any
) -> None:
    """Its claim may still come to Redis, and is undone; so is its first name."""
    node = await start_node(redis_timeout=5.0, heartbeat_interval=1.0, node_dead_after=8.0)
    async with node.connect() as client:
        await client.send("hello")
        assert '"type":"ack"' in str(await client.recv())
        redis_process.freeze()
        await client.send('{"client_id": "bob"}')
        await settled(lambda: "bob" in node.node.client_names._local, "it asks for another one")
    await settled(lambda: "bob" not in node.node.client_names._local, "it was given up")
    redis_process.thaw()
    await settled(lambda: not node.server.server_state.tasks, "the clean-up is done")

    async def free() -> bool:
        return not await store.keys("connection:*")

    await settled(free, "both names are free")
    assert not await store.smembers("wsfleet:node:node1:clients")


async def test_subscribing_fails_at_once_where_redis_is_known_to_be_away(
    start_node: StartNode,
    redis_process: RedisServer,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits for the confirmation of a Redis that cannot give it."""
    monkeypatch.setattr("wsfleet.broker.following.FOLLOW_TIMEOUT", 3600.0)
    node = await start_node(config=config)
    async with Peer(node) as ann:
        redis_process.kill()
        replies = [await ann.ask(SubscribeRequest(f"room{number}")) for number in range(20)]
        assert [reply.error and reply.error.code for reply in replies] == [100] * 20
        redis_process.start()
        await node.wait_ready()
        assert await ann.subscribe("room") is not None


async def test_a_blip_of_pubsub_is_waited_out(
    start_node: StartNode, store: Any, config: Path
) -> None:
    """A connection that is made again in a moment fails no subscription."""
    node = await start_node(config=config)
    async with Peer(node) as ann:
        for number in range(5):
            await store.client_kill_filter(_type="pubsub")
            assert await ann.subscribe(f"room{number}") is not None


async def test_a_client_that_is_gone_before_it_is_let_in_is_not_served(
    start_node: StartNode, redis_process: RedisServer, config: Path
) -> None:
    """A handshake that waits for Redis ends with its socket, and counts nowhere."""
    node = await start_node(config=config, redis_timeout=1.0)
    redis_process.freeze()
    opening = [asyncio.create_task(_open(node, f"{number}")) for number in range(5)]
    await settled(lambda: len(node.server.server_state.connections) >= 5, "five handshakes")
    for task in opening:
        task.cancel()
    await asyncio.wait(opening)
    redis_process.thaw()
    await settled(lambda: not node.server.server_state.tasks, "they ended")
    assert "wsfleet_connections_opened_total 0.0" in node.node.metrics.render().decode()


async def _open(node: RunningNode, user: str) -> None:
    headers = {"Authorization": f"Bearer {token(user)}"}
    with contextlib.suppress(InvalidStatus):
        await node.connect(additional_headers=headers)
