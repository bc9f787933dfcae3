"""A message ends its own handling at most, or a client that cannot carry it, and nothing else."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab.waiting import TIMEOUT, settled
from tests.support.metrics import failures
from tests.support.nodes import RunningNode, StartNode
from tests.support.peer import PROTOBUF, Peer
from tests.support.sdk import OPEN_CHANNEL
from tests.support.tokens import SECRET
from wsfleet.broker import control
from wsfleet.broker.broker import Broker
from wsfleet.broker.events import BrokerEventHandler, Dispatcher
from wsfleet.channels import publication
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry
from wsfleet.config.schema import ChannelOptions
from wsfleet.config.settings import Settings
from wsfleet.protocol.centrifuge.messages import (
    HistoryRequest,
    Join,
    Leave,
    PresenceRequest,
    PublishRequest,
    UnsubscribeRequest,
)
from wsfleet.redis.store import Store
from wsfleet.telemetry.metrics import Metrics

CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  allow_anonymous_connect_without_token: true
channel:
  without_namespace: &open{OPEN_CHANNEL}  namespaces:
    - name: silent  # tells nobody who comes and goes
      <<: *open
      join_leave: false
      force_push_join_leave: false
    - name: quiet  # what pub/sub does not carry is lost here for good
      allow_subscribe_for_client: true
      allow_subscribe_for_anonymous: true
      allow_publish_for_client: true
      allow_publish_for_anonymous: true
"""
BINARY = b"\x00\xff"

Pair = tuple[RunningNode, RunningNode]


