"""The sessions of clients, on real nodes: they come along, and end after the resume window."""

import json
from typing import Any

import pytest

from lab.waiting import settled
from tests.support.backend import FakeBackend, StartBackend
from tests.support.nodes import RunningNode
from tests.support.peer import Peer
from tests.support.redis import RedisServer
from tests.support.tokens import token
from wsfleet import CallError, Session
from wsfleet.application import sessions
from wsfleet.application.port import Connected, RpcCall
from wsfleet.application.session import MAX_SESSION
from wsfleet.protocol.centrifuge.messages import ConnectRequest, RPCRequest

pytestmark = pytest.mark.backends("redis", "memory")

KEY = "wsfleet:session:tab"


async def _set(call: RpcCall) -> bytes:
    call.client.session |= json.loads(call.data)
    await call.client.session.save()
    return b"true"


async def _get(call: RpcCall) -> bytes:
    return json.dumps(call.client.session).encode()


ANSWERS: dict[str, Any] = {"connect": Connected(session="tab"), "rpc set": _set, "rpc get": _get}
UNLIMITED = {"user_connection_limit: 2": "user_connection_limit: 0"}


async def content(peer: Peer) -> Any:
    """Return the session of a client, as its handlers see it."""
    return json.loads((await peer.result(RPCRequest(method="get"))).data)


async def change(peer: Peer, **values: Any) -> None:
    """Set keys of a client's session."""
    reply = await peer.ask(RPCRequest(json.dumps(values).encode(), "set"))
    assert reply.error is None, reply


async def session_of(backend: FakeBackend, peer: Peer) -> Session:
    """Return the session of a client."""
    await content(peer)
    session: Session = backend.calls["rpc get"][-1].client.session
    return session


async def test_a_session_comes_along_to_another_node(
    start_backend: StartBackend, store: Any
) -> None:
    """Also if the first node dies without a word."""
    one, _ = await start_backend(dict(ANSWERS), UNLIMITED)
    two, _ = await start_backend(dict(ANSWERS), UNLIMITED)
    async with Peer(one) as peer:
        assert await content(peer) == {}
        await change(peer, draft="hello", page=7)
        await one.crash()
    async with Peer(two) as peer:
        assert await content(peer) == {"draft": "hello", "page": 7}
    assert await store.hgetall(KEY) == {"draft": '"hello"', "page": "7"}


async def test_clients_of_one_name_share_a_session(start_backend: StartBackend) -> None:
    """Each has what was stored when it connected; of two writes of a key the last one stays."""
    node, backend = await start_backend(dict(ANSWERS), UNLIMITED)
    async with Peer(node) as one, Peer(node) as other:
        await change(one, a=1, b=1)
        assert await content(other) == {}
        await change(other, a=2)
        assert await content(one) == {"a": 1, "b": 1}
        await (await session_of(backend, one)).load()
        assert await content(one) == {"a": 2, "b": 1}
        backend.answers["connect"] = Connected(session="another")
        async with Peer(node) as third:
            assert await content(third) == {}


