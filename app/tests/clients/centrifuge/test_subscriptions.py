"""Every way to end a subscription, in any order, with a Redis that answers when it is told to.

The parts are the node's own; only Redis and the sockets are played, so that hypothesis decides what
happens between a command and its answer.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.backend import FakeBackend
from tests.support.tokens import SECRET
from wsfleet.application import port
from wsfleet.application.port import Disconnect, Error, SubscribeCall, Subscribed
from wsfleet.auth.tokens import Grant
from wsfleet.broker import control
from wsfleet.channels import publication
from wsfleet.channels.publication import Record
from wsfleet.clients.centrifuge.client import CentrifugeClient
from wsfleet.clients.centrifuge.endpoint import CLOSES, Centrifuge
from wsfleet.cluster.client_names import new_client_id
from wsfleet.config.schema import ChannelOptions
from wsfleet.config.settings import Settings
from wsfleet.hub.connection import Connection
from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.store import UnavailableError
from wsfleet.transports.outbox import Limits
from wsfleet.transports.transport import Framing

CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  channel_limit: 3
channel:
  without_namespace: &open
    presence: true
    join_leave: true
    force_push_join_leave: true
    history_size: 10
    history_ttl: 300s
    force_recovery: true
    allow_subscribe_for_client: true
  namespaces:
    - name: plain
      join_leave: true
      allow_subscribe_for_client: true
"""
USERS = ("ann", "bob")
CHANNELS = ("one", "two", "plain:three")
TOKENS = ("", "first", "second")
EPOCH = b"epoch"


