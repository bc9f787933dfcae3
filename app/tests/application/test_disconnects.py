"""The application is told of disconnects, at least once each: also by others, of a dead node."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx
import pytest

from lab.waiting import settled
from tests.support.backend import FAILED, FakeBackend, StartBackend
from tests.support.metrics import value
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import Peer
from tests.support.tokens import token
from wsfleet.application import disconnects, untold
from wsfleet.application.port import Connected, Disconnect, DisconnectedCall
from wsfleet.auth.tokens import Grant
from wsfleet.protocol.centrifuge.messages import RPCRequest
from wsfleet.redis import key_names
from wsfleet.redis.store import UnavailableError

pytestmark = pytest.mark.backends("redis", "memory")

CONNECTED = Connected("ann", info=b'{"name":"Ann"}', meta=b'{"plan":1}')
ANSWERS: dict[str, Any] = {"connect": CONNECTED, "disconnected": None, "rpc x": b"1"}
UNLIMITED = {"user_connection_limit: 2": "user_connection_limit: 0"}


def told(*backends: FakeBackend) -> Counter[str]:
    """Return how often backends were told of each client, by its id."""
    calls = (call for each in backends for call in each.calls.get("disconnected", []))
    return Counter(call.client.id for call in calls)


async def connected(
    stack: AsyncExitStack, node: RunningNode, count: int, given: str = ""
) -> set[str]:
    """Connect some clients; return their ids."""
    for _ in range(count):
        await stack.enter_async_context(Peer(node, token=given))
    return {client.id for client in node.node.users}


def kept(node: RunningNode) -> str:
    """Return the key of what is kept of a node's clients."""
    return key_names.node_disconnects(node.settings.name)


async def test_an_end_is_told_once(start_backend: StartBackend, store: Any) -> None:
    """With code and reason, and with the object that all events of the connection had."""
    node, backend = await start_backend(ANSWERS)
    async with Peer(node) as peer:
        assert peer.socket is not None
        (identifier,) = await store.hkeys(kept(node))
        assert "disconnected" not in backend.calls
        await peer.socket.close(4000, "bye")
    call = await backend.called("disconnected")
    assert (call.client.id, call.code, call.reason) == (identifier, 4000, "bye")
    assert call.client is backend.calls["connect"][0].client
    await settled(lambda: _gone(store, node), "nothing is kept")
    assert told(backend) == {identifier: 1}


async def _gone(store: Any, node: RunningNode) -> bool:
    return not await store.exists(kept(node))


@pytest.mark.parametrize("given", ["", token("bob", info={"a": 1})])
async def test_who_ends_a_connection_does_not_matter(
    start_backend: StartBackend, server_api: httpx.AsyncClient, given: str
) -> None:
    """The API, or the application itself; how the client was identified does not either."""
    answers = ANSWERS | {"rpc leave": Disconnect(4500, "left")}
    node, backend = await start_backend(answers)
    user = "bob" if given else "ann"
    async with Peer(node, token=given):
        await server_api.post(f"{node.url}/api/disconnect", json={"user": user})
        call: DisconnectedCall = await backend.called("disconnected")
        assert (call.client.user, call.code) == (user, 3503)
    async with Peer(node, token=given) as peer:
        await peer.ask(RPCRequest(method="leave"))
        call = await backend.called("disconnected", 2)
        assert (call.client.user, call.code, call.reason) == (user, 4500, "left")


async def test_of_a_client_that_never_connected_nothing_is_told(
    start_backend: StartBackend, server_api: httpx.AsyncClient, store: Any
) -> None:
    """Nor is anything kept of it."""
    unknown = Connected("ann", subs={"unknown:1": Grant()})
    node, backend = await start_backend(ANSWERS | {"connect": unknown})
    peer = Peer(node)
    await peer.open()
    await peer.__aexit__()
    async with Peer(node):  # its connect is refused: a channel is unknown
        pass
    await server_api.post(f"{node.url}/api/block_user", json={"user": "ann"})
    async with Peer(node):
        pass
    await settled(lambda: not node.node.hub, "all have gone")
    await settled(lambda: _gone(store, node), "nothing is kept")
    assert "disconnected" not in backend.calls


