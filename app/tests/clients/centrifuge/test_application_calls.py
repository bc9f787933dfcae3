"""The application's events on a real node: which handlers run, their order, their answers."""

import json
import time
from typing import Any

import httpx
import pytest
from centrifuge import CentrifugeError  # type: ignore[import-untyped]

from lab.waiting import settled
from tests.support.backend import FAILED, StartBackend
from tests.support.metrics import value
from tests.support.nodes import RunningNode
from tests.support.peer import JSON, PROTOBUF, Peer
from tests.support.sdk import sdk, subscribed
from tests.support.tokens import token
from wsfleet.application.port import (
    BackendError,
    Connected,
    Disconnect,
    Error,
    Published,
    Renewed,
    Subscribed,
)
from wsfleet.auth.tokens import Grant
from wsfleet.protocol.centrifuge.codec import Codec
from wsfleet.protocol.centrifuge.messages import (
    ConnectRequest,
    PublishRequest,
    Reply,
    RPCRequest,
    RPCResult,
    SubscribeRequest,
    SubscribeResult,
    Unsubscribe,
)

pytestmark = pytest.mark.backends("redis", "memory")

ANN = Connected(user="ann", info=b'{"name":"Ann"}', meta=b'{"plan":1}', data=b'{"hello":true}')
CODECS = pytest.mark.parametrize("codec", [JSON, PROTOBUF], ids=lambda codec: codec.name)


async def connect(peer: Peer, **request: Any) -> Any:
    """Open a connection and send a connect command."""
    await peer.open()
    return await peer.ask(ConnectRequest(**request))


def error(reply: Reply) -> tuple[int, str, bool]:
    """Return code, message and temporariness of an error."""
    assert reply.error is not None, reply
    return reply.error.code, reply.error.message, reply.error.temporary


# Connect.


@CODECS
async def test_the_application_identifies_a_client_without_a_token(
    start_backend: StartBackend, codec: Codec
) -> None:
    """It sees the handshake and the command; its answer is the client's identity."""
    connected = Connected(
        "ann", info=b'{"name":"Ann"}', data=b'{"hello":1}', subs={"room:1": Grant(data=b"[1]")}
    )
    node, backend = await start_backend({"connect": connected})
    peer = Peer(node, codec)
    reply = await connect(peer, data=b'{"key":1}', name="js", version="7", headers={"X-Trace": "5"})
    assert reply.result.data == b'{"hello":1}'
    assert (reply.result.expires, reply.result.ttl) == (False, 0)
    assert reply.result.subs.keys() == {"room:1"}
    assert reply.result.subs["room:1"].data == b"[1]"
    (call,) = backend.calls["connect"]
    assert (call.data, call.name, call.version) == (b'{"key":1}', "js", "7")
    assert call.client.emulated_headers == {"X-Trace": "5"}
    client = call.client
    assert (client.id, client.user, client.encoding) == (reply.result.client, "ann", codec.name)
    assert (client.transport, client.address) == ("websocket", "127.0.0.1")
    assert client.headers["sec-websocket-version"] == "13"
    assert [each.id for each in node.node.users.of("ann")] == [client.id]
    (member,) = (await node.node.broker.members("room:1")).values()
    assert (member.user, member.conn_info) == ("ann", b'{"name":"Ann"}')
    await peer.__aexit__()


async def test_a_token_wins_over_the_application(start_backend: StartBackend) -> None:
    """It is not asked, not even where the token is invalid; it knows the token's meta later."""
    node, backend = await start_backend({"connect": ANN, "rpc who": lambda call: call.client.meta})
    async with Peer(node, token=token("bob", meta={"plan": 2})) as peer:
        assert [each.user for each in node.node.users] == ["bob"]
        assert await peer.result(RPCRequest(method="who")) == RPCResult(b'{"plan":2}')
    peer = Peer(node)
    assert (await connect(peer, token="invalid")).result is None  # noqa: S106 - no secret
    assert peer.close_code == 3500
    assert "connect" not in backend.calls


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_client_without_credentials_is_anonymous_if_that_is_allowed(
    start_backend: StartBackend, allowed: bool
) -> None:
    """Otherwise its connection ends with 3501."""
    anonymous = f"client:\n  allow_anonymous_connect_without_token: {str(allowed).lower()}"
    node, _ = await start_backend({"connect": None}, {"client:": anonymous})
    peer = Peer(node)
    reply = await connect(peer)
    assert (reply.result is not None) == allowed
    if not allowed:
        assert peer.close_code == 3501
    else:
        await peer.__aexit__()


