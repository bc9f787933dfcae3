"""Nodes without a handler leave the disconnects that they find to nodes with one."""

import asyncio
from collections import Counter
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.waiting import settled
from tests.support.backend import FakeBackend, StartBackend
from tests.support.nodes import StartNode
from wsfleet.application import untold
from wsfleet.application.disconnects import Disconnects, Kept, _encoder
from wsfleet.application.port import Client, DisconnectedCall
from wsfleet.application.untold import Untold
from wsfleet.redis import key_names
from wsfleet.redis.store import Store, UnavailableError
from wsfleet.telemetry.metrics import Metrics

pytestmark = pytest.mark.backends("redis", "memory")

RECORD = _encoder.encode(Kept("ann"))


async def test_a_dead_nodes_disconnects_reach_a_handler_that_comes_later(
    start_node: StartNode, start_backend: StartBackend, store: Any
) -> None:
    """Nodes without a handler forget the dead node, and keep what it has left."""
    names = [str(number) for number in range(1200)]  # more than are handled at once
    await store.zadd(key_names.NODES, {"dead": 1})
    await store.hset(key_names.node_disconnects("dead"), mapping=dict.fromkeys(names, RECORD))
    for _ in range(2):
        await start_node(node_dead_after=1)

    async def kept() -> bool:
        alone = await store.zscore(key_names.NODES, "dead") is None
        return alone and len(await store.hkeys(key_names.UNTOLD_DISCONNECTS)) == len(names)

    await settled(kept, "the dead node is forgotten, and its disconnects are kept")
    assert 0 < await store.ttl(key_names.UNTOLD_DISCONNECTS) <= untold.KEPT
    _, backend = await start_backend({"disconnected": None}, node_dead_after=1)
    await backend.called("disconnected", len(names))
    told = Counter(call.client.id for call in backend.calls["disconnected"])
    assert told == dict.fromkeys(names, 1)


async def test_the_next_process_of_a_name_may_have_no_handler(
    start_node: StartNode, start_backend: StartBackend, store: Any
) -> None:
    """What its name has left is told by another node, although the name lives."""
    await store.hset(key_names.node_disconnects("phoenix"), mapping={"1": RECORD, "2": RECORD})
    node = await start_node(node_name="phoenix")
    _, backend = await start_backend({"disconnected": None})
    await backend.called("disconnected", 2)
    assert not await store.exists(key_names.node_disconnects("phoenix"))
    assert not node.node.to_be_reaped


class Cluster:
    """Nodes of three names, with a handler or without, which live as long as a test lets them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._metrics = Metrics()
        self.running: dict[str, Any] = {}
        self.dead: set[str] = set()
        self.connected: dict[str, tuple[str, Client]] = {}
        self.gone: set[str] = set()
        self.told: Counter[str] = Counter()
        self._counter = count()
        self._lives: dict[str, int] = {}

    async def start(self, name: str, *, handler: bool) -> None:
        """Start the next process of a name, after a drain if one runs, and connect a client."""
        if name in self.running:
            await self.stop(name)
        registry = SimpleNamespace(
            on_dead=[], on_unknown=[], on_beat=[], stop_reaping=AsyncMock(return_value=None)
        )
        node: Any = SimpleNamespace(
            settings=SimpleNamespace(name=name),
            registry=registry,
            metrics=self._metrics,
            listening=asyncio.Event(),
            on_connected=[],
            on_drained=[],
            to_be_reaped=False,
        )
        self._lives[name] = life = next(self._counter)
        node.store = SimpleNamespace(call=partial(self._call, name, life))
        node.listening.set()
        backend = FakeBackend({"disconnected": partial(self._tell, name, life)})
        node.events = Disconnects(node, backend.router.calls) if handler else Untold(node)
        self.running[name] = node
        self.dead.discard(name)
        for work in node.on_connected:
            await work()
        if handler:
            client = Client(f"{len(self.connected) + len(self.gone)}", user="ann")
            await node.events.opened(client)
            self.connected[client.id] = name, client

    async def _call(self, name: str, life: int, *command: Any) -> Any:
        if self._lives.get(name) != life:
            raise UnavailableError  # it is dead
        return await self._store.call(*command)

    async def _tell(self, name: str, life: int, call: DisconnectedCall) -> None:
        if self._lives.get(name) == life:
            self.told[call.client.id] += 1

    async def stop(self, name: str) -> None:
        """Stop a node as a roll does: its clients are told of before it has ended."""
        node = self.running.pop(name)
        for client in self._cut(name):
            node.events.tell(DisconnectedCall(client, 3001, ""))
        for work in node.on_drained:
            await work()
        if node.to_be_reaped:
            self.dead.add(name)

    async def crash(self, name: str) -> None:
        """Kill a node, if it runs: nothing that it has begun has an effect any more."""
        if self.running.pop(name, None) is not None:
            del self._lives[name]
            self._cut(name)
            self.dead.add(name)

    async def beat(self, name: str) -> None:
        """Let a node reap those that are dead, if it runs."""
        if (node := self.running.get(name)) is None:
            return
        for dead in sorted(self.dead):
            for reap in node.registry.on_dead:
                await reap(dead)
            self.dead.discard(dead)
        for work in node.registry.on_beat:
            await work()

    def _cut(self, name: str) -> list[Client]:
        cut = {id_: client for id_, (at, client) in self.connected.items() if at == name}
        for id_ in cut:
            del self.connected[id_]
        self.gone |= cut.keys()
        return [*cut.values()]


NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.one_of(
    st.tuples(st.just("start"), NAMES, st.booleans()),
    st.tuples(st.sampled_from(["crash", "beat"]), NAMES, st.none()),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, max_size=25), last=NAMES)
async def test_each_disconnect_is_told_in_any_order_of_rolls_and_deaths(
    steps: list[tuple[str, str, bool | None]], last: str, cluster_store: Store, store: Any
) -> None:
    """As soon as one node with a handler lives; of a client that is connected nothing is told."""
    await store.flushall()
    cluster = Cluster(cluster_store)
    for name in ("a", "b"):
        await cluster.start(name, handler=True)
    for step, name, handler in steps:
        if handler is None:
            await getattr(cluster, step)(name)
        else:
            await cluster.start(name, handler=handler)
    await cluster.start(last, handler=True)
    for name in ("a", "b", "c", last):
        await cluster.beat(name)
    await settled(lambda: cluster.told.keys() >= cluster.gone, "all are told")
    assert cluster.told.keys() == cluster.gone


@pytest.fixture
async def cluster_store(start_node: StartNode) -> Store:
    """A store that is connected to Redis."""
    return (await start_node()).node.store
