"""The Centrifuge protocol with a real SDK, centrifuge-python, on two nodes and a real Redis."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from centrifuge import (  # type: ignore[import-untyped]
    CentrifugeError,
    Client,
    ClientEventHandler,
    ClientState,
    StreamPosition,
    SubscriptionState,
)
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from lab.waiting import settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.sdk import CONFIG, Events, Pair, has, sdk, subscribed
from tests.support.tokens import token
from wsfleet.channels.publication import Record

pytestmark = pytest.mark.backends("redis", "memory")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file with channels of several kinds."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
async def pair(start_node: StartNode, config: Path) -> Pair:
    """Two nodes."""
    return await start_node(config=config), await start_node(config=config)


@pytest.mark.parametrize("protobuf", [False, True])
async def test_publications_reach_every_subscriber_in_order(pair: Pair, protobuf: bool) -> None:
    """On both nodes, with the publisher's info, numbered without a gap."""
    one, two = pair
    async with sdk(one, protobuf=protobuf) as near, sdk(two, protobuf=protobuf) as far:
        subscription, near_events = await subscribed(near, "news")
        _, far_events = await subscribed(far, "news")
        for number in range(50):
            data: Any = {"n": number}
            await subscription.publish(json.dumps(data).encode() if protobuf else data)
        for events in (near_events, far_events):
            await settled(partial(has, events.publications, 50), "50 publications")
            assert events.offsets == list(range(1, 51))
            assert [
                json.loads(data)["n"] if protobuf else data["n"] for data in events.data
            ] == list(range(50))
            info = events.publications[0].pub.info
            assert info is not None
            assert info.client


async def test_json_and_protobuf_clients_hear_each_other(pair: Pair) -> None:
    """The encoding is a connection's own business."""
    one, two = pair
    async with sdk(one) as text, sdk(two, protobuf=True) as binary:
        text_subscription, text_events = await subscribed(text, "mixed")
        binary_subscription, binary_events = await subscribed(binary, "mixed")
        await text_subscription.publish({"from": "text"})
        await binary_subscription.publish(b'{"from": "binary"}')
        await settled(lambda: len(text_events.data) == 2, "text heard both")
        await settled(lambda: len(binary_events.data) == 2, "binary heard both")
        assert text_events.data == [{"from": "text"}, {"from": "binary"}]


def recoveries(node: RunningNode, recovered: str) -> float | None:
    """How many clients a node has counted that came back."""
    labels = {"recovered": recovered}
    return node.node.metrics.registry.get_sample_value("wsfleet_recoveries_total", labels)


async def test_recovery_on_another_node(pair: Pair) -> None:
    """A subscriber whose node is gone gets what it missed from another: in order, nothing twice."""
    one, two = pair
    async with sdk(two) as publisher:
        subscription, _ = await subscribed(publisher, "news")
        # The reader's URL leads to one node and then, as through a balancer, to the other.
        async with sdk(one) as reader:
            _, events = await subscribed(reader, "news")
            for number in range(5):
                await subscription.publish(number)
            await settled(lambda: len(events.data) == 5, "the first five")
            reader._address = reader._address.replace(
                str(one.settings.port), str(two.settings.port)
            )
            await one.crash()
            for number in range(5, 10):
                await subscription.publish(number)
            await settled(lambda: len(events.subscribed) == 2, "the client is subscribed again")
            await settled(lambda: len(events.data) == 10, "the rest arrives")
            assert (events.subscribed[1].was_recovering, events.subscribed[1].recovered) == (
                True,
                True,
            )
            await subscription.publish(10)
            await settled(lambda: len(events.data) == 11, "the client gets publications again")
            assert events.data == list(range(11))
            assert recoveries(two, "true") == 1