async def test_the_application_refuses_a_connect(start_backend: StartBackend) -> None:
    """By an error, after which the connection is of no use, or by a close with its own code."""
    answers: dict[str, Any] = {"connect": Error(1000, "not today", temporary=True)}
    node, _ = await start_backend(answers)
    peer = Peer(node)
    assert error(await connect(peer)) == (1000, "not today", True)
    await peer.__aexit__()
    answers["connect"] = Disconnect(4501, "sign in first")
    peer = Peer(node)
    await connect(peer)
    assert peer.socket is not None
    assert (peer.close_code, peer.socket.close_reason) == (4501, "sign in first")
    assert value(node, "reply_errors_total", code="application") == 1
    assert value(node, "disconnects_total", code="other") == 1
    assert not list(node.node.users)
    for reason in ("exception", "timeout", "unavailable", "invalid"):
        labels = {"event": "connect", "namespace": "", "reason": reason}
        assert value(node, "handler_errors_total", **labels) == 0, "a refusal is not a failure"


async def test_an_sdk_connects_once_the_application_works_again(
    start_backend: StartBackend,
) -> None:
    """A failure is the temporary error 100, after which SDKs connect again with backoff."""
    attempts: list[Any] = [FAILED, BackendError("late", reason="timeout"), RuntimeError("bug"), ANN]
    node, backend = await start_backend({"connect": lambda _: attempts.pop(0)})
    async with sdk(node):
        assert [each.user for each in node.node.users] == ["ann"]
    assert len(backend.calls["connect"]) == 4
    labels = {"event": "connect", "namespace": ""}
    assert value(node, "handler_errors_total", reason="exception", **labels) == 2
    assert value(node, "handler_errors_total", reason="timeout", **labels) == 1
    assert value(node, "handler_seconds_count", **labels) == 4
    assert value(node, "handlers_running", **labels) == 0
    assert value(node, "reply_errors_total", code="100") == 3


async def test_limits_and_denylist_come_after_the_application(
    start_backend: StartBackend, server_api: httpx.AsyncClient
) -> None:
    """A user that it names has no more connections than any other, and may be blocked."""
    node, _ = await start_backend({"connect": ANN})
    async with Peer(node), Peer(node):
        third = Peer(node)
        await connect(third)
        assert third.close_code == 3504
    await settled(lambda: not list(node.node.users), "all have gone")
    await server_api.post(f"{node.url}/api/block_user", json={"user": "ann"})
    blocked = Peer(node)
    await connect(blocked)
    assert blocked.close_code == 3507


async def test_requested_channels_are_granted_by_nobody_but_the_application(
    start_backend: StartBackend,
) -> None:
    """It sees them; where it identified the client, or decides on subscribes, it alone grants."""
    node, backend = await start_backend({"connect": ANN, "subscribe open": Subscribed()})
    wanted = {name: SubscribeRequest(name) for name in ("one", "open:1")}
    peer = Peer(node)
    assert (await connect(peer, subs=wanted)).result.subs == {}
    assert set(backend.calls["connect"][0].channels) == {"one", "open:1"}
    await peer.__aexit__()
    peer = Peer(node)
    with_token = await connect(peer, token=token("bob"), subs=wanted)
    assert with_token.result.subs.keys() == {"one"}
    await peer.__aexit__()
    assert "subscribe open" not in backend.calls


async def test_an_unknown_channel_of_the_application_is_an_error(
    start_backend: StartBackend,
) -> None:
    """As one in a token is; nothing of the client is left."""
    node, _ = await start_backend({"connect": Connected("ann", subs={"unknown:1": Grant()})})
    peer = Peer(node)
    assert error(await connect(peer))[0] == 102
    assert not list(node.node.users)
    await peer.__aexit__()


