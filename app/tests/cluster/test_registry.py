"""Several nodes on one Redis: the registry, a dead node's keys, and what an outage leaves."""

import asyncio
import json
import signal
import time
from typing import Any

import httpx
import pytest

from lab.waiting import TIMEOUT, settled
from tests.support.nodes import StartNode
from tests.support.redis import RedisServer

pytestmark = pytest.mark.backends("redis", "memory")


async def name_of(client: Any, message: dict[str, Any]) -> str:
    """Send, and read the name in the ack."""
    await client.send(json.dumps(message))
    while True:
        answer = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT))
        if answer["type"] == "ack":
            name: str = answer["client_id"]
            return name


async def refusal(client: Any, message: dict[str, Any]) -> Any:
    """Send, and read on to the error; gives its code."""
    await client.send(json.dumps(message))
    while True:
        answer = json.loads(await asyncio.wait_for(client.recv(), TIMEOUT))
        if answer["type"] == "error":
            return answer["code"]


async def test_nodes_register_and_leave(start_node: StartNode, store: Any) -> None:
    """A live node is in the sorted set with a description; one that stops takes both away."""
    one, two = await start_node(), await start_node()
    assert sorted(await store.zrange("wsfleet:nodes", 0, -1)) == ["node1", "node2"]
    async with one.connect():
        await asyncio.sleep(0.3)
        described = await store.hgetall("wsfleet:node:node1")
        assert described["connections"] == "1"
        assert described["url"] == one.url
        assert described["state"] == "ready"
    await two.stop()
    assert await store.zrange("wsfleet:nodes", 0, -1) == ["node1"]
    assert not await store.exists("wsfleet:node:node2")


async def test_foreign_keys_in_redis_end_no_node(start_node: StartNode, store: Any) -> None:
    """Names that are not UTF-8 are nobody's, and the heartbeat goes on: a dead node is reaped."""
    node = await start_node(node_dead_after=1.0)
    await store.zadd("wsfleet:nodes", {b"\xff": 1, "dead": 2})
    await store.hset("wsfleet:node:node1", b"\xfe", b"\xfd")
    await store.hset("wsfleet:desired", b"\xff", b"\xff")
    await store.sadd("wsfleet:node:dead:clients", "gone")
    await store.set("connection:gone", "dead")

    async def reaped() -> bool:
        return await store.zscore("wsfleet:nodes", "dead") is None

    await settled(reaped, "the dead node is reaped")
    assert not await store.exists("connection:gone")
    await store.zadd("wsfleet:nodes", {"dead": 2})
    await store.sadd("wsfleet:node:dead:clients", b"\xff")
    before = await store.zscore("wsfleet:nodes", "node1")

    async def alive() -> bool:
        return float(await store.zscore("wsfleet:nodes", "node1")) > float(before) + 0.5

    await settled(alive, "both nodes have sent a heartbeat")
    assert not node.task.done()
    assert node.node.not_ready_reason() is None


async def test_a_node_that_left_does_not_come_back(start_node: StartNode, store: Any) -> None:
    """A heartbeat that was due or under way while the node stopped does not register it again."""
    node = await start_node()
    registry = node.node.registry
    await store.function_flush()  # so that a heartbeat takes several round trips
    under_way = asyncio.create_task(registry.beat())
    await asyncio.sleep(0)
    await registry.leave()
    await under_way
    await registry.beat()
    assert await store.zrange("wsfleet:nodes", 0, -1) == []
    assert not await store.exists("wsfleet:node:node1")


async def test_a_node_that_stops_leaves_dead_nodes_to_others(
    start_node: StartNode, store: Any
) -> None:
    """One is reaped at a time, and none is begun after that."""
    node = await start_node(node_dead_after=1)
    registry = node.node.registry
    reaped: list[str] = []
    going_on = asyncio.Event()

    async def reap(name: str) -> None:
        reaped.append(name)
        await going_on.wait()

    registry.on_dead.append(reap)
    await store.zadd("wsfleet:nodes", {"dead": 1})
    await settled(lambda: reaped == ["dead"], "a dead node is being reaped")
    second = asyncio.create_task(registry.beat())
    stopping = asyncio.create_task(registry.stop_reaping())
    await asyncio.sleep(0)
    assert not stopping.done()
    going_on.set()
    await asyncio.gather(second, stopping)
    await store.zadd("wsfleet:nodes", {"dead": 1})
    await registry.beat()
    assert reaped == ["dead"]
    assert await store.zscore("wsfleet:nodes", "dead") == 1