async def test_the_size_is_that_of_all_clients_together(
    start_backend: StartBackend, store: Any
) -> None:
    """A save that would make the session too large stores nothing."""
    node, backend = await start_backend(dict(ANSWERS), UNLIMITED)
    half = "x" * (MAX_SESSION // 2)
    async with Peer(node) as one, Peer(node) as other:
        await change(one, a=half)
        session = await session_of(backend, other)
        session |= {"b": half, "c": 1}
        with pytest.raises(ValueError, match="at most 16384"):
            await session.save()
        assert await store.hkeys(KEY) == ["a"]
        session |= {"a": 1}
        await session.save()
        assert sorted(await store.hkeys(KEY)) == ["a", "b", "c"]


async def test_a_session_ends_after_its_last_client(
    start_backend: StartBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is renewed as long as one is connected, and expires by itself after the resume window."""
    monkeypatch.setattr(sessions, "RENEWAL_INTERVAL", 0.2)
    monkeypatch.setattr(sessions, "CHUNK", 1)
    node, backend = await start_backend(dict(ANSWERS), UNLIMITED, resume_window=1)

    async def renewed() -> bool:
        return bool(await store.ttl(KEY) <= 2)

    async with Peer(node) as one:
        await change(one, a=1)
        await store.expire(KEY, 60)
        await settled(renewed, "it is renewed")
        async with Peer(node):
            pass
        backend.answers["connect"] = Connected(session="other")
        async with Peer(node) as other:
            await change(other, b=1)
        await settled(lambda: _absent(store, "wsfleet:session:other"), "the other one is gone")
        assert await store.exists(KEY)
    await settled(lambda: _absent(store, KEY), "it is gone")


async def _absent(store: Any, key: str) -> bool:
    return not await store.exists(key)


async def test_a_session_outlives_its_client_by_the_resume_window(
    start_backend: StartBackend, store: Any
) -> None:
    """And by at most two intervals of renewal."""
    node, _ = await start_backend(dict(ANSWERS), resume_window=500)
    async with Peer(node) as peer:
        await change(peer, a=1)
    await settled(lambda: not node.node.hub, "it has gone")
    assert 500 < await store.ttl(KEY) <= 500 + 2 * sessions.RENEWAL_INTERVAL


async def test_a_client_without_a_name_has_an_empty_session(start_backend: StartBackend) -> None:
    """A client with a token has none: nobody has named it."""
    node, backend = await start_backend(dict(ANSWERS))
    async with Peer(node, token=token("ann")) as peer:
        session = await session_of(backend, peer)
        assert (session, session.name) == ({}, "")
        with pytest.raises(RuntimeError, match="with a token"):
            await session.save()


async def test_the_disconnect_handler_has_the_session(
    start_backend: StartBackend, store: Any
) -> None:
    """It may still save it."""

    async def left(call: Any) -> None:
        call.client.session["left"] = call.code
        await call.client.session.save()

    node, backend = await start_backend(ANSWERS | {"disconnected": left})
    async with Peer(node) as peer:
        await change(peer, a=1)
    await backend.called("disconnected")

    async def saved() -> bool:
        return bool(await store.hget(KEY, "left") == "1000")

    await settled(saved, "the session is saved")
    assert await store.hget(KEY, "a") == "1"


async def test_what_another_program_wrote_in_a_session_is_dropped(
    start_backend: StartBackend, store: Any
) -> None:
    """The client connects all the same."""
    await store.hset(KEY, mapping={"a": "1", "b": "not JSON", b"\xff": "1"})
    node, _ = await start_backend(dict(ANSWERS))
    async with Peer(node) as peer:
        assert await content(peer) == {"a": 1}


async def test_a_client_does_not_connect_without_its_session(
    start_backend: StartBackend, store: Any
) -> None:
    """What Redis has is no session, so its client gets the temporary error 100; nothing is left."""
    await store.set(KEY, "not a hash")
    node, backend = await start_backend(ANSWERS | {"disconnected": None})
    peer = Peer(node)
    await peer.open()
    reply = await peer.ask(ConnectRequest())
    assert reply.error is not None
    assert (reply.error.code, reply.error.temporary) == (100, True)
    await peer.__aexit__()
    await settled(lambda: not list(node.node.users), "nothing is left")
    assert "disconnected" not in backend.calls
    assert not _renewed(node)


def _renewed(node: RunningNode) -> set[str]:
    return set(node.server._centrifuge.sessions._open)


async def test_only_connected_clients_are_renewed(start_backend: StartBackend) -> None:
    """No client that has gone stays in the memory."""
    node, _ = await start_backend(dict(ANSWERS))
    async with Peer(node):
        assert _renewed(node) == {client.id for client in node.node.users}
    await settled(lambda: not _renewed(node), "it has gone")


@pytest.mark.backends("redis")
async def test_without_redis_a_save_is_an_error(
    start_backend: StartBackend, redis_process: RedisServer
) -> None:
    """It is temporary, and a second save stores the change."""
    node, backend = await start_backend(dict(ANSWERS), redis_timeout=1.0)
    async with Peer(node) as peer:
        session = await session_of(backend, peer)
        session["a"] = 1
        redis_process.stop()
        with pytest.raises(CallError) as failed:
            await session.save()
        assert failed.value.temporary
        redis_process.start()
        await settled(lambda: node.node.store.connected, "Redis is back")
        await session.save()
        await session.load()
        assert session == {"a": 1}