async def test_a_partial_recovery_is_not_recovered(pair: Pair, store: Redis) -> None:
    """Too long away, or Redis wiped: `recovered: false`, and no part of what was missed."""
    one, two = pair
    for loss in ("trimmed", "wiped"):
        async with sdk(two) as publisher, sdk(one) as reader:
            _, events = await subscribed(reader, "small:news")
            await publisher.publish("small:news", 0)
            await settled(partial(has, events.publications, 1), "the first publication arrives")
            for protocol in list(one.server.server_state.connections):
                protocol.transport.abort()
            if loss == "wiped":
                await store.flushall()
            for number in range(1, 6):
                await two.node.broker.publish(
                    "small:news",
                    two.node.channels.find("small:news").options,
                    _record(number),
                )
            await settled(partial(has, events.subscribed, 2), "the client is subscribed again")
            again = events.subscribed[1]
            assert (again.was_recovering, again.recovered) == (True, False)
            assert events.data == [0]
            await publisher.publish("small:news", "live")
            await settled(
                partial(has, events.publications, 2), "the client gets publications again"
            )
            assert events.data == [0, "live"]
    assert (recoveries(one, "true"), recoveries(one, "false")) == (0, 2)


def _record(value: Any) -> Record:
    return Record(json.dumps(value).encode(), 0)


async def test_presence_joins_and_leaves(pair: Pair) -> None:
    """Presence is the same from both nodes, and joins and leaves are sent."""
    one, two = pair
    async with sdk(one, token=token("ann")) as ann:
        subscription, events = await subscribed(ann, "room")
        async with sdk(two, token=token("bob", info={"name": "Bob"})) as bob:
            bobs, _ = await subscribed(bob, "room")
            for asking in (subscription, bobs):
                clients = (await asking.presence()).clients
                assert {info.user for info in clients.values()} == {"ann", "bob"}
                stats = await asking.presence_stats()
                assert (stats.num_clients, stats.num_users) == (2, 2)
            await settled(lambda: "bob" in [j.info.user for j in events.joins], "bob joined")
            assert events.joins[-1].info.conn_info == {"name": "Bob"}
        await settled(lambda: [c.info.user for c in events.leaves] == ["bob"], "bob left")
        assert len((await subscription.presence()).clients) == 1


async def test_history_pages(pair: Pair) -> None:
    """Forwards and backwards, page by page."""
    one, _ = pair
    async with sdk(one) as client:
        subscription, _ = await subscribed(client, "book")
        for number in range(1, 11):
            await subscription.publish(number)
        top = await subscription.history(limit=0)
        assert (top.offset, top.publications) == (10, [])
        seen: list[int] = []
        since = None
        while True:
            page = await subscription.history(limit=4, since=since)
            if not page.publications:
                break
            seen += [publication.data for publication in page.publications]
            since = StreamPosition(page.publications[-1].offset, page.epoch)
        assert seen == list(range(1, 11))
        newest = await subscription.history(limit=3, reverse=True)
        assert [publication.data for publication in newest.publications] == [10, 9, 8]


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (lambda client: client.rpc("method", {}), 108),
        (lambda client: client.publish("news", {}), 103),
        (lambda client: client.publish("unknown:news", {}), 102),
        (lambda client: client.presence("quiet:room"), 108),
        (lambda client: client.history("quiet:room"), 108),
        (lambda client: client.history("news"), 103),
    ],
)
async def test_errors_have_the_protocols_codes(
    pair: Pair, work: Callable[[Client], Awaitable[Any]], code: int
) -> None:
    """Refused commands are answered with the codes that SDKs know."""
    async with sdk(pair[0]) as client:
        with pytest.raises(CentrifugeError) as refused:
            await work(client)
        assert refused.value.code == code


async def test_a_subscription_without_permission_ends(pair: Pair) -> None:
    """Error 103 is final for SDKs."""
    async with sdk(pair[0]) as client:
        events = Events()
        subscription = client.new_subscription("closed:room", events=events)
        await subscription.subscribe()
        await settled(lambda: bool(events.unsubscribed), "the client is unsubscribed")
        assert events.unsubscribed[0].code == 103
        assert subscription.state is SubscriptionState.UNSUBSCRIBED


async def test_a_channel_without_history_has_no_offsets(pair: Pair) -> None:
    """It is delivered at most once, and says so."""
    one, two = pair
    async with sdk(one) as publisher, sdk(two) as reader:
        _, events = await subscribed(reader, "quiet:room")
        await publisher.publish("quiet:room", "hello")
        await settled(lambda: events.data == ["hello"], "the publication arrives")
        assert not events.subscribed[0].recoverable