class FakeRedis:
    """Runs commands in their order, each when it is told to; then the caller gets the answer.

    `told` are the members of each channel as the joins and leaves say that were told.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self.presence: dict[str, set[str]] = {}
        self.told: dict[str, set[str]] = {}
        self.denied: set[str] = set()
        self.failed = self.away = False

    async def call(self, *command: Any, key: str | None = None) -> Any:
        """As `Store.call`; what nobody in these tests asks for is 1."""
        if command[0] == "EXISTS":
            return await self._answered(lambda: int(command[1] in self.denied))
        if command[0] == "SPUBLISH":
            return await self._answered(lambda: self._hear(*command[1:]))
        return await self._answered(lambda: 1)

    def _hear(self, redis_channel: str, message: bytes) -> None:
        kind, _, member = message.partition(b"\n")
        told = self.told.setdefault(key_names.channel_name(redis_channel), set())
        change = told.add if kind == b"j" else told.discard
        change(publication.decode_member(member).client)

    async def function(self, name: str, names: list[str], *args: Any, **options: bool) -> Any:
        """As `Store.function`."""
        members = self.presence.setdefault(names[0], set())
        run: dict[str, Callable[[], Any]] = {
            "join": lambda: members.add(args[0]),
            "leave": lambda: members.discard(args[0]),
            "history": lambda: [0, EPOCH, [], 0],
            "claim": lambda: args[0].encode(),
        }
        return await self._answered(run.get(name, lambda: 1))

    async def _answered(self, run: Callable[[], Any]) -> Any:
        if self.away:
            raise UnavailableError
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((future, run))
        return await future

    def answer(self, count: int) -> None:
        """Run the next commands."""
        for _ in range(min(count, len(self.waiting))):
            future, run = self.waiting.popleft()
            result = run()
            if not future.done():
                future.set_result(result)

    def fail(self) -> None:
        """Lose the connection: what waits is not run."""
        self.failed = self.failed or bool(self.waiting)
        while self.waiting:
            future, _ = self.waiting.popleft()
            if not future.done():
                future.set_exception(UnavailableError())


LINES = Framing("lines", text=lambda payload: payload + b"\n", binary=lambda payload: payload)


class Peer:
    """A client with a transport of its own, which handles one message after the other.

    `view` is what the client believes to be subscribed to, from what it was told.
    """

    buffered = address = 0
    paused = False
    framing = shared_framing = LINES

    def __init__(self, centrifuge: Centrifuge, user: str) -> None:
        known = port.Client("", user) if centrifuge.router else None
        self.node = centrifuge.node
        self.writer: Peer | None = self
        self.connection = Connection(
            self,
            client_id=new_client_id(),
            limits=Limits(),
            closes=CLOSES,
        )
        self.client = CentrifugeClient(
            centrifuge,
            self.connection,
            centrifuge.fanout.format(centrifuge.codecs["json"], LINES),
            app_pings=True,
            known=known,
        )
        self.user = user
        self.numbers = itertools.count(1)
        self.asked: dict[int, dict[str, Any]] = {}
        self.answers: Counter[int] = Counter()
        self.view: set[str] = set()
        self.heard: list[tuple[str, Any]] = []
        self.messages: deque[str] = deque()
        self.worker: asyncio.Task[None] | None = None
        self.node.hub.add(self.connection)

    # As a transport.

    def limit_outbox(self, limits: Limits) -> None:
        """Wait for nothing: what is written is taken."""

    async def drained(self) -> None:
        """Return at once, for the same reason."""

    def discard_outbox(self) -> None:
        """Forget nothing."""

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def write(self, frames: bytes, /) -> None:
        """Read what the server says."""
        for line in frames.splitlines():
            self._hear(json.loads(line))

    def stop_keepalive(self) -> None:
        """Send no pings: there were none."""

    def start_close(self, code: int, reason: str) -> None:
        """The server closes."""
        self.writer = None
        self.view.clear()
        self.work()

    def _hear(self, reply: dict[str, Any]) -> None:
        if "id" in reply:
            self._answered(reply)
            return
        push = reply.get("push", {})
        channel = push.get("channel", "")
        if "pub" in push:
            assert channel in self.view, f"a publication in {channel}, which is not subscribed to"
            self.heard.append((channel, push["pub"]["data"]))
        elif "subscribe" in push:
            assert channel not in self.view
            self.view.add(channel)
        elif "unsubscribe" in push:
            assert channel in self.view, f"{channel} is ended twice, or was not known"
            self.view.remove(channel)

    def _answered(self, reply: dict[str, Any]) -> None:
        number = reply["id"]
        self.answers[number] += 1
        assert self.answers[number] == 1, f"{self.asked[number]} is answered twice"
        if "connect" in reply:
            self.view |= reply["connect"].get("subs", {}).keys()
        elif "subscribe" in reply:
            self.view.add(self.asked[number]["subscribe"]["channel"])
        elif "unsubscribe" in reply:
            self.view.discard(self.asked[number]["unsubscribe"]["channel"])

    # As a client.

    def send(self, **command: Any) -> None:
        """Send one command."""
        number = next(self.numbers)
        self.asked[number] = command
        self.messages.append(json.dumps({"id": number, **command}))
        self.work()

    def vanish(self) -> None:
        """Lose the connection."""
        self.start_close(1006, "lost")

    def work(self) -> None:
        """Carry out what was sent, and the end."""
        if self.worker is None:
            self.worker = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        while self.messages and self.writer:
            await self.client.receive(self.messages.popleft())
        if self.writer:
            self.worker = None
            return
        self.connection.closed(1006, "lost")
        self.node.hub.remove(self.connection)
        await self.client.left()
        await self.node.client_names.close(self.connection)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return self.worker is None or self.worker.done()


class Stage:
    """A node with a played Redis, and its clients; with `asks`, an application that is asked.

    The application answers in the order of the commands to Redis. Some of its answers are refusals.
    """

    def __init__(self, config: Path, *, asks: bool = False) -> None:
        self.redis = FakeRedis()
        grant = Subscribed(Grant(info=b"1"))
        refusals: list[Any] = [Error(403, "no"), Disconnect(4000, "go")]
        answers = itertools.cycle([grant, grant, refusals[0], grant, refusals[1]])

        async def answer(_: SubscribeCall) -> Any:
            return await self.redis._answered(lambda: next(answers))

        backend = FakeBackend({"subscribe ": answer, "subscribe plain": answer})
        self.node = Node(Settings(config=config, node_name="node"))
        self.node.store.call = self.redis.call  # type: ignore[method-assign]
        self.node.store.function = self.redis.function  # type: ignore[method-assign, assignment]
        self.centrifuge = Centrifuge(self.node)
        if asks:
            self.centrifuge.route(backend.router)
        self.node.broker.followed._subscriber.subscribe = self.confirm  # type: ignore[method-assign, assignment]
        self.peers = [Peer(self.centrifuge, user) for user in ("ann", "ann", "bob")]
        self.numbers = itertools.count()
        for peer in self.peers:
            subs: dict[str, Any] = {CHANNELS[0]: {}} if peer is self.peers[0] else {}
            claims = {"sub": peer.user, "jti": peer.user, "exp": int(time.time()) + 600}
            peer.send(connect={"token": token(**claims, subs=subs)})

    def confirm(self, redis_channel: str) -> None:
        """Hear from Redis that it sends what is published in a channel."""
        asyncio.get_running_loop().call_soon(self.node.broker.followed._confirmed, redis_channel)

    def reconnect(self) -> None:
        """Lose the connections to Redis, and get others."""
        self.redis.fail()
        for name in self.node.broker.followed._channels:
            self.confirm(key_names.channel(name))

    def command(self, **fields: Any) -> None:
        """Hear a command of the server's API."""
        self.node.users.commanded(control.UserCommand(**fields))

    def publish(self, channel: str) -> int:
        """Hear a publication from Redis; its data."""
        number = next(self.numbers)
        record = publication.encode(Record(str(number).encode(), 0))
        self.node.broker.followed._hear(key_names.channel(channel), b"p 0 0 \n" + record)
        return number

    def subscriptions(self, channel: str) -> list[Peer]:
        """Return the subscribers of a channel."""
        return [peer for peer in self.peers if channel in peer.client.subscriptions.table.live]

    async def settle(self) -> None:
        """Let everything come to its end, with a Redis that answers."""
        for _ in range(1000):
            for peer in self.peers:
                if peer.worker and peer.worker.done():
                    peer.worker.result()
            self.redis.answer(100)
            await asyncio.sleep(0)
            node = self.node
            works = [
                self.centrifuge.background,
                node.users._background,
                node.broker.followed._background,
            ]
            busy = any(work._tasks for work in works) or not all(peer.idle for peer in self.peers)
            if not busy and not self.redis.waiting:
                return
        raise AssertionError("something never ends")

    async def check(self) -> None:
        """Counts, topics and presence are right, clients know it, and are served."""
        node, topics = self.node, Counter[str]()
        for peer in self.peers:
            assert not peer.client.subscriptions.table.reserved
            assert peer.view == peer.client.subscriptions.table.live.keys()
            timers = {"ping", "expiry"} if peer.client.connected else {"stale"}
            assert not peer.writer or peer.client._timers._handles.keys() == timers
            assert (peer.client in node.users) == bool(peer.writer and peer.client.connected)
            if peer.writer:
                assert peer.answers.keys() == peer.asked.keys(), "a command has no answer"
            topics.update(f"json lines publications {channel}" for channel in peer.view)
            topics.update(f"json lines members {name}" for name in peer.view if ":" not in name)
        assert {topic: len(there) for topic, there in node.hub._topics.items()} == topics
        for channel in CHANNELS:
            there = self.subscriptions(channel)
            following = node.broker.followed._channels.get(channel)
            assert (following.followers if following else 0) == len(there), channel
            present = self.redis.presence.get(key_names.presence(channel), set())
            clients = {peer.client.id for peer in there}
            if not self.redis.failed:
                assert present == (clients if ":" not in channel else set()), channel
                assert self.redis.told.get(channel, set()) == clients, channel
            for peer in self.peers:
                peer.heard.clear()
            number = self.publish(channel)
            await asyncio.sleep(0.002)
            heard = [peer for peer in self.peers if peer.heard]
            assert heard == there
            assert all(peer.heard == [(channel, number)] for peer in heard)