async def test_a_failed_call_is_repeated_and_then_given_up(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is not a failure: the application has been told."""
    monkeypatch.setattr(disconnects, "FIRST_PAUSE", 0.01)
    answers: list[Any] = [FAILED, FAILED, None]
    node, backend = await start_backend(ANSWERS | {"disconnected": lambda _: answers.pop(0)})
    async with Peer(node):
        pass
    await backend.called("disconnected", 3)
    await settled(lambda: _gone(store, node), "the application is told")
    backend.answers["disconnected"] = Disconnect(4000, "no")
    async with Peer(node):
        pass
    await backend.called("disconnected", 4)
    await settled(lambda: _gone(store, node), "the application is told")
    backend.answers["disconnected"] = FAILED
    async with Peer(node):
        pass
    await settled(lambda: _gone(store, node), "the call is given up")
    assert len(backend.calls["disconnected"]) == 4 + disconnects.ATTEMPTS
    labels = {"event": "disconnected", "namespace": "", "reason": "exception"}
    assert value(node, "handler_errors_total", **labels) == 2 + disconnects.ATTEMPTS


async def test_a_drain_tells_all_and_no_more_than_a_few_at_once(
    start_backend: StartBackend, store: Any
) -> None:
    """The node stops when the application has been told of all of its clients."""
    node, backend = await start_backend(ANSWERS, UNLIMITED, drain_rate=10_000)

    connected_to_redis: list[bool] = []

    async def slowly(_: Any) -> None:
        await asyncio.sleep(0.3)
        connected_to_redis.append(node.node.store.connected)

    backend.answers["disconnected"] = slowly
    async with AsyncExitStack() as stack:
        names = await connected(stack, node, 150)
        await node.stop()
        assert told(backend) == dict.fromkeys(names, 1)
        assert all(connected_to_redis), "the node runs until the last call has ended"
        assert backend.most_running == disconnects.CONCURRENCY
        assert {call.code for call in backend.calls["disconnected"]} == {3001}
        assert await _gone(store, node)
        assert await store.zrange(key_names.NODES, 0, -1) == []


async def test_what_a_node_cannot_tell_before_it_stops_is_told_by_another(
    start_backend: StartBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the registry, so that it is reaped."""
    monkeypatch.setattr("wsfleet.node.node.FINISH_TIMEOUT", 0.1)
    one, told_by_one = await start_backend(ANSWERS, UNLIMITED, drain_timeout=0.1, node_dead_after=1)
    _, told_by_two = await start_backend(ANSWERS, UNLIMITED, node_dead_after=1)
    told_by_one.hold("disconnected")
    async with AsyncExitStack() as stack:
        names = await connected(stack, one, 5)
        await one.stop()
    await told_by_two.called("disconnected", 5)
    assert told(told_by_two) == dict.fromkeys(names, 1)


@pytest.mark.parametrize("others", [1, 3])
async def test_the_clients_of_a_dead_node_are_told_once_each(
    start_backend: StartBackend, store: Any, others: int
) -> None:
    """By one of the other nodes, with what was known of them and without code."""
    dead, of_dead = await start_backend(ANSWERS, UNLIMITED, node_dead_after=1)
    alive = [await start_backend(ANSWERS, UNLIMITED, node_dead_after=1) for _ in range(others)]
    of_dead.hold("disconnected")  # it is in this process, and dead
    async with AsyncExitStack() as stack:
        names = await connected(stack, dead, 20)
        await dead.crash()

        async def forgotten() -> bool:
            return dead.settings.name not in await store.zrange(key_names.NODES, 0, -1)

        await settled(forgotten, "the dead node is reaped")
        backends = [backend for _, backend in alive]
        await settled(lambda: told(*backends).total() >= 20, "the application is told")
        for node, _ in alive:
            await settled(lambda: _gone(store, node), "nothing is left to tell")  # noqa: B023
        assert told(*backends) == dict.fromkeys(names, 1)
    calls = [call for each in backends for call in each.calls.get("disconnected", [])]
    (client, code, reason) = (calls[0].client, calls[0].code, calls[0].reason)
    assert (client.user, client.info, client.meta) == ("ann", b'{"name":"Ann"}', b'{"plan":1}')
    assert (client.address, client.encoding, client.transport) == ("127.0.0.1", "json", "websocket")
    assert (code, reason, client.headers, client.state) == (0, "", {}, {})
    assert await _gone(store, dead)


async def test_the_next_process_of_a_name_tells_what_the_last_one_left(
    start_backend: StartBackend, store: Any
) -> None:
    """It is back before any other node takes its name for dead."""
    first, of_first = await start_backend(ANSWERS, UNLIMITED, node_name="phoenix")
    of_first.hold("disconnected")
    async with AsyncExitStack() as stack:
        names = await connected(stack, first, 3)
        await first.crash()
    second, of_second = await start_backend(ANSWERS, UNLIMITED, node_name="phoenix")
    await of_second.called("disconnected", 3)
    await settled(lambda: _gone(store, second), "the application is told")
    assert told(of_second) == dict.fromkeys(names, 1)


async def test_redis_loses_what_was_kept(start_backend: StartBackend, store: Any) -> None:
    """The node writes it once more; who is connected is not told of."""
    node, backend = await start_backend(ANSWERS, UNLIMITED)
    async with AsyncExitStack() as stack:
        names = await connected(stack, node, 3)
        await store.flushall()

        async def written() -> bool:
            return set(await store.hkeys(kept(node))) == names

        await settled(written, "written once more")
        assert "disconnected" not in backend.calls


async def test_what_another_program_wrote_is_dropped(
    start_backend: StartBackend, store: Any
) -> None:
    """A node that finds it goes on."""
    await store.zadd(key_names.NODES, {"dead": 1})
    await store.hset(key_names.node_disconnects("dead"), mapping={"a": b"\xff", b"\xfe": b"\x91"})
    node, backend = await start_backend(ANSWERS, node_dead_after=1)

    async def reaped() -> bool:
        return await store.zscore(key_names.NODES, "dead") is None

    await settled(reaped, "the dead node is reaped")
    await settled(lambda: _gone(store, node), "the record is dropped")
    assert "disconnected" not in backend.calls
    assert node.node.not_ready_reason() is None


async def test_without_a_backend_nothing_is_kept(
    start_backend: StartBackend, start_node: StartNode, store: Any
) -> None:
    """Redis has no entry for a client that nobody wants to be told of."""
    for node in (await start_node(), (await start_backend({"rpc x": b"1"}))[0]):
        async with Peer(node, token=token("ann") if node.settings.config else ""):
            assert list(node.node.users)
            assert await _gone(store, node)


async def test_no_more_than_a_few_calls_wait_in_memory(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are read from Redis when these are told; who is connected is not told of."""
    limit(monkeypatch)
    node, backend = await start_backend(ANSWERS, UNLIMITED)
    queue = queue_of(node)
    backend.hold("disconnected")
    async with Peer(node):
        (stays,) = (client.id for client in node.node.users)
        async with AsyncExitStack() as stack:
            names = await connected(stack, node, 30)
        await settled(lambda: len(queue._known) == 1 + 2 + 4, "one is connected, six wait")
        assert len(queue._waiting) == 4
        assert len(await store.hkeys(kept(node))) == 31
        backend.release("disconnected")

        async def only_one() -> bool:
            return bool(await store.hkeys(kept(node)) == [stays])

        await settled(only_one, "all others are told")
        assert told(backend) == dict.fromkeys(names - {stays}, 1)


async def test_a_drain_tells_also_those_left_in_redis(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node stops after the last of them."""
    limit(monkeypatch)
    node, backend = await start_backend(ANSWERS, UNLIMITED, drain_rate=10_000)

    async def slowly(_: Any) -> None:
        await asyncio.sleep(0.01)

    backend.answers["disconnected"] = slowly
    async with AsyncExitStack() as stack:
        names = await connected(stack, node, 30)
        await node.stop()
    assert told(backend) == dict.fromkeys(names, 1)
    assert await store.zrange(key_names.NODES, 0, -1) == []


async def test_what_a_dead_node_has_left_does_not_fill_the_memory(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node that reaps it leaves the rest in Redis, under its own name."""
    limit(monkeypatch)
    node, backend = await start_backend(ANSWERS)
    backend.hold("disconnected")
    record = disconnects._encoder.encode(disconnects.Kept("ann"))
    names = [str(number) for number in range(50)]
    await store.hset(key_names.node_disconnects("dead"), mapping=dict.fromkeys(names, record))
    await queue_of(node).reap("dead")
    assert len(queue_of(node)._waiting) == 4
    backend.release("disconnected")
    await settled(lambda: _gone(store, node), "the application is told")
    assert told(backend) == dict.fromkeys(names, 1)


async def test_those_left_in_redis_are_read_when_it_is_back(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that stops before that is reaped."""
    limit(monkeypatch)
    node, backend = await start_backend(ANSWERS, UNLIMITED)
    backend.hold("disconnected")
    async with AsyncExitStack() as stack:
        names = await connected(stack, node, 10)
    queue, call = queue_of(node), node.node.store.call
    await settled(lambda: len(queue._known) == 6, "six wait")

    async def without_scans(*command: Any, key: str | None = None) -> Any:
        if command[0] == "HSCAN":
            raise UnavailableError
        return await call(*command, key=key)

    monkeypatch.setattr(node.node.store, "call", without_scans)
    backend.release("disconnected")
    await backend.called("disconnected", 6)
    await queue.finish()
    assert node.node.to_be_reaped
    assert told(backend).total() == 6
    monkeypatch.undo()
    await queue.reconcile()
    await settled(lambda: _gone(store, node), "the application is told")
    assert told(backend) == dict.fromkeys(names, 1)


async def test_what_is_told_while_redis_is_repaired_is_told_once(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may go between the moment its record is read and the end of the repair."""
    node, backend = await start_backend(ANSWERS)
    queue = queue_of(node)
    async with AsyncExitStack() as stack, Peer(node) as goes:
        (name,) = queue._known
        (stays,) = await connected(stack, node, 1) - {name}
        keep = queue._keep

        async def keep_slowly(clients: Any) -> None:
            assert goes.socket is not None
            await goes.socket.close()
            await backend.called("disconnected")
            await settled(lambda: not queue._told and name not in queue._known, "it is told")
            await keep(clients)

        await store.hdel(kept(node), stays)
        monkeypatch.setattr(queue, "_keep", keep_slowly)
        await queue.reconcile()
        monkeypatch.undo()
    await settled(lambda: _gone(store, node), "the application is told")
    assert set(told(backend).values()) == {1}


@pytest.mark.parametrize("read", ["reconcile", "_read_on"])
async def test_what_is_being_taken_over_is_told_once(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    """It is in the node's own record already, which the node reads for others that were left."""
    node, backend = await start_backend(ANSWERS)
    queue, call = queue_of(node), node.node.store.call
    record = disconnects._encoder.encode(disconnects.Kept("ann"))
    reading = []

    async def call_slowly(command: str, key: str, *arguments: Any) -> Any:
        if (command, key) == ("HDEL", key_names.UNTOLD_DISCONNECTS):
            reading.append(asyncio.create_task(getattr(queue, read)()))
            if (await asyncio.wait(reading, timeout=0.2))[0]:
                await backend.called("disconnected")
                await settled(lambda: not queue._told and not queue._known, "it is told")
        return await call(command, key, *arguments)

    monkeypatch.setattr(node.node.store, "call", call_slowly)
    for count, client in enumerate(("1", "2"), 1):  # the first is handled when the second is told
        await store.hset(key_names.UNTOLD_DISCONNECTS, client, record)
        await settled(partial(is_told, backend, count), "the application is told")
    await asyncio.gather(*reading)
    assert told(backend)["1"] == 1


def is_told(backend: FakeBackend, count: int) -> bool:
    """Tell whether the application was told of a number of clients."""
    return len(told(backend)) == count


def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two calls run, four wait, and read a few entries at once."""
    for name, number in (("CONCURRENCY", 2), ("MAX_WAITING", 4), ("CHUNK", 3)):
        monkeypatch.setattr(disconnects, name, number)
    monkeypatch.setattr(untold, "CHUNK", 3)


def queue_of(node: RunningNode) -> disconnects.Disconnects:
    """Return the disconnects of a node."""
    queue = node.server._centrifuge.disconnects
    assert queue is not None
    return queue


def test_a_record_of_a_newer_node_can_be_read() -> None:
    """It has more fields at its end."""
    newer = b"\x98" + b"\xa3ann" + b"\xc4\x00" * 2 + b"\xa0" * 4 + b"\xa3new"
    assert disconnects._decoder.decode(newer) == disconnects.Kept("ann")


async def test_of_several_nodes_that_reap_at_once_one_tells(
    start_backend: StartBackend, store: Any
) -> None:
    """All of them read what a dead node has left before any of them removes it."""
    pairs = [await start_backend(ANSWERS) for _ in range(2)]
    record = disconnects._encoder.encode(disconnects.Kept("ann"))
    names = [str(number) for number in range(1200)]  # more than are handled at once
    await store.hset(key_names.node_disconnects("dead"), mapping=dict.fromkeys(names, record))
    reaps = [reap for node, _ in pairs for reap in node.node.registry.on_dead]
    await asyncio.gather(*(reap("dead") for reap in reaps))
    backends = [backend for _, backend in pairs]
    await settled(lambda: told(*backends).total() >= len(names), "the application is told")
    for node, _ in pairs:
        await settled(lambda: _gone(store, node), "nothing is left to tell")  # noqa: B023
    assert told(*backends) == dict.fromkeys(names, 1)