async def test_personal_channel(pair: Pair) -> None:
    """A user with a token hears `#user` without asking, and it recovers."""
    one, two = pair

    class Server(ClientEventHandler):  # type: ignore[misc]
        def __init__(self) -> None:
            self.heard: list[Any] = []

        async def on_publication(self, ctx: Any) -> None:
            self.heard.append((ctx.channel, ctx.pub.data))

    server = Server()
    async with sdk(one, token=token("42"), events=server), sdk(two, token=token("42")) as other:
        await other.publish("#42", {"for": "me"})
        await settled(lambda: server.heard == [("#42", {"for": "me"})], "the publication arrives")


class Ends(ClientEventHandler):  # type: ignore[misc]
    """Notes the codes that a connection ended with."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    async def on_disconnected(self, ctx: Any) -> None:
        """It ended for good."""
        self.codes.append(ctx.code)


@pytest.fixture
async def single_pair(start_node: StartNode, tmp_path: Path) -> Pair:
    """Two nodes where a user has one connection."""
    path = tmp_path / "single.yml"
    path.write_text(CONFIG.replace("{enabled: true}", "{enabled: true, single_connection: true}"))
    return await start_node(config=path), await start_node(config=path)


async def test_a_single_connection_ends_the_others(single_pair: Pair) -> None:
    """On the other node as on the same, for good; other users and those without one may stay."""
    one, two = single_pair
    first, second, others = Ends(), Ends(), Ends()
    async with (
        sdk(one, token=token("42"), events=first),
        sdk(one, token=token("43"), events=others),
        sdk(one, events=others),
        sdk(two, events=others),
        sdk(two, token=token("42"), events=second),
    ):
        await settled(lambda: first.codes == [3504], "ended from the other node")
        async with sdk(two, token=token("42")) as third:
            await settled(lambda: second.codes == [3504], "ended from the same node")
            await third.publish("#42", "here")
        assert others.codes == []


async def test_of_connections_that_come_at_once_one_stays(single_pair: Pair) -> None:
    """They do not end each other: that would leave the user without any."""
    ends = [Ends() for _ in range(10)]
    clients = [
        Client(
            node.url.replace("http", "ws") + "/connection/websocket",
            token=token("42"),
            events=events,
        )
        for node, events in zip(single_pair * 5, ends, strict=True)
    ]
    await asyncio.gather(*(client.connect() for client in clients))
    await settled(lambda: sum(len(end.codes) for end in ends) == 9, "nine connections have ended")
    (left,) = (client for client in clients if client.state is not ClientState.DISCONNECTED)
    await left.ready(5)
    await left.publish("#42", "here")
    assert sorted(end.codes for end in ends) == [[], *[[3504]] * 9]
    await left.disconnect()


async def test_a_connection_that_the_nodes_cannot_hear_of_is_not_made(
    single_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not end when the next one comes: its client is told to come again."""
    monkeypatch.setattr("wsfleet.clients.centrifuge.connecting.SINGLE_CONNECTION_TIMEOUT", 0.1)
    one, _ = single_pair
    monkeypatch.setattr(one.node.dispatcher, "commanded", lambda command: None)
    url = one.url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, proxy=None) as raw:
        await raw.send(json.dumps({"id": 1, "connect": {"token": token("42")}}))
        error = json.loads(await raw.recv())["error"]
        assert (error["code"], error["temporary"]) == (100, True)


async def test_a_bad_token_is_final(pair: Pair) -> None:
    """A token that is not ours ends with 3500, and the SDK does not come back."""
    noted = Ends()
    client = Client(
        pair[0].url.replace("http", "ws") + "/connection/websocket",
        token=jwt.encode({"sub": "eve"}, "x" * 32, algorithm="HS256"),
        events=noted,
    )
    await client.connect()
    await settled(lambda: noted.codes == [3500], "disconnected for good")
    assert client.state is ClientState.DISCONNECTED


