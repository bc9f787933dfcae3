"""Nodes on real Sentinels and on a real Redis Cluster, before and after a failover."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from lab.waiting import TIMEOUT, settled, until
from tests.support.api import KEY, Api
from tests.support.command import wsfleet
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.sdk import CONFIG, Events, sdk, subscribed
from tests.support.topologies import MASTER, ClusterTopology, SentinelTopology, ask, started
from wsfleet.config.redis_url import RedisURL
from wsfleet.redis.topology import Topology

CHANNELS = [f"room{number}" for number in range(12)]
"""Enough to be on every primary of a cluster."""


@pytest.fixture
def cluster(processes: None, tmp_path: Path) -> Iterator[ClusterTopology]:
    """Return three primaries and three replicas."""
    with started(ClusterTopology(tmp_path)) as topology:
        yield topology


async def nodes(
    start_node: StartNode,
    tmp_path: Path,
    url: str,
    durability: str = "primary",
    history_size: int = 100,
) -> tuple[RunningNode, RunningNode]:
    """Return two nodes."""
    file = tmp_path / "config.yml"
    head, tail = CONFIG.split("    history_size: 100\n")
    file.write_text(
        f"{head}    history_size: {history_size}\n    durability: {durability}\n{tail}"
        f'http_api: {{key: "{KEY}"}}\n'
    )
    settings = {"config": file, "redis_url": url, "redis_timeout": 2.0}  # a server may hang
    one = await start_node(**settings)
    return one, await start_node(**settings)


class Publisher:
    """A publisher of numbers that repeats each until it is acknowledged."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.errors = 0

    async def __call__(self, channel: str, number: int) -> None:
        """Publish one number."""
        request = {"channel": channel, "data": number, "idempotency_key": f"key{number}"}
        async with asyncio.timeout(TIMEOUT):
            while True:
                response = await self._http.post("/api/publish", json=request)
                if response.status_code == 200 and "error" not in response.json():
                    return
                self.errors += 1
                await asyncio.sleep(0.1)


def api(node: RunningNode) -> httpx.AsyncClient:
    """Return a client of a node's API."""
    headers = {"X-API-Key": KEY}
    return httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False, timeout=10)


@asynccontextmanager
async def conversation(
    one: RunningNode, two: RunningNode, channel: str
) -> AsyncIterator[tuple[Publisher, Events]]:
    """Yield a publisher at the second node, and a subscriber's events at the first."""
    async with sdk(one) as client, api(two) as http:
        _, events = await subscribed(client, channel)
        yield Publisher(http), events


def heard_all(events: Events, count: int) -> bool:
    """Return whether this many publications have arrived."""
    return len(events.data) >= count


async def the_command_reads_it(one: RunningNode, two: RunningNode, folder: Path) -> None:
    """Check that `wsfleet` finds the same Redis by the same URL."""
    url = one.settings.redis_url
    fleet = folder / "fleet.json"
    nodes = {each.settings.name: each.url for each in (one, two)}
    fleet.write_text(json.dumps({"redis_url": url, "base_url": one.url, "nodes": nodes}))
    status = await asyncio.to_thread(wsfleet, "status", "--fleet", fleet, "--json")
    assert status.code == 0, status.stdout + status.stderr
    assert status.document["redis"]["replicas"] >= 2
    clean = await asyncio.to_thread(wsfleet, "check", "state", "--redis", url, "--json")
    assert clean.code == 0, clean.stdout + clean.stderr
    assert clean.document["connections"] == 3
    await two.node.store.call("SET", "connection:orphan", "node9")
    found = await asyncio.to_thread(wsfleet, "check", "state", "--redis", url, "--json")
    assert found.document["orphans_by_kind"] == {"connection_of_dead_node": 1}
    await two.node.store.call("DEL", "connection:orphan")