async def test_a_slow_answer_to_connect_does_not_count_as_no_connect(
    start_backend: StartBackend,
) -> None:
    """The client has sent its command in time; after a failure it has to go in time again."""
    node, backend = await start_backend(
        {"connect": ANN}, {"client:": "client:\n  stale_close_delay: 0.3s"}
    )
    backend.hold("connect")
    slow, failed = Peer(node), Peer(node)
    await slow.open()
    await slow.send(ConnectRequest())
    await backend.called("connect")
    silent = Peer(node)
    await silent.open()
    await silent.until(lambda: silent.close_code == 3502)  # it opened later, and sent nothing
    backend.release("connect")
    await slow.until(lambda: bool(slow.replies))
    assert slow.replies[0].result is not None
    await slow.__aexit__()
    backend.answers["connect"] = FAILED
    assert error(await connect(failed))[0] == 100
    await failed.until(lambda: failed.close_code == 3502)


# Refresh.


def in_a_second() -> int:
    """Return the moment of the next expiry."""
    return int(time.time()) + 1


async def test_the_server_renews_connections(start_backend: StartBackend) -> None:
    """The client is told of no expiry, and of the new info only through others."""
    renewals = [lambda: Renewed(expire_at=in_a_second(), info=b"2", meta=b"3"), Renewed]
    node, backend = await start_backend(
        {
            "connect": lambda _: Connected("ann", expire_at=in_a_second(), info=b"1"),
            "refresh": lambda _: renewals.pop(0)(),
            "rpc who": lambda call: call.client.info + call.client.meta,
        }
    )
    peer = Peer(node)
    reply = await connect(peer)
    assert (reply.result.expires, reply.result.ttl) == (False, 0)
    await backend.called("refresh", 2)
    assert await peer.result(RPCRequest(method="who")) == RPCResult(b"23")
    (client,) = node.node.users.of("ann")
    assert client.identity.info == b"2"  # type: ignore[attr-defined]
    await settled(lambda: "expiry" not in client._timers._handles, "no expiry")  # type: ignore[attr-defined]
    assert all(each.id for each in peer.replies), "the client is told nothing by itself"
    await peer.__aexit__()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Renewed(expired=True), 3005),
        (Renewed(expire_at=1), 3005),
        (Disconnect(4500, "banned"), 4500),
    ],
)
async def test_the_application_lets_a_connection_end(
    start_backend: StartBackend, answer: Any, code: int
) -> None:
    """It has expired, or the application disconnects it."""
    connected = {"connect": lambda _: Connected("ann", expire_at=in_a_second())}
    node, _ = await start_backend({**connected, "refresh": answer})
    peer = Peer(node)
    await connect(peer)
    await peer.until(lambda: peer.close_code == code)