def token(**claims: Any) -> str:
    """A token of either kind."""
    return jwt.encode(claims, SECRET, algorithm="HS256")


def subscription_token(user: str, channel: str, name: str) -> str:
    """A subscription token with a `jti`; none for ""."""
    return token(sub=user, channel=channel, jti=name) if name else ""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with a channel that has everything, and one that only tells of joins."""
    path = tmp_path_factory.mktemp("subscriptions") / "config.yml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(autouse=True)
def no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel without subscribers is left at once, so that this happens within an example."""
    monkeypatch.setattr("wsfleet.broker.following.LINGER", 0)


def act(stage: Stage, step: tuple[Any, ...]) -> None:
    """Do one thing to the node."""
    match step:
        case ("subscribe", number, channel, name):
            peer = stage.peers[number]
            given = subscription_token(peer.user, channel, name)
            recover = {"recover": True, "epoch": EPOCH.decode(), "offset": 0} if name else {}
            peer.send(subscribe={"channel": channel, "token": given, **recover})
        case ("unsubscribe", number, channel):
            stage.peers[number].send(unsubscribe={"channel": channel})
        case ("sub_refresh", number, channel, name):
            peer = stage.peers[number]
            given = subscription_token(peer.user, channel, name or "third")
            peer.send(sub_refresh={"channel": channel, "token": given})
        case ("vanish", number):
            stage.peers[number].vanish()
        case ("expire" | "lose" as how, number, channel):
            client = stage.peers[number].client
            if subscription := client.subscriptions.table.live.get(channel):
                if how == "expire":
                    client.subscriptions._expired(subscription)
                else:
                    client.subscriptions.lost(channel)
        case ("lost", channel):
            stage.centrifuge.lost(channel)
        case ("api", do, user, channel):
            stage.command(do=do, user=user, channel=channel, code=3503, reason="gone")
        case ("revoke", name):
            stage.redis.denied.add(key_names.revoked(name))
            stage.node.users.commanded(control.Revocation(name))
        case ("publish", channel):
            stage.publish(channel)
        case ("answer", count):
            stage.redis.answer(count)
        case ("fail",):
            stage.reconnect()