async def everything_works(one: RunningNode, two: RunningNode, folder: Path) -> None:
    """Check broadcast, names, history, presence and the list of channels across nodes."""
    async with one.connect() as sender, two.connect() as other, two.connect() as rival:
        await sender.send('{"client_id": "alice"}')
        assert json.loads(await sender.recv())["client_id"] == "alice"
        assert json.loads(await other.recv())["data"] == {"client_id": "alice"}
        await rival.recv()
        await rival.send('{"client_id": "alice"}')
        assert json.loads(await rival.recv())["client_id"] != "alice", "the name is taken"
        assert await two.node.store.call("GET", "connection:alice") == b"node1"
        await the_command_reads_it(one, two, folder)
    async with sdk(one) as first, sdk(two) as second, api(two) as http:
        publish, call = Publisher(http), Api(http)
        heard = {name: (await subscribed(first, name))[1] for name in CHANNELS}
        for number in range(3):
            for name in CHANNELS:
                await publish(name, number)
        for name, events in heard.items():
            await settled(partial(heard_all, events, 3), f"{name} heard everything")
            assert events.data == [0, 1, 2]
            assert events.offsets == [1, 2, 3]
        subscription, _ = await subscribed(second, CHANNELS[0])
        assert len((await subscription.presence()).clients) == 2
        assert [p.data for p in (await subscription.history(limit=2)).publications] == [0, 1]
        assert set((await call("channels"))["channels"]) >= set(CHANNELS)


async def test_nodes_on_sentinel(
    sentinel: SentinelTopology, start_node: StartNode, tmp_path: Path
) -> None:
    """Every feature works on the primary that the Sentinels name."""
    await everything_works(*await nodes(start_node, tmp_path, sentinel.url), tmp_path)


async def test_nodes_on_a_redis_cluster(
    cluster: ClusterTopology, start_node: StartNode, tmp_path: Path
) -> None:
    """Every feature works across primaries; a crashed node's clients are removed."""
    one, two = await nodes(start_node, tmp_path, cluster.url)
    assert len(one.node.store.primaries) == 3
    await everything_works(one, two, tmp_path)
    async with one.connect() as client:
        await client.send('{"client_id": "bob"}')
        await client.recv()
        await one.crash()

    async def released() -> bool:
        return await two.node.store.call("GET", "connection:bob") is None

    await settled(released, "the dead node's client was released")


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_failover_loses_and_doubles_nothing(
    sentinel: SentinelTopology, start_node: StartNode, tmp_path: Path, how: str
) -> None:
    """With `durability: replicated` acknowledged messages arrive once, in order."""
    one, two = await nodes(start_node, tmp_path, sentinel.url, "replicated")
    async with conversation(one, two, "room") as (publish, events):
        old = sentinel.primary
        for number in range(60):
            if number == 20:
                old.kill() if how == "killed" else old.freeze()
            await publish("room", number)
        await settled(lambda: len(events.data) >= 60, "everything arrived")
        assert events.data == list(range(60))
        assert publish.errors, "the failover was felt"
        await asyncio.to_thread(sentinel.wait_for_failover, old)
        if how == "frozen":
            old.thaw()
        else:
            old.start()
        await asyncio.to_thread(until, lambda: ask(old, "ROLE")[0] == "slave", "it is a replica")
        for number in range(60, 70):
            await publish("room", number)
        await settled(lambda: len(events.data) >= 70, "the rest arrived")
        assert events.data == list(range(70))
        assert len(events.subscribed) == 1, "the client never had to subscribe again"


def replaced(sentinel: SentinelTopology, how: str) -> None:
    """Replace a primary that answers before, during and after the failover."""
    old = sentinel.primary
    if how == "by hand":
        ask(sentinel.sentinels[0], "SENTINEL", "FAILOVER", MASTER)
    else:
        old.freeze()
        until(partial(in_failover, sentinel), "a Sentinel leads a failover")
        old.thaw()
    sentinel.wait_for_failover(old)
    until(lambda: ask(old, "ROLE")[0] == "slave", "the old primary follows the new one")


def in_failover(sentinel: SentinelTopology) -> bool:
    """Return whether one of the Sentinels is replacing the primary."""
    states = [ask(each, "SENTINEL", "MASTER", MASTER) for each in sentinel.sentinels]
    return any("failover_in_progress" in state["flags"] for state in states)