@pytest.mark.parametrize("answer", [FAILED, Error(403, "no")])
async def test_a_failed_refresh_is_repeated_later(
    start_backend: StartBackend, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stays, whatever happens to the application."""
    monkeypatch.setattr("wsfleet.clients.centrifuge.application_calls.RETRY_RENEWAL", 1)
    answers = {"connect": lambda _: Connected("ann", expire_at=in_a_second()), "refresh": answer}
    node, backend = await start_backend(answers)
    peer = Peer(node)
    await connect(peer)
    await backend.called("refresh", 2)
    assert peer.close_code is None
    assert len(peer.replies) == 1
    await peer.__aexit__()


async def test_the_api_s_refresh_holds_for_a_renewal_under_way(
    start_backend: StartBackend, server_api: httpx.AsyncClient
) -> None:
    """The later decision is the API's, and the client is not told of an expiry."""
    connected = {"connect": lambda _: Connected("ann", expire_at=in_a_second())}
    node, backend = await start_backend({**connected, "refresh": Renewed(expired=True)})
    backend.hold("refresh")
    peer = Peer(node)
    await connect(peer)
    await backend.called("refresh")
    later = int(time.time()) + 500
    await server_api.post(f"{node.url}/api/refresh", json={"user": "ann", "expire_at": later})
    await settled(lambda: len(peer.replies) == 2, "told of the API's refresh")
    backend.release("refresh")
    await settled(lambda: not backend.running, "the handlers have answered")
    assert peer.replies[1].push is not None
    assert not peer.replies[1].push.event.expires  # type: ignore[union-attr]
    assert await peer.result(RPCRequest(method="x")) is None  # it is still there
    assert peer.close_code is None
    await peer.__aexit__()


# Subscribe.


@CODECS
async def test_the_application_decides_on_a_subscribe(
    start_backend: StartBackend, codec: Codec
) -> None:
    """In place of the keys `allow_subscribe_...`; its answer has info, data, expiry, options."""
    grant = Grant(info=b'"chan"', data=b'"welcome"', override={"presence": True})
    node, backend = await start_backend({"subscribe room": Subscribed(grant)})
    async with Peer(node, codec, token("ann", info={"a": 1})) as peer:
        result = await peer.subscribe("room:7", data=b'{"key":1}')
        assert isinstance(result, SubscribeResult)
        assert result.data == b'"welcome"'
        (member,) = (await node.node.broker.members("room:7")).values()
        assert (member.chan_info, member.conn_info) == (b'"chan"', b'{"a":1}')
        (call,) = backend.calls["subscribe room"]
        assert (call.channel, call.name, call.data) == ("room:7", "7", b'{"key":1}')
        assert (call.client.user, call.client.info) == ("ann", b'{"a":1}')


async def test_what_comes_before_the_application_at_a_subscribe(
    start_backend: StartBackend,
) -> None:
    """A private channel without token, a subscription token, a user-limited channel."""
    node, backend = await start_backend({"subscribe room": Subscribed()})
    async with Peer(node, token=token("ann")) as peer:
        assert error(await peer.ask(SubscribeRequest("$room:1")))[0] == 103
        given = token("ann", channel="room:2")
        assert error(await peer.ask(SubscribeRequest("room:2", token="invalid")))[0] == 103  # noqa: S106
        assert await peer.subscribe("room:2", token=given) is not None
        assert await peer.subscribe("room:3#ann,bob") is not None
        assert error(await peer.ask(SubscribeRequest("room:4#bob")))[0] == 103
        assert error(await peer.ask(SubscribeRequest("unknown:1")))[0] == 102
        assert backend.calls == {}
        assert await peer.subscribe("open:1") is not None, "no backend: the channel's own keys"
        assert await peer.subscribe("room:5") is not None
    assert [call.channel for call in backend.calls["subscribe room"]] == ["room:5"]


async def test_the_application_refuses_a_subscribe(start_backend: StartBackend) -> None:
    """Nothing of the subscription is left, so the client may try again."""
    answers: dict[str, Any] = {"subscribe room": Error(403, "not your room")}
    node, _ = await start_backend(answers)
    async with Peer(node, token=token("ann")) as peer:
        assert error(await peer.ask(SubscribeRequest("room:1"))) == (403, "not your room", False)
        answers["subscribe room"] = FAILED
        assert error(await peer.ask(SubscribeRequest("room:1")))[::2] == (100, True)
        answers["subscribe room"] = Subscribed()
        assert await peer.subscribe("room:1") is not None
        answers["subscribe room"] = Disconnect(4001, "come again")
        await peer.ask(SubscribeRequest("room:2"))
        assert peer.close_code == 4001
    await settled(lambda: not list(node.node.users), "the client has left")
    assert await node.node.broker.members("room:1") == {}


async def test_an_sdk_subscribes_once_the_application_works_again(
    start_backend: StartBackend,
) -> None:
    """A failure is temporary; a refusal is final for the subscription."""
    answers: list[Any] = [FAILED, FAILED, Subscribed()]
    node, _ = await start_backend({"subscribe room": lambda _: answers.pop(0)})
    async with sdk(node, token=token("ann")) as client:
        options = {"min_resubscribe_delay": 0.05, "max_resubscribe_delay": 0.1}
        await subscribed(client, "room:1", **options)
    assert answers == []


@pytest.mark.parametrize("renewed", [True, False])
async def test_a_subscription_of_the_application_expires(
    start_backend: StartBackend, renewed: bool
) -> None:
    """With a sub_refresh the server renews it; without, the client is told when it ends."""
    answers: dict[str, Any] = {
        "subscribe room": lambda _: Subscribed(Grant(), expire_at=in_a_second())
    }
    later = [Renewed(expire_at=int(time.time()) + 900, info=b"5"), Renewed(expired=True)]
    if renewed:
        answers["sub_refresh room"] = lambda _: later.pop(0)
    node, backend = await start_backend(answers)
    async with Peer(node, token=token("ann")) as peer:
        result = await peer.subscribe("room:1")
        assert result.expires != renewed
        if not renewed:
            return
        call = await backend.called("sub_refresh room")
        assert (call.channel, call.name) == ("room:1", "1")
        (client,) = node.node.users.of("ann")
        live = client.subscriptions.table.live  # type: ignore[attr-defined]
        await settled(
            lambda: live["room:1"].member.chan_info == b"5", "the subscription is renewed"
        )
        assert not peer.pushes(Unsubscribe, "room:1")
        client.subscriptions._expire_at(live["room:1"], in_a_second())  # type: ignore[attr-defined]
        await peer.until(lambda: bool(peer.pushes(Unsubscribe, "room:1")))
        assert peer.pushes(Unsubscribe, "room:1")[0].code == 2501


# Publish.


@CODECS
async def test_the_application_decides_on_a_publish(
    start_backend: StartBackend, codec: Codec
) -> None:
    """In place of the keys `allow_publish_...`; what it answers is published."""
    answer = Published(b'{"text":"clean"}', tags={"a": "b"})
    node, backend = await start_backend({"publish room": answer, "subscribe room": Subscribed()})
    async with Peer(node, codec, token("ann", info={"a": 1})) as peer:
        await peer.subscribe("room:1")
        assert await peer.result(PublishRequest("room:1", b'{"text":"dirty"}')) is not None
        await peer.until(lambda: bool(peer.data("room:1")))
        (publication,) = (
            reply.push.event for reply in peer.replies if reply.push and reply.push.channel
        )
        assert (publication.data, publication.tags) == (b'{"text":"clean"}', {"a": "b"})  # type: ignore[union-attr]
        assert publication.info.user == "ann"  # type: ignore[union-attr]
        (call,) = backend.calls["publish room"]
        assert (call.channel, call.name, call.data) == ("room:1", "1", b'{"text":"dirty"}')
        assert await peer.result(PublishRequest("open:1", b"1")) is not None


async def test_the_options_of_a_publish_are_the_application_s(start_backend: StartBackend) -> None:
    """The idempotency key, the version and whether it is kept."""
    answers: dict[str, Any] = {"publish room": Published(b"1", idempotency_key="once")}
    node, _ = await start_backend(answers)
    options = node.node.channels.find("room:1").options

    async def kept() -> list[bytes]:
        reading = await node.node.broker.history("room:1", options, 0, 100, max_size=10_000)
        return [entry.record.split(b"\xc4\x01")[1][:1] for entry in reading.entries]

    async with Peer(node, token=token("ann")) as peer:
        for data in (b"1", b"2"):
            answers["publish room"] = Published(data, idempotency_key="once")
            await peer.result(PublishRequest("room:1", b"0"))
        assert await kept() == [b"1"]
        answers["publish room"] = Published(b"3", skip_history=True)
        await peer.result(PublishRequest("room:1", b"0"))
        assert await kept() == [b"1"]
        for data, version in ((b"4", 7), (b"5", 6)):
            answers["publish room"] = Published(data, version=version)
            await peer.result(PublishRequest("room:1", b"0"))
        assert await kept() == [b"1", b"4"]


async def test_the_application_refuses_a_publish(start_backend: StartBackend) -> None:
    """Nothing is published; a payload that no client may publish is refused before it is asked."""
    answers: dict[str, Any] = {"publish room": Error(409, "too late")}
    node, backend = await start_backend(answers)
    async with Peer(node, token=token("ann")) as peer:
        assert error(await peer.ask(PublishRequest("room:1", b"1"))) == (409, "too late", False)
        answers["publish room"] = FAILED
        assert error(await peer.ask(PublishRequest("room:1", b"1")))[::2] == (100, True)
        answers["publish room"] = Published(b"[" * 200 + b"]" * 200)
        assert error(await peer.ask(PublishRequest("room:1", b"1")))[0] == 107
        asked = len(backend.calls["publish room"])
        assert error(await peer.ask(PublishRequest("room:1", b"[" * 200 + b"]" * 200)))[0] == 107
        assert len(backend.calls["publish room"]) == asked
        answers["publish room"] = Disconnect(4999, "enough")
        await peer.ask(PublishRequest("room:1", b"1"))
        assert peer.close_code == 4999
    assert await _history(node, "room:1") == 0


async def _history(node: RunningNode, channel: str) -> int:
    options = node.node.channels.find(channel).options
    reading = await node.node.broker.history(channel, options, 0, 100, max_size=10_000)
    return len(reading.entries)


async def test_the_server_api_asks_nobody(
    start_backend: StartBackend, server_api: httpx.AsyncClient
) -> None:
    """It publishes and subscribes where the application would refuse."""
    refusal = Error(403, "no")
    node, backend = await start_backend({"publish room": refusal, "subscribe room": refusal})
    async with Peer(node, token=token("ann")) as peer:
        for method, request in (
            ("subscribe", {"user": "ann", "channel": "room:1"}),
            ("publish", {"channel": "room:1", "data": 1}),
        ):
            answer = await server_api.post(f"{node.url}/api/{method}", json=request)
            assert "result" in answer.json()
            if method == "subscribe":
                (client,) = node.node.users.of("ann")
                await settled(lambda: len(client.subscriptions.table.live) == 1, "subscribed")  # type: ignore[attr-defined]  # noqa: B023
        await peer.until(lambda: peer.data("room:1") == [b"1"])
    assert backend.calls == {}


# Calls of methods.


@CODECS
async def test_a_call_is_answered(start_backend: StartBackend, codec: Codec) -> None:
    """With the bytes that the method returned, in both encodings."""
    data = b'{"sum":3}' if codec is JSON else b"\x00\xff"
    node, backend = await start_backend({"rpc add": data})
    async with Peer(node, codec, token("ann")) as peer:
        assert await peer.result(RPCRequest(b"[1,2]", "add")) == RPCResult(data)
        (call,) = backend.calls["rpc add"]
        assert (call.method, call.data, call.client.user) == ("add", b"[1,2]", "ann")


async def test_calls_that_have_no_answer(start_backend: StartBackend) -> None:
    """Error 104 for an unknown method, 108 for one that is not enabled, and the method's own."""
    node, _ = await start_backend({"rpc bad": Error(422, "a number"), "rpc fails": FAILED})
    async with Peer(node, token=token("ann")) as peer:
        assert error(await peer.ask(RPCRequest(method="unknown")))[0] == 104
        assert error(await peer.ask(RPCRequest(method="closed:door")))[0] == 108
        assert error(await peer.ask(RPCRequest(method="bad"))) == (422, "a number", False)
        assert error(await peer.ask(RPCRequest(method="fails")))[::2] == (100, True)
    failures = {"event": "rpc", "namespace": "fails", "reason": "exception"}
    assert value(node, "handler_errors_total", **failures) == 1


async def test_the_sdk_calls_a_method(start_backend: StartBackend) -> None:
    """centrifuge-python's `rpc`, its answer and its error."""
    node, _ = await start_backend({"rpc add": b"3", "rpc bad": Error(1999, "no such thing")})
    async with sdk(node, token=token("ann")) as client:
        assert (await client.rpc("add", [1, 2])).data == 3
        with pytest.raises(CentrifugeError, match="no such thing"):
            await client.rpc("bad", json.loads("null"))
