"""How the server ends subscriptions and connections, on real nodes with a real Redis."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from lab.waiting import TIMEOUT, settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.redis import RedisServer
from tests.support.sdk import CONFIG, sdk, subscribed
from tests.support.tokens import token
from wsfleet.broker import following
from wsfleet.clients.centrifuge.client import CentrifugeClient
from wsfleet.clients.centrifuge.endpoint import Centrifuge
from wsfleet.redis import key_names

pytestmark = pytest.mark.backends("redis", "memory")

KEY = "a key"
SHARED = [f"room{number}" for number in range(60)]


@pytest.fixture
async def node(
    request: pytest.FixtureRequest, start_node: StartNode, tmp_path: Path
) -> RunningNode:
    """A node with a key for its API; with slow probes, so that no command is missed under load."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG + f'http_api: {{key: "{KEY}"}}\n')
    probes = {"heartbeat_interval": 5.0, "node_dead_after": 20.0}
    return await start_node(config=path, **probes, **getattr(request, "param", {}))


class Api:
    """The server API of a node."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def __call__(self, method: str, **request: Any) -> None:
        """Call a method that has to succeed."""
        answer = (await self._http.post(f"/api/{method}", json=request)).json()
        assert "error" not in answer, answer


@pytest.fixture
async def api(node: RunningNode) -> AsyncIterator[Api]:
    """The node's API."""
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False) as http:
        yield Api(http)


class Raw:
    """A client that notes what the server says, line by line."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.lines: list[dict[str, Any]] = []
        self._number = 0
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self.websocket:
                lines = [json.loads(line) for line in str(message).splitlines()]
                if {} in lines:  # a ping
                    await self.websocket.send("{}")
                self.lines += filter(None, lines)

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command, and wait for its answer."""
        number = await self.tell(**command)
        await settled(lambda: self.answers(number), f"an answer to {command}")
        return self.answers(number)[0]

    async def tell(self, **command: Any) -> int:
        """Send a command; its number."""
        self._number += 1
        await self.websocket.send(json.dumps({"id": self._number, **command}))
        return self._number

    def answers(self, number: int) -> list[dict[str, Any]]:
        """All answers to a command."""
        return [line for line in self.lines if line.get("id") == number]

    def pushes(self, kind: str) -> list[tuple[str, Any]]:
        """Channel and content of each push of a kind."""
        pushes = [line["push"] for line in self.lines if "push" in line]
        return [(push.get("channel", ""), push[kind]) for push in pushes if kind in push]

    def unsubscribed(self) -> list[tuple[str, int]]:
        """Channel and code of each unsubscribe push."""
        return [(channel, push["code"]) for channel, push in self.pushes("unsubscribe")]

    async def close_code(self) -> int | None:
        """Wait for the end; the code of the server's close frame."""
        await asyncio.wait_for(self._reader, TIMEOUT)
        return self.websocket.close_code


@contextlib.asynccontextmanager
async def raw(
    node: RunningNode, user: str = "", *, connected: bool = True, **claims: Any
) -> AsyncIterator[Raw]:
    """A client of a user."""
    url = node.url.replace("http", "ws") + "/connection/websocket"
    async with connect(url, proxy=None) as websocket:
        client = Raw(websocket)
        if connected:
            given = token(user, **claims) if user else ""
            answer = await client.ask(connect={"token": given})
            assert "connect" in answer, answer
        yield client


def client_of(node: RunningNode, user: str) -> CentrifugeClient:
    """The node's side of a user's only connection."""
    (client,) = node.node.users.of(user)
    assert isinstance(client, CentrifugeClient)
    return client