@pytest.mark.parametrize("how", ["by hand", "because it hesitated"])
async def test_a_primary_that_is_alive_is_replaced(
    sentinel: SentinelTopology, start_node: StartNode, tmp_path: Path, how: str
) -> None:
    """What it accepts meanwhile, and one replica has, is not acknowledged: another is promoted."""
    url = sentinel.url
    one, two = await nodes(start_node, tmp_path, url, "replicated", history_size=100_000)
    acknowledged: list[int] = []
    done = asyncio.Event()

    async def publish(node: RunningNode, number: int) -> None:
        async with api(node) as http:
            while not done.is_set():
                request = {"channel": "room", "data": number}
                answer = await http.post("/api/publish", json=request)
                if answer.status_code == 200 and "error" not in answer.json():
                    acknowledged.append(number)
                number += 2

    tasks = [asyncio.create_task(publish(node, n)) for n, node in enumerate((one, two))]
    await settled(lambda: len(acknowledged) > 100, "messages are acknowledged")
    await asyncio.to_thread(replaced, sentinel, how)
    before = len(acknowledged)
    await settled(lambda: len(acknowledged) > before + 100, "messages are acknowledged again")
    done.set()
    await asyncio.gather(*tasks)
    async with api(one) as http:
        history = await Api(http)("history", channel="room", limit=100_000)
    kept = {publication["data"] for publication in history["publications"]}
    assert not set(acknowledged) - kept


async def test_a_replica_is_missing(
    sentinel: SentinelTopology, start_node: StartNode, tmp_path: Path
) -> None:
    """The other one is enough while the Sentinels keep the primary."""
    one, two = await nodes(start_node, tmp_path, sentinel.url, "replicated")
    async with conversation(one, two, "room") as (publish, events):
        for number, change in enumerate((RedisServer.freeze, RedisServer.thaw, RedisServer.kill)):
            change(sentinel.replicas[0])
            await publish("room", number)
        await settled(lambda: len(events.data) == 3, "everything arrived")
        assert events.data == [0, 1, 2]
        assert publish.errors == 0
        for each in sentinel.sentinels[:2]:
            each.freeze()
        request = {"channel": "room", "data": 3}
        async with api(two) as http:
            answer = await http.post("/api/publish", json=request)
        assert answer.json()["error"]["code"] == 100, "one Sentinel alone is not believed"