async def test_a_dead_nodes_keys_are_reaped(start_node: StartNode, store: Any) -> None:
    """`connection:` keys of a node that vanished go; `state:` keys begin to expire."""
    one, two = await start_node(node_dead_after=1.0), await start_node(node_dead_after=1.0)
    client = await two.connect()
    assert await name_of(client, {"client_id": "alice"}) == "alice"
    await two.crash()
    assert await store.get("connection:alice") == "node2"

    async def forgotten() -> bool:
        return "node2" not in await store.zrange("wsfleet:nodes", 0, -1)

    await settled(forgotten, "node2 was forgotten, which is the last that reaping does")
    assert not await store.exists("connection:alice")
    assert 0 < await store.ttl("state:alice") <= one.settings.resume_window
    assert not await store.exists("wsfleet:node:node2:clients")
    assert await store.zrange("wsfleet:nodes", 0, -1) == ["node1"]


async def test_a_client_of_a_dead_node_keeps_its_name(start_node: StartNode, store: Any) -> None:
    """The name of a client whose node was killed is free at once, before it is reaped."""
    one, two = await start_node(node_dead_after=60), await start_node(node_dead_after=60)
    client = await two.connect()
    await name_of(client, {"client_id": "alice", "n": 1})
    await two.crash()
    async with one.connect() as again:
        assert await store.get("state:alice") == '{"client_id": "alice", "n": 1}'
        assert await name_of(again, {"client_id": "alice", "n": 2}) == "alice"
        assert await store.get("connection:alice") == "node1"
        assert await store.ttl("state:alice") == -1


async def test_a_node_clears_its_own_past(start_node: StartNode, store: Any) -> None:
    """A node that starts again under its name releases what its last life left behind."""
    first = await start_node(node_name="phoenix")
    client = await first.connect()
    await name_of(client, {"client_id": "alice"})
    await first.crash()
    await start_node(node_name="phoenix")

    async def released() -> bool:
        return not await store.exists("connection:alice", "wsfleet:node:phoenix:clients")

    await settled(released, "the name was released")


@pytest.mark.parametrize("wiped", [True, False])
async def test_redis_comes_back(
    start_node: StartNode, store: Any, redis_process: RedisServer, wiped: bool
) -> None:
    """After an outage Redis has the live nodes again, also if it lost them; others are gone."""
    node = await start_node()
    async with node.connect() as stays:
        await name_of(stays, {"client_id": "stays"})
        leaves = await node.connect()
        await name_of(leaves, {"client_id": "leaves"})
        if wiped:
            await store.flushall()
            await store.function_flush()
            await leaves.close()
        else:
            redis_process.stop()
            await settled(lambda: not node.node.store.connected, "the node noticed")
            await leaves.close()
            redis_process.start()
            await node.wait_ready()

        async def told() -> bool:
            keys = [key async for key in store.scan_iter("connection:*")]
            return keys == ["connection:stays"] and await store.smembers(
                "wsfleet:node:node1:clients"
            ) == {"stays"}

        await settled(told, "only the client that stayed is known")
        assert await name_of(stays, {"client_id": "stays"}) == "stays"


async def test_a_full_disk_refuses_publications(
    start_node: StartNode, store: Any, redis_process: RedisServer
) -> None:
    """While Redis can keep nothing it acknowledges nothing; nobody is dropped, nobody let in."""
    node = await start_node()
    async with node.connect() as client:
        await name_of(client, {"client_id": "stays"})
        redis_process.no_space()
        await settled(lambda: not node.node.store.connected, "the node noticed")
        assert await refusal(client, {"n": 1}) == "unavailable"
        assert node.node.not_ready_reason() == "redis is not reachable"
        redis_process.no_space(left=True)
        await node.wait_ready()
        assert await name_of(client, {"n": 2}) == "stays"


@pytest.mark.backends("redis")
async def test_full_memory_refuses_publications(start_node: StartNode, store: Any) -> None:
    """A Redis without room acknowledges nothing; nobody is dropped, and who leaves makes room."""
    node = await start_node()
    async with node.connect() as client:
        await name_of(client, {"client_id": "stays"})
        leaves = await node.connect()
        await name_of(leaves, {"client_id": "leaves"})
        await store.config_set("maxmemory", 1)
        await leaves.close()
        assert await refusal(client, {"n": 1}) == "unavailable"

        async def left() -> bool:
            return not await store.exists("connection:leaves")

        await settled(left, "the node that left is forgotten")
        assert node.node.not_ready_reason() is None
        await store.config_set("maxmemory", 0)
        assert await name_of(client, {"n": 2}) == "stays"