async def test_pings_are_answered_and_their_lack_is_noticed(
    start_node: StartNode, tmp_path: Path
) -> None:
    """An SDK answers; a client that does not is disconnected with 3012."""
    path = tmp_path / "config.yml"
    pings = "client:\n  ping_interval: 1s\n  pong_timeout: 0.9s\n"
    path.write_text(CONFIG.replace("client:\n", pings, 1))
    one = await start_node(config=path)
    async with sdk(one) as client:
        await asyncio.sleep(2.5)
        assert client.state is ClientState.CONNECTED
    async with connect(one.url.replace("http", "ws") + "/connection/websocket", proxy=None) as raw:
        await raw.send('{"id": 1, "connect": {}}')
        await raw.wait_closed()
        assert (raw.close_code, raw.close_reason) == (3012, "no pong")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("garbage", 3501),
        ('{"id": 1, "subscribe": {"channel": "news"}}', 3501),
        ('{"id": 1, "connect": {}}\n{"id": 2, "connect": {}}', 3501),
        ('{"id": 1, "connect": {}}\n{"send": {"data": {}}}', 3508),
    ],
)
async def test_bad_frames_end_with_the_protocols_code(pair: Pair, sent: str, code: int) -> None:
    """The close frame alone has code and reason: before it there is no push, as in Centrifugo."""
    url = pair[0].url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, proxy=None) as raw:
        await raw.send(sent)
        frames = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                frames += str(await raw.recv()).splitlines()
        assert not any("disconnect" in frame for frame in frames)
        assert raw.close_code == code
        assert raw.close_reason


async def test_a_refused_subscription_leaves_nothing(pair: Pair) -> None:
    """A client that is refused after the history was read is not present."""
    one, two = pair
    refused = {"channel": "news", "recover": True, "epoch": "x", "offset": 5, "flag": 2}
    async with connect(one.url.replace("http", "ws") + "/connection/websocket", proxy=None) as raw:
        await raw.send('{"id": 1, "connect": {}}')
        await raw.recv()
        await raw.send(json.dumps({"id": 2, "subscribe": refused}))
        assert json.loads(await raw.recv())["error"]["code"] == 112
        assert await two.node.broker.members("news") == {}


async def test_redis_away(pair: Pair, redis_process: RedisServer) -> None:
    """Commands are answered with a temporary error, and subscriptions recover by themselves."""
    one, two = pair
    async with sdk(one) as client, sdk(two) as other:
        subscription, events = await subscribed(client, "news")
        theirs, _ = await subscribed(other, "news")
        await theirs.publish(1)
        redis_process.stop()
        with pytest.raises(CentrifugeError) as refused:
            await subscription.publish("lost?")
        assert refused.value.code == 100
        redis_process.start()
        await one.wait_ready()
        await two.wait_ready()
        await theirs.publish(2)
        await settled(lambda: events.data == [1, 2], "both publications")
        assert len(events.subscribed) == 1


async def test_connecting_while_redis_is_away(pair: Pair, redis_process: RedisServer) -> None:
    """A client with a channel of its own is told to come again, and then is in."""
    redis_process.stop()
    await settled(lambda: not pair[0].node.store.connected, "the outage was noticed")
    client = Client(
        pair[0].url.replace("http", "ws") + "/connection/websocket",
        token=token("42"),
        max_reconnect_delay=0.2,
    )
    await client.connect()
    await asyncio.sleep(0.5)
    assert client.state is ClientState.CONNECTING
    redis_process.start()
    await client.ready(10)
    await client.publish("#42", "in")
    await client.disconnect()


async def test_a_channel_is_left_and_joined_again_and_again(pair: Pair) -> None:
    """A client that subscribes in the moment when the node leaves the channel is served."""
    one, two = pair
    options = two.node.channels.find("news").options
    for pause in (0.0, 0.9, 0.99, 1.0, 1.01, 1.1):
        async with sdk(one) as client:
            await asyncio.sleep(pause)
            _, events = await subscribed(client, "news")
            await two.node.broker.publish("news", options, _record(pause))
            await settled(partial(has, events.publications, 1), "the publication arrives")


@pytest.mark.backends("redis")
async def test_a_pubsub_connection_is_killed(pair: Pair, store: Any) -> None:
    """Publications during the outage are read from the stream: no client notices."""
    one, two = pair
    async with sdk(one) as client, sdk(two) as other:
        _, events = await subscribed(client, "news")
        theirs, _ = await subscribed(other, "news")
        for number in range(20):
            if number % 5 == 0:
                await store.client_kill_filter(_type="pubsub")
            await theirs.publish(number)
        await settled(lambda: len(events.data) == 20, "all publications")
        assert events.data == list(range(20))
        assert events.offsets == list(range(1, 21))
        assert len(events.subscribed) == 1