PEERS, CHANNEL = st.integers(0, 2), st.sampled_from(CHANNELS)
STEPS = st.one_of(
    st.tuples(st.just("subscribe"), PEERS, CHANNEL, st.sampled_from(TOKENS)),
    st.tuples(st.just("subscribe"), PEERS, CHANNEL, st.just("")),
    st.tuples(st.just("unsubscribe"), PEERS, CHANNEL),
    st.tuples(st.just("sub_refresh"), PEERS, CHANNEL, st.sampled_from(TOKENS)),
    st.tuples(st.just("vanish"), PEERS),
    st.tuples(st.sampled_from(["expire", "lose"]), PEERS, CHANNEL),
    st.tuples(st.just("lost"), CHANNEL),
    st.tuples(
        st.just("api"),
        st.sampled_from(["subscribe", "unsubscribe"]),
        st.sampled_from(USERS),
        CHANNEL,
    ),
    st.tuples(
        st.just("api"),
        st.sampled_from(["unsubscribe", "disconnect"]),
        st.sampled_from(USERS),
        st.just(""),
    ),
    st.tuples(st.just("revoke"), st.sampled_from([*TOKENS[1:], *USERS])),
    st.tuples(st.just("publish"), CHANNEL),
    st.tuples(st.just("answer"), st.integers(1, 6)),
    st.tuples(st.just("answer"), st.just(100)),
    st.tuples(st.just("fail")),
)
SETTLED = [(("answer", 100), 3)] * 8
"""Enough for the clients to be connected."""


@settings(
    max_examples=4 * settings().max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(st.tuples(STEPS, st.integers(0, 3)), max_size=40), st.booleans(), st.booleans())
@example(  # left twice: others go deaf
    [
        (("subscribe", 1, "two", ""), 3),
        (("subscribe", 2, "two", ""), 3),
        *SETTLED,
        (("api", "unsubscribe", "ann", ""), 1),
        (("vanish", 1), 3),
    ],
    True,
    False,
)
@example(  # subscribed again while the old one is still being left
    [
        (("subscribe", 2, "two", ""), 3),
        *SETTLED,
        (("api", "unsubscribe", "bob", "two"), 0),
        (("subscribe", 2, "two", ""), 0),
    ],
    True,
    False,
)
@example(  # ended by the API while it is being made
    [(("subscribe", 1, "plain:three", "first"), 3), (("api", "unsubscribe", "ann", ""), 0)],
    True,
    False,
)
@example(  # ended by the API while the application is asked
    [(("subscribe", 2, "two", ""), 3), (("api", "unsubscribe", "bob", ""), 0)], True, True
)
def test_any_interleaving_of_all_ends_leaves_the_counts_right(
    config: Path, steps: list[tuple[tuple[Any, ...], int]], connected: bool, asks: bool
) -> None:
    """Each command is answered once, connections are whole, and only subscribers are served."""

    async def run() -> None:
        stage = Stage(config, asks=asks)
        try:
            if connected:
                await stage.settle()
            for step, ticks in steps:
                act(stage, step)
                for _ in range(ticks):
                    await asyncio.sleep(0)
            await stage.settle()
            await stage.check()
        finally:
            stage.redis.away = True
            stage.redis.fail()

    asyncio.run(run())


def test_nothing_is_delivered_between_a_loss_and_the_unsubscribe_push(config: Path) -> None:
    """An SDK that heard a later publication would recover from there, and miss what was lost."""

    async def run() -> None:
        stage = Stage(config)
        peer = stage.peers[2]
        await stage.settle()
        for channel in ("one", "two"):
            peer.send(subscribe={"channel": channel})
        await stage.settle()
        other = stage.publish("two")  # a flush is due before any task that is started now
        stage.centrifuge.lost("one")
        stage.publish("one")
        await stage.settle()
        await asyncio.sleep(0.002)
        assert peer.heard == [("two", other)]
        assert peer.view == {"two"}

    asyncio.run(run())


def test_a_share_in_a_channel_is_given_back_once(config: Path) -> None:
    """A second release takes nothing from the other followers."""

    async def run() -> None:
        broker, options = Stage(config).node.broker, ChannelOptions()
        one, two = broker.followed.follow("room", options), broker.followed.follow("room", options)
        for _ in range(3):
            one.release()
        await asyncio.sleep(0.01)
        assert broker.followed._channels["room"].followers == 1
        two.release()
        await asyncio.sleep(0.01)
        assert "room" not in broker.followed._channels

    asyncio.run(run())


def test_an_end_right_after_going_live_is_not_followed_by_a_join(config: Path) -> None:
    """The others would believe that the client is there for good."""

    async def run() -> None:
        stage = Stage(config)
        peer = stage.peers[2]
        await stage.settle()
        peer.send(subscribe={"channel": "plain:three"})
        while "plain:three" not in peer.client.subscriptions.table.live:
            stage.redis.answer(1)
            await asyncio.sleep(0)
        assert not peer.client.subscriptions.table.live["plain:three"].announced
        act(stage, ("expire", 2, "plain:three"))
        await stage.settle()
        await stage.check()

    asyncio.run(run())