@pytest.mark.backends("redis")
async def test_a_silent_subscription_is_noticed(start_node: StartNode, store: Any) -> None:
    """A pub/sub connection that died silently is replaced; the node is unready meanwhile."""
    one, two = await start_node(), await start_node()
    await store.client_kill_filter(_type="pubsub")
    await asyncio.sleep(0.05)
    await settled(lambda: one.node.broker.subscribed, "node1 subscribed again")
    await settled(lambda: two.node.broker.subscribed, "node2 subscribed again")
    async with one.connect() as sender, two.connect() as other:
        await sender.send("heard?")
        assert json.loads(await asyncio.wait_for(other.recv(), TIMEOUT))["data"] == "heard?"


async def test_invalid_messages_are_ignored(start_node: StartNode, store: Any) -> None:
    """Garbage in a channel of Redis, or in its stream, hurts no node."""
    node = await start_node()
    async with node.connect() as sender, node.connect() as other:
        for garbage in ("", "p", "p x y\nz", "p 0 \nnot msgpack", "j\nnot msgpack", "l\n"):
            await store.execute_command("SPUBLISH", "wsfleet:channel:{broadcast}", garbage)
            await store.execute_command("SPUBLISH", "wsfleet:control", garbage)
        await sender.send("heard")
        assert json.loads(await asyncio.wait_for(other.recv(), TIMEOUT))["data"] == "heard"
        await store.xadd("wsfleet:stream:{broadcast}", {"r": "not msgpack"}, id="2-0")
        await store.hincrby("wsfleet:meta:{broadcast}", "offset", 1)
        await sender.send("still")
        assert json.loads(await asyncio.wait_for(other.recv(), TIMEOUT))["data"] == "still"


@pytest.mark.backends("redis")
async def test_unanswered_probes_make_a_node_unready(start_node: StartNode, store: Any) -> None:
    """Where Redis takes commands but its pub/sub is stuck, the node says so and reconnects."""
    node = await start_node()
    pubsub_ids = [c["id"] for c in await store.client_list(_type="pubsub")]
    assert len(pubsub_ids) == 1
    # A denied channel is silence without an error: what a frozen peer looks like.
    await store.execute_command("ACL", "SETUSER", "node", "resetchannels", "&none")
    await settled(lambda: not node.node.broker.subscribed, "the silence was noticed")
    assert node.node.not_ready_reason() == "not subscribed to the other nodes"
    await store.execute_command("ACL", "SETUSER", "node", "&wsfleet:*")
    await node.wait_ready()


async def test_http_routes(start_node: StartNode, redis_process: RedisServer) -> None:
    """`/health` always answers, `/ready` says whether clients should come, `/metrics` counts."""
    node = await start_node()
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http, node.connect():
        health = (await http.get("/health")).json()
        assert {k: health[k] for k in ("status", "connections", "redis_connected", "hostname")} == {
            "status": "healthy",
            "connections": 1,
            "redis_connected": True,
            "hostname": "node1",
        }
        assert 0 < health["memory_usage"] < 100
        assert health["uptime"] > 0
        assert (await http.get("/ready")).json() == {"ready": True}
        metrics = (await http.get("/metrics")).text
        assert 'wsfleet_connections{protocol="plain"} 1.0' in metrics
        assert "wsfleet_ready 1.0" in metrics
        redis_process.stop()
        await settled(lambda: not node.node.store.connected, "the outage was noticed")
        response = await http.get("/ready")
        assert response.status_code == 503
        assert response.json() == {"ready": False, "reason": "redis is not reachable"}
        assert (await http.get("/health")).json()["status"] == "degraded"


async def test_cpu_usage_is_measured_not_zero(start_node: StartNode) -> None:
    """Under load `/health` reports CPU at each call, however quickly the calls follow."""
    node = await start_node()
    async with httpx.AsyncClient(base_url=node.url, trust_env=False) as http:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            await http.get("/health")
        readings = [(await http.get("/health")).json()["cpu_usage"] for _ in range(3)]
    assert all(reading > 0 for reading in readings)


async def test_a_failed_background_task_stops_the_node(start_node: StartNode) -> None:
    """A defect in a background task ends the process: systemd starts a whole one."""
    node = await start_node()
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:

        async def defect() -> None:
            raise RuntimeError("a defect")

        await node.node._guard(defect())
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert received == [signal.SIGTERM]