def pause(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> tuple[asyncio.Event, asyncio.Event]:
    """Let a coroutine method wait: the events say that it was called, and that it may go on."""
    called, go_on = asyncio.Event(), asyncio.Event()
    method: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def paused(*args: Any, **options: Any) -> Any:
        called.set()
        await go_on.wait()
        return await method(*args, **options)

    monkeypatch.setattr(owner, name, paused)
    return called, go_on


# A subscription ends once.


@pytest.mark.parametrize("end", ["leaves", "disconnect", "block_user", "unsubscribes"])
async def test_a_client_that_ends_twice_disturbs_no_other(
    node: RunningNode, api: Api, end: str
) -> None:
    """Two clients share channels; one is unsubscribed by the API and then goes: the other hears."""
    async with raw(node, "w") as other:
        async with raw(node, "v") as client:
            for name in SHARED:
                await client.tell(subscribe={"channel": name})
                await other.tell(subscribe={"channel": name})
            last = [await each.ask(presence={"channel": SHARED[-1]}) for each in (client, other)]
            assert all("presence" in answer for answer in last)
            await api("unsubscribe", user="v")
            if end == "unsubscribes":
                for name in SHARED:
                    await client.tell(unsubscribe={"channel": name})
                await client.ask(unsubscribe={"channel": SHARED[0]})
            elif end != "leaves":
                await api(end, user="v")
        await settled(lambda: not node.node.users.of("v"), "the client has left")
        followings = node.node.broker.followed._channels
        assert [followings[name].followers for name in SHARED] == [1] * len(SHARED)
        await asyncio.sleep(1.2)  # longer than a channel without subscribers is followed
        for name in SHARED:
            await api("publish", channel=name, data=name)
        await settled(lambda: len(other.pushes("pub")) == len(SHARED), "the other hears all")


async def test_a_lost_redis_and_leaving_clients_disturb_no_other(
    node: RunningNode, api: Api, store: Redis
) -> None:
    """After FLUSHALL all subscribe again, and many leave at the same time."""
    names = SHARED[:10]
    async with sdk(node, token=token("w")) as stays, contextlib.AsyncExitStack() as stack:
        events = [(await subscribed(stays, name))[1] for name in names]
        leavers = [await stack.enter_async_context(raw(node, f"v{n}")) for n in range(10)]
        for leaver in leavers:
            for name in names:
                await leaver.tell(subscribe={"channel": name})
            await leaver.ask(presence={"channel": names[-1]})
        await store.flushall()
        for name in names:
            await api("publish", channel=name, data="lost")
        await asyncio.gather(*(leaver.websocket.close() for leaver in leavers))
        await settled(
            lambda: all(len(each.subscribed) == 2 for each in events),
            "the client is subscribed again",
        )
    async with sdk(node, token=token("w")) as stays:
        events = [(await subscribed(stays, name))[1] for name in names]
        await asyncio.sleep(1.2)  # longer than a channel without subscribers is followed
        followings = node.node.broker.followed._channels
        assert [followings[name].followers for name in names] == [1] * len(names)
        for name in names:
            await api("publish", channel=name, data="heard")
        await settled(lambda: all(each.data == ["heard"] for each in events), "all are heard")


async def test_an_old_farewell_does_not_take_a_newer_subscription_out(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that subscribes again while it is still being taken out is present and served."""
    async with raw(node, "v") as client:
        await client.ask(subscribe={"channel": "room"})
        called, go_on = pause(monkeypatch, node.node.broker, "presence_remove")
        await api("unsubscribe", user="v", channel="room")
        await asyncio.wait_for(called.wait(), TIMEOUT)
        assert "subscribe" in await client.ask(subscribe={"channel": "room"})
        go_on.set()

        async def farewells_are_over() -> bool:
            (centrifuge,) = (
                each for each in node.node.dispatcher._listeners if isinstance(each, Centrifuge)
            )
            return not centrifuge.background._tasks

        await settled(farewells_are_over, "the old one is taken out")
        assert len((await client.ask(presence={"channel": "room"}))["presence"]["presence"]) == 1
        await api("publish", channel="room", data=1)
        await settled(lambda: len(client.pushes("pub")) == 1, "the publication arrives")


# Connections and subscriptions that the API ends while they are made.


@pytest.mark.parametrize("channel", ["room", ""])
async def test_unsubscribe_holds_for_a_subscribe_under_way(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    """The client is answered and unsubscribed, hears nothing, and is nowhere."""
    async with raw(node, "v") as client:
        await api("publish", channel="room", data="before")
        called, go_on = pause(monkeypatch, following, "read_history")
        number = await client.tell(
            subscribe={"channel": "room", "recover": True, "recoverable": True}
        )
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("unsubscribe", user="v", channel=channel)
        await settled(
            lambda: "room" not in client_of(node, "v").subscriptions.table,
            "the subscription has ended",
        )
        await api("publish", channel="room", data="after")
        go_on.set()
        await settled(lambda: ("room", 2000) in client.unsubscribed(), "told of it")
        (answer,) = client.answers(number)
        assert "publications" not in answer["subscribe"]
        assert (await client.ask(unsubscribe={"channel": "other"})).get("unsubscribe") == {}
        assert await node.node.broker.members("room") == {}
        assert client.pushes("pub") == []
        assert not node.node.hub.has("json websocket publications room")


async def test_unsubscribe_holds_for_a_subscribe_that_fails_meanwhile(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch, redis_process: RedisServer
) -> None:
    """An SDK would try again after a temporary error: it is told that it is unsubscribed."""
    async with raw(node, "v") as client:
        called, go_on = pause(monkeypatch, node.node.broker, "presence_add")
        number = await client.tell(subscribe={"channel": "room"})
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("unsubscribe", user="v", channel="room")
        await settled(
            lambda: "room" not in client_of(node, "v").subscriptions.table,
            "the subscription has ended",
        )
        redis_process.kill()
        go_on.set()
        await settled(lambda: client.unsubscribed() == [("room", 2000)], "told of it")
        assert len(client.answers(number)) == 1
        assert "error" not in client.answers(number)[0]


async def test_unsubscribe_holds_for_a_subscribe_of_the_api(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that never existed is not announced; a later subscribe counts again."""
    async with raw(node, "v") as client:
        called, go_on = pause(monkeypatch, node.node.broker, "presence_add")
        await api("subscribe", user="v", channel="room")
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("unsubscribe", user="v", channel="room")
        await settled(
            lambda: "room" not in client_of(node, "v").subscriptions.table,
            "the subscription has ended",
        )
        await api("subscribe", user="v", channel="room")
        go_on.set()
        await settled(
            lambda: len(client.pushes("subscribe")) == 1, "the client is subscribed again"
        )
        assert client.unsubscribed() == []
        await api("publish", channel="room", data=1)
        await settled(lambda: len(client.pushes("pub")) == 1, "the publication arrives")
        assert len(await node.node.broker.members("room")) == 1


async def test_unsubscribe_holds_for_a_connect_under_way(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channels of a token and the personal one are made later, or not at all."""
    async with raw(node, connected=False) as client:
        called, go_on = pause(monkeypatch, node.node.client_names, "open")
        number = await client.tell(
            connect={"token": token("v", subs={"one": {}, "two": {}, "three": {}})}
        )
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("unsubscribe", user="v", channel="two")
        await settled(
            lambda: "two" not in client_of(node, "v").subscriptions.table,
            "the subscription has ended",
        )
        go_on.set()
        await settled(lambda: client.answers(number), "the client is connected")
        subs = client.answers(number)[0]["connect"]["subs"]
        assert subs.keys() == {"one", "three", "#v"}
        assert not node.node.hub.has("json websocket publications two")


@pytest.mark.parametrize(
    ("method", "code"), [("disconnect", 3503), ("block_user", 3507), ("revoke_token", 3500)]
)
async def test_a_disconnect_ends_a_pending_connect(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch, method: str, code: int
) -> None:
    """It is closed with the code, is not answered, and leaves nothing."""
    async with raw(node, connected=False) as client:
        called, go_on = pause(monkeypatch, node.node.broker, "presence_add")
        number = await client.tell(connect={"token": token("v", jti="id", subs={"one": {}})})
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api(method, **({"uid": "id"} if method == "revoke_token" else {"user": "v"}))
        assert await client.close_code() == code
        go_on.set()
        await settled(
            lambda: len(node.node.hub) == 0 and not node.node.users.of("v"), "the client has left"
        )
        assert client.answers(number) == []
        await settled(
            lambda: not node.node.hub.has("json websocket publications one"), "nobody has the topic"
        )
        assert await node.node.broker.members("one") == {}


async def test_refresh_holds_for_a_connect_under_way(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to connect has the lifetime that the API gave, not that of the token."""
    async with raw(node, connected=False) as client:
        called, go_on = pause(monkeypatch, node.node.broker, "presence_add")
        number = await client.tell(connect={"token": token("v")})
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("refresh", user="v", expire_at=int(time.time()) + 600)
        await settled(
            lambda: client_of(node, "v")._connecting._expire_at > 0, "the new expiry is known"
        )
        go_on.set()
        await settled(lambda: client.answers(number), "the client is connected")
        result = client.answers(number)[0]["connect"]
        assert result["expires"]
        assert 0 < result["ttl"] <= 600
        assert "expiry" in client_of(node, "v")._timers._handles


async def test_disconnect_holds_for_a_plain_client_that_is_just_in(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is open from the handshake's answer on, so it is found from then on."""
    called, go_on = pause(monkeypatch, node.node.client_names, "open")
    headers = {"Authorization": f"Bearer {token('v')}"}
    async with node.connect(additional_headers=headers) as plain:
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("disconnect", user="v")
        await asyncio.wait_for(plain.wait_closed(), TIMEOUT)
        assert plain.close_code == 3503
        go_on.set()
    await settled(lambda: not node.node.users.of("v"), "the client has left")


# Revoked subscription tokens.


def _subscription_token(channel: str, jti: str, **claims: Any) -> str:
    return token("v", channel=channel, jti=jti, **claims)


async def test_revocation_of_a_subscription_token_ends_its_subscriptions(
    node: RunningNode, api: Api
) -> None:
    """With a code that SDKs do not come back after; it opens and refreshes nothing any more."""
    async with raw(node, "v") as client:
        good, bad = (_subscription_token("closed:a", jti) for jti in ("good", "bad"))
        await client.ask(subscribe={"channel": "closed:a", "token": bad})
        await client.ask(
            subscribe={"channel": "closed:b", "token": _subscription_token("closed:b", "bad")}
        )
        await client.ask(subscribe={"channel": "room"})
        await api("revoke_token", uid="bad")
        await settled(
            lambda: sorted(client.unsubscribed()) == [("closed:a", 2000), ("closed:b", 2000)],
            "unsubscribed",
        )
        for command in ("subscribe", "sub_refresh"):
            answer = await client.ask(**{command: {"channel": "closed:a", "token": bad}})
            assert answer["error"]["code"] == 103
        await client.ask(subscribe={"channel": "closed:a", "token": good})
        answer = await client.ask(sub_refresh={"channel": "closed:a", "token": bad})
        assert (answer["error"]["code"], answer["error"].get("temporary", False)) == (103, False)
        await api("publish", channel="closed:a", data=1)
        await settled(lambda: len(client.pushes("pub")) == 1, "the good token's stays")


async def test_a_refreshed_subscription_rests_on_the_new_token(node: RunningNode, api: Api) -> None:
    """Revoking the old one ends nothing, revoking the new one does."""
    async with raw(node, "v") as client:
        old, new = (_subscription_token("closed:a", jti) for jti in ("old", "new"))
        await client.ask(subscribe={"channel": "closed:a", "token": old})
        assert "sub_refresh" in await client.ask(sub_refresh={"channel": "closed:a", "token": new})
        await api("revoke_token", uid="old")
        await api("publish", channel="closed:a", data=1)
        await settled(lambda: len(client.pushes("pub")) == 1, "the subscription stays")
        assert client.unsubscribed() == []
        await api("revoke_token", uid="new")
        await settled(
            lambda: client.unsubscribed() == [("closed:a", 2000)], "the client is unsubscribed"
        )


@pytest.mark.parametrize("command", ["subscribe", "sub_refresh"])
async def test_a_token_that_is_revoked_while_it_is_checked_counts_for_nothing(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Redis said that it is good, and the revocation came before that was used."""
    async with raw(node, "v") as client:
        shown = _subscription_token("closed:a", "bad")
        if command == "sub_refresh":
            first = _subscription_token("closed:a", "first")
            await client.ask(subscribe={"channel": "closed:a", "token": first})
        revoked, called, go_on = node.node.denylist.revoked, asyncio.Event(), asyncio.Event()

        async def slow(jti: str) -> bool:
            answer = await revoked(jti)
            called.set()
            await go_on.wait()
            return answer

        monkeypatch.setattr(node.node.denylist, "revoked", slow)
        await client.tell(**{command: {"channel": "closed:a", "token": shown}})
        await asyncio.wait_for(called.wait(), TIMEOUT)
        await api("revoke_token", uid="bad")
        await settled(
            lambda: "closed:a" not in client_of(node, "v").subscriptions.table,
            "the subscription has ended",
        )
        go_on.set()
        await settled(lambda: client.unsubscribed() == [("closed:a", 2000)], "told of it")
        assert not node.node.hub.has("json websocket publications closed:a")


async def test_a_revocation_that_was_missed_is_found_out(
    node: RunningNode, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The periodic check asks about the tokens of subscriptions as well."""
    async with raw(node, "v") as client, raw(node, "w", jti="id") as other:
        await client.ask(
            subscribe={"channel": "closed:a", "token": _subscription_token("closed:a", "bad")}
        )
        monkeypatch.setattr(node.node.dispatcher, "commanded", lambda command: None)
        await api("revoke_token", uid="bad")
        await api("revoke_token", uid="id")
        node.node.users.hurry()
        await settled(
            lambda: client.unsubscribed() == [("closed:a", 2000)], "the client is unsubscribed"
        )
        assert await other.close_code() == 3500
        await api("block_user", user="v")
        node.node.users.hurry()
        assert await client.close_code() == 3507


# Redis is lost in the middle of something.


class Fault:
    """Does something to Redis before the node sends its n-th command for a client."""

    def __init__(self, node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = 0
        self.at = 0
        self.strike: Callable[[], None] = lambda: None
        name = node.settings.name
        self._own = {
            key_names.NODES,
            key_names.DESIRED,
            key_names.node(name),
            key_names.samples(name),
        }
        store = node.node.store
        owner = store.owner

        def counted(key: str) -> Any:
            if key not in self._own and "probe" not in key:
                self.sent += 1
                if self.sent == self.at:
                    self.strike()
            return owner(key)

        monkeypatch.setattr(store, "owner", counted)


@pytest.mark.parametrize("node", [{"redis_timeout": 0.5}], indirect=True, ids=[""])
@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_redis_is_lost_at_each_step_of_a_client(
    node: RunningNode,
    redis_process: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Each command has one answer or the connection ends; connected clients have all timers."""
    monkeypatch.setattr("wsfleet.broker.following.FOLLOW_TIMEOUT", 0.5)
    faults = Fault(node, monkeypatch)
    faults.strike = getattr(redis_process, fault)
    claims: dict[str, Any] = {"exp": int(time.time()) + 600, "subs": {"one": {}}, "jti": "id"}
    step, struck = 0, True
    while struck:
        step += 1
        async with raw(node, connected=False) as client:
            faults.sent, faults.at = 0, step
            commands: list[dict[str, Any]] = [
                {"connect": {"token": token("v", **claims)}},
                {"subscribe": {"channel": "two"}},
                {"publish": {"channel": "two", "data": 1}},
                {"unsubscribe": {"channel": "two"}},
            ]
            numbers = [await client.tell(**command) for command in commands]

            def over(client: Raw = client, numbers: list[int] = numbers) -> bool:
                return client._reader.done() or all(map(client.answers, numbers))

            await settled(over, f"answers, or the end, with a fault at step {step}")
            struck = faults.sent >= step
            faults.at = 0
            for held in node.node.users.of("v"):
                assert isinstance(held, CentrifugeClient)
                assert held.connected
                assert held._timers._handles.keys() - {"pong"} == {"ping", "expiry"}
            if "connect" not in client.answers(numbers[0])[0]:
                assert not node.node.users.of("v")
                assert not node.node.hub.has("json websocket publications one")
            assert all(len(client.answers(number)) <= 1 for number in numbers)
        if struck and fault == "freeze":
            redis_process.thaw()
        elif struck:
            redis_process.start()
        await node.wait_ready()
    assert step > 8, "the faults do not reach what they are for"