@pytest.fixture
async def pair(start_node: StartNode, tmp_path: Path) -> Pair:
    """Two nodes, patient with pub/sub: structlog's tracebacks for developers take a while."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    options = {
        "config": path,
        "redis_timeout": 2.0,
        "heartbeat_interval": 2.0,
        "node_dead_after": 8.0,
    }
    return await start_node(**options), await start_node(**options)


def binary_token() -> str:
    """A connection token whose info is not JSON."""
    claims = {"sub": "ann", "b64info": base64.b64encode(BINARY).decode()}
    return jwt.encode(claims, SECRET, algorithm="HS256")


async def joins(ann: Peer, bob: Peer) -> None:
    """Bob watches, ann comes."""
    await bob.subscribe("room")
    await ann.subscribe("room")


async def leaves(ann: Peer, bob: Peer) -> None:
    """Ann is there, bob comes to watch, ann leaves."""
    await ann.subscribe("room")
    await bob.subscribe("room")
    await ann.ask(UnsubscribeRequest("room"))


async def publishes(ann: Peer, bob: Peer) -> None:
    """Ann publishes bytes while bob listens."""
    await bob.subscribe("silent:room")
    await ann.subscribe("silent:room")
    await ann.ask(PublishRequest("silent:room", BINARY))


async def was_published(ann: Peer, bob: Peer) -> None:
    """Bob recovers what ann published."""
    await ann.subscribe("silent:room")
    await ann.ask(PublishRequest("silent:room", BINARY))
    await bob.subscribe("silent:room", recover=True)


async def is_present(ann: Peer, bob: Peer) -> None:
    """Bob asks who is there."""
    await ann.subscribe("silent:room")
    await bob.subscribe("silent:room")
    await bob.ask(PresenceRequest("silent:room"))


async def is_in_the_history(ann: Peer, bob: Peer) -> None:
    """Bob asks what was published."""
    await ann.subscribe("silent:room")
    await ann.ask(PublishRequest("silent:room", b'"text"'))
    await bob.subscribe("silent:room")
    await bob.ask(HistoryRequest("silent:room", limit=10))


async def pubsub_ids(store: Any) -> list[str]:
    """Which pub/sub connections there are."""
    return sorted(client["id"] for client in await store.client_list(_type="pubsub"))


@pytest.mark.parametrize(
    "happens", [joins, leaves, publishes, was_published, is_present, is_in_the_history]
)
async def test_data_that_json_cannot_carry_ends_only_that_client(
    pair: Pair, store: Any, happens: Callable[[Peer, Peer], Awaitable[None]]
) -> None:
    """A JSON client ends with 3506; Protobuf clients, other channels and pub/sub go on."""
    one, two = pair
    before = await pubsub_ids(store)
    async with (
        Peer(one, PROTOBUF, binary_token()) as ann,
        Peer(two) as bob,
        Peer(two, PROTOBUF) as watcher,
        Peer(two) as bystander,
        Peer(one) as publisher,
    ):
        await watcher.subscribe("room")
        await bystander.subscribe("quiet:room")
        await happens(ann, bob)
        await publisher.ask(PublishRequest("quiet:room", b"1"))
        await bob.until(lambda: bob.close_code is not None)
        assert bob.close_code == 3506
        await bystander.until(lambda: bystander.data("quiet:room") == [b"1"])
        if happens in (joins, leaves):
            await watcher.until(lambda: any(_ann(e) for e in watcher.pushes(Join, "room")))
        if happens is leaves:
            await watcher.until(lambda: any(_ann(e) for e in watcher.pushes(Leave, "room")))
        assert (ann.close_code, watcher.close_code, bystander.close_code) == (None, None, None)
    assert await pubsub_ids(store) == before


def _ann(event: Any) -> bool:
    return bool(event.info.user == "ann" and event.info.conn_info == BINARY)


async def test_a_connect_reply_that_json_cannot_carry(pair: Pair) -> None:
    """A JSON client whose token gives it a subscription with binary data ends with 3506."""
    data = base64.b64encode(BINARY).decode()
    claims = {"sub": "bob", "subs": {"quiet:room": {"b64data": data}}}
    given_data = jwt.encode(claims, SECRET, algorithm="HS256")
    async with Peer(pair[0], PROTOBUF, given_data) as ann:
        assert any(b"quiet:room" in PROTOBUF.encode([reply]) for reply in ann.replies)
        async with Peer(pair[0], token=given_data) as bob:
            await bob.until(lambda: bob.close_code is not None)
            assert bob.close_code == 3506
        assert ann.close_code is None


class Broken(BrokerEventHandler):
    """Fails whatever it hears."""

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Fail."""
        raise RuntimeError("published")

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Fail."""
        raise RuntimeError("member_changed")

    def lost(self, channel: str) -> None:
        """Fail."""
        raise RuntimeError("lost")

    def commanded(self, command: control.ControlMessage) -> None:
        """Fail."""
        raise RuntimeError("commanded")


async def test_a_listener_that_raises_ends_nothing_else(pair: Pair, store: Any) -> None:
    """Each exception is counted; the listeners after it hear all, and pub/sub stays."""
    one, two = pair
    for running in pair:
        running.node.dispatcher._listeners.insert(0, Broken())
    before = await pubsub_ids(store)
    async with Peer(one) as ann, Peer(two) as bob:
        await bob.subscribe("room")
        await ann.subscribe("room")
        await bob.until(lambda: len(bob.pushes(Join, "room")) == 2)
        await ann.ask(PublishRequest("room", b"1"))
        await bob.until(lambda: bob.data("room") == [b"1"])
        counts = await one.node.surveys.ask(["node1", "node2"], "*")
        assert counts["node2"].subscribers == {"room": 1}
        await store.delete("wsfleet:meta:{room}", "wsfleet:stream:{room}")
        for _ in range(2):  # the second one is a gap between two epochs
            await one.node.broker.publish(
                "room", one.node.channels.find("room").options, Record(b"2", 1)
            )
        await bob.until(lambda: len(bob.replies) > 5)
    assert await pubsub_ids(store) == before
    for event in ("published", "member_changed", "lost", "commanded"):
        assert failures(two, event) > 0


GARBAGE = [
    b"",
    b"p",
    b"p x y\nz",
    b"p 0 \nnot msgpack",
    b"p 5 4 \xff\n",
    b"p -1 -2 e\n",
    b"p 99999999999999999999 0 e\n",
    b"p 1 1 e\n",
    b"j\nnot msgpack",
    b"l\n",
    b"j\n\x92\xa1\xff\xa1c",
    b"p 0 0 \n" + msgspec.msgpack.encode([b"1", 2**63]),
    b"p 0 0 \n" + msgspec.msgpack.encode([b"not json", 1, ["ann", "c", BINARY]]),
    b"\x94" * 5000,
]


async def test_garbage_by_pubsub_ends_nothing(pair: Pair, store: Any) -> None:
    """Messages that no node sends are ignored on all pub/sub channels; the connection stays."""
    one, two = pair
    before = await pubsub_ids(store)
    channels = [f"wsfleet:channel:{{{name}}}" for name in ("room", "quiet:room", "broadcast")]
    channels += ["wsfleet:control", "wsfleet:control:node1", *await _probes(store)]
    async with Peer(one, PROTOBUF) as ann, Peer(two, PROTOBUF) as bob, two.connect() as plain:
        for peer in (ann, bob):
            await peer.subscribe("room")
            await peer.subscribe("quiet:room", join_leave=True)
        for channel in channels:
            for garbage in GARBAGE:
                await store.execute_command("SPUBLISH", channel, garbage)
        await ann.ask(PublishRequest("quiet:room", b"1"))
        await bob.until(lambda: b"1" in bob.data("quiet:room"))
        await ann.ask(PublishRequest("room", b"1"))
        await ann.subscribe("broadcast")
        await ann.ask(PublishRequest("broadcast", b'"heard"'))
        async with asyncio.timeout(TIMEOUT):
            while "heard" not in await plain.recv():
                pass
    assert await pubsub_ids(store) == before


async def _probes(store: Any) -> list[str]:
    found: list[str] = await store.pubsub_shardchannels("wsfleet:probe:*")
    assert found
    return found


async def test_garbage_in_redis_is_passed_over(pair: Pair, store: Any) -> None:
    """A member or a record that cannot be read is left out of presence, history, recovery."""
    one, _ = pair
    async with Peer(one) as ann:
        await ann.subscribe("room")
        await ann.ask(PublishRequest("room", b"1"))
        await store.xadd("wsfleet:stream:{room}", {"r": b"\x94\xa1\xff"}, id="2-0")
        await store.hincrby("wsfleet:meta:{room}", "offset", 1)
        await ann.ask(PublishRequest("room", b"3"))
        await store.hset("wsfleet:presence:{room}", "somebody", b"\x92\xa1\xff\xa1c")
        page = await ann.result(HistoryRequest("room", limit=10))
        assert [p.offset for p in page.publications] == [1, 3]
        present = await ann.result(PresenceRequest("room"))
        assert len(present.presence) == 1
        async with Peer(one) as bob:
            result = await bob.subscribe("room", recover=True)
            assert (result.recovered, [p.offset for p in result.publications]) == (True, [1, 3])


heads = st.sampled_from([b"p 1 0 e", b"p 0 0 ", b"p", b"j", b"l", b""]) | st.binary(max_size=20)
packed = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3) | st.binary(max_size=3),
    lambda parts: st.lists(parts, max_size=6) | st.dictionaries(st.text(max_size=2), parts),
    max_leaves=12,
).map(msgspec.msgpack.encode)
messages = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda head, body: head + b"\n" + body, heads, packed | st.binary(max_size=20)),
    packed,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), messages), max_size=20))
@example([(False, garbage) for garbage in GARBAGE])
@example([(True, garbage) for garbage in GARBAGE])
def test_no_message_raises_or_silences_a_channel(received: list[tuple[bool, bytes]]) -> None:
    """After any message in a channel, or to all nodes, the next publication is delivered."""
    heard: list[bytes] = []

    class Ear(BrokerEventHandler):
        def published(self, channel: str, entry: Entry, record: Record) -> None:
            heard.append(record.data)

    async def hear() -> None:
        metrics = Metrics()
        listeners = Dispatcher(metrics.handler_failed)
        listeners.add(Ear())
        broker = Broker(Store(Settings()), "node1", listeners, metrics, 1.0, 65536, lambda: None)
        broker.followed.follow_always("quiet:room", ChannelOptions())
        for is_control, message in received:
            channel = "wsfleet:control" if is_control else "wsfleet:channel:{quiet:room}"
            broker.followed._hear(channel, message)
        last = publication.encode(Record(b"last", 1))
        broker.followed._hear("wsfleet:channel:{quiet:room}", b"p 0 0 \n" + last)
        await asyncio.sleep(0)

    asyncio.run(hear())
    assert heard[-1] == b"last"


async def test_the_top_of_one_stream_does_not_end_the_checks(
    pair: Pair, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position in Redis that cannot be read ends that channel's check, not the node."""
    monkeypatch.setattr("wsfleet.broker.following.CHECK_AFTER", 0.2)
    one, _ = pair
    async with Peer(one) as ann:
        await ann.subscribe("room")
        await ann.ask(PublishRequest("room", b"1"))
        await store.hset("wsfleet:meta:{room}", "epoch", b"\xff")

        await settled(lambda: failures(one, "check") > 0, "the check failed")
        await ann.subscribe("quiet:room")
        await ann.ask(PublishRequest("quiet:room", b"1"))
        await ann.until(lambda: ann.data("quiet:room") == [b"1"])
    assert not one.task.done()


async def test_an_invalid_close_code_closes_nothing(pair: Pair) -> None:
    """A command that asks for it is not understood; its user's connection works on."""
    one, two = pair
    async with Peer(two, token=_token("bob")) as bob:
        for code in (70_000, -1, 2**63):
            command = {"type": "Command", "do": "disconnect", "user": "bob", "code": code}
            await one.node.broker.publish_control(msgspec.msgpack.encode(command))
        await one.node.broker.publish_control(control.encode(control.Revocation("nobody's")))
        await bob.subscribe("quiet:room")
        await bob.ask(PublishRequest("quiet:room", b"1"))
        await bob.until(lambda: bob.data("quiet:room") == [b"1"])
        assert bob.close_code is None


def _token(user: str) -> str:
    return jwt.encode({"sub": user}, SECRET, algorithm="HS256")