async def test_connections_to_the_sentinels_are_kept(
    sentinel: SentinelTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries share them; a Sentinel that was restarted, or was silent, gets another one."""

    def opened() -> list[int]:
        return [
            ask(each, "INFO", "stats")["total_connections_received"] for each in sentinel.sentinels
        ]

    def connected() -> int:
        return sum(ask(each, "INFO", "clients")["connected_clients"] for each in sentinel.sentinels)

    async with aclosing(Topology(RedisURL.parse(sentinel.url), timeout=1.0)) as topology:
        (shard,) = await topology.discover()
        before = opened()
        for _ in range(20):
            assert await topology.still_names(shard)
        peers = len(sentinel.sentinels)  # they connect to each other as well
        assert all(now - then <= peers for now, then in zip(opened(), before, strict=True))
        count = connected()
        monkeypatch.setattr("wsfleet.redis.topology.IDLE", 0.1)
        assert await topology.still_names(shard)
        await settled(lambda: connected() == count - 3, "they are closed when they are idle")
        monkeypatch.undo()
        assert await topology.still_names(shard)
        restarted, *others = sentinel.sentinels
        restarted.kill()
        await asyncio.to_thread(restarted.start)
        others[0].freeze()
        assert await topology.still_names(shard), "two of three answer"
        others[0].thaw()
        others[1].freeze()
        assert await topology.still_names(shard), "the other two do"
        others[0].freeze()
        assert not await topology.still_names(shard), "one alone is not believed"


@pytest.mark.parametrize("once", [{"idempotency_key": "key1"}, {"version": 1}])
async def test_an_unreplicated_publication_is_not_delivered(
    sentinel: SentinelTopology, start_node: StartNode, tmp_path: Path, once: dict[str, object]
) -> None:
    """Nor is it acknowledged when it is repeated, on either node, before a replica confirms it."""
    one, two = await nodes(start_node, tmp_path, sentinel.url, "replicated")
    async with sdk(one) as client, api(one) as http, api(two) as other_http:
        subscription, events = await subscribed(client, "room")
        for replica in sentinel.replicas:
            replica.freeze()
        request = {"channel": "room", "data": 1, **once}
        answer = await other_http.post("/api/publish", json=request)
        assert answer.json()["error"]["code"] == 100, "not acknowledged"
        assert (await subscription.history(limit=10)).publications == []
        answer = await http.post("/api/publish", json=request)
        assert answer.json()["error"]["code"] == 100, "not acknowledged either"
        assert events.data == []
        for replica in sentinel.replicas:
            replica.thaw()
        await two.wait_ready()

        async def acknowledged() -> bool:
            answer = await other_http.post("/api/publish", json=request)
            return bool(answer.json().get("result", {}).get("offset") == 1)

        await settled(acknowledged, "the repeated publication is acknowledged, as the first")
        await settled(lambda: events.data == [1], "it is heard")
        assert [each.data for each in (await subscription.history(limit=10)).publications] == [1]


async def test_a_restart_leaves_numbers_out(
    redis_process: RedisServer, start_node: StartNode, tmp_path: Path
) -> None:
    """After a restart of Redis offsets skip ahead, so none repeats; recovery works."""
    one, two = await nodes(start_node, tmp_path, redis_process.url)
    async with conversation(one, two, "room") as (publish, events):
        await publish("room", 1)
        await settled(lambda: events.data == [1], "the first arrived")
        redis_process.kill()
        redis_process.start()
        await publish("room", 2)
        await publish("room", 3)
        await settled(lambda: events.data == [1, 2, 3], "the others arrived")
        assert events.offsets[1] > 1000
        assert events.offsets[2] == events.offsets[1] + 1
        epoch = events.subscribed[0].stream_position.epoch
        hello = {"id": 1, "connect": {}}
        wanted = {"channel": "room", "recover": True, "epoch": epoch, "offset": 1}
        url = two.url.replace("http", "ws") + "/connection/websocket"
        async with connect(url, proxy=None) as late:
            await late.send(json.dumps(hello))
            await late.recv()
            await late.send(json.dumps({"id": 2, "subscribe": wanted}))
            answer = json.loads(await late.recv())["subscribe"]
        assert answer["recovered"]
        assert [publication["data"] for publication in answer["publications"]] == [2, 3]


async def test_a_cluster_loses_a_primary(
    cluster: ClusterTopology, start_node: StartNode, tmp_path: Path
) -> None:
    """The replica takes over, and every channel continues."""
    one, two = await nodes(start_node, tmp_path, cluster.url, "replicated")
    async with sdk(one) as client, api(two) as http:
        publish = Publisher(http)
        heard = {name: (await subscribed(client, name))[1] for name in CHANNELS}
        old = cluster.owner("wsfleet:stream:{room0}")
        for number in range(20):
            if number == 5:
                old.kill()
                await asyncio.to_thread(
                    until,
                    lambda: cluster.owner("wsfleet:stream:{room0}") is not old,
                    "the replica took over",
                )
                old.start()  # as its replica: without one nothing is acknowledged
            await asyncio.gather(*(publish(name, number) for name in CHANNELS))
        for name, events in heard.items():
            await settled(partial(heard_all, events, 20), f"{name} heard everything")
            assert events.data == list(range(20))


async def test_slots_of_a_cluster_move(
    cluster: ClusterTopology, start_node: StartNode, tmp_path: Path
) -> None:
    """A channel whose slot moves to another primary is still delivered."""
    one, two = await nodes(start_node, tmp_path, cluster.url)
    async with conversation(one, two, "room0") as (publish, events):
        await publish("room0", 0)
        source = cluster.owner("wsfleet:stream:{room0}")
        target = next(
            s for s in cluster.servers if ask(s, "ROLE")[0] == "master" and s is not source
        )
        slot = ask(source, "CLUSTER", "KEYSLOT", "{room0}")
        await asyncio.to_thread(cluster.move_slot, slot, source, target)
        for number in range(1, 10):
            await publish("room0", number)
        await settled(lambda: len(events.data) >= 10, "everything arrived")
        assert events.data == list(range(10))
