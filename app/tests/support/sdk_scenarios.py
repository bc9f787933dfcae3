"""The scenarios of fleet/test_sdks.py with the unmodified SDK centrifuge-python."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx
import jwt
from centrifuge import (  # type: ignore[import-untyped]
    CentrifugeError,
    Client,
    ClientEventHandler,
    StreamPosition,
    Subscription,
    SubscriptionEventHandler,
)

from lab.waiting import settled

Step = Callable[..., Awaitable[None]]


class Cluster(NamedTuple):
    """Where the cluster is, its API at one of the nodes, and what opens both."""

    url: str
    api_url: str
    key: str
    secret: str

    def token(self, **claims: Any) -> str:
        """A token of either kind."""
        return jwt.encode(claims, self.secret, algorithm="HS256")

    def client(self, **options: Any) -> Client:
        """An SDK client that is not connected yet."""
        return Client(
            self.url.replace("http", "ws") + "/connection/websocket",
            min_reconnect_delay=0.05,
            max_reconnect_delay=0.2,
            proxy=None,
            **options,
        )

    async def api(self, method: str, **request: Any) -> Any:
        """Call a method of the server's API; its result."""
        headers = {"X-API-Key": self.key}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
            answer = await http.post(f"{self.api_url}/api/{method}", json=request)
        return answer.json()["result"]


class Connection(ClientEventHandler):  # type: ignore[misc]  # the SDK brings no types
    """Notes what a connection is told."""

    def __init__(self) -> None:
        self.connected: list[str] = []
        self.disconnected: list[int] = []
        self.server: list[list[Any]] = []

    async def on_connected(self, ctx: Any) -> None:
        """It is there, perhaps again."""
        self.connected.append(ctx.client)

    async def on_disconnected(self, ctx: Any) -> None:
        """It ended for good."""
        self.disconnected.append(ctx.code)

    async def on_subscribed(self, ctx: Any) -> None:
        """The server subscribed it."""
        self.server.append(["subscribed", ctx.channel])

    async def on_publication(self, ctx: Any) -> None:
        """A publication came in such a channel."""
        self.server.append(["publication", ctx.channel, ctx.pub.data])

    async def on_unsubscribed(self, ctx: Any) -> None:
        """The server ended that."""
        self.server.append(["unsubscribed", ctx.channel])


class Channel(SubscriptionEventHandler):  # type: ignore[misc]
    """Notes what a subscription is told."""

    def __init__(self) -> None:
        self.subscribed: list[list[bool]] = []
        self.unsubscribed: list[int] = []
        self.publications: list[Any] = []
        self.joins: list[str] = []
        self.leaves: list[str] = []

    async def on_subscribed(self, ctx: Any) -> None:
        """The subscription is there, perhaps again."""
        self.subscribed.append([ctx.was_recovering, ctx.recovered])

    async def on_unsubscribed(self, ctx: Any) -> None:
        """It ended."""
        self.unsubscribed.append(ctx.code)

    async def on_publication(self, ctx: Any) -> None:
        """A publication came."""
        self.publications.append(ctx.pub)

    async def on_join(self, ctx: Any) -> None:
        """Somebody came."""
        self.joins.append(ctx.info.user)

    async def on_leave(self, ctx: Any) -> None:
        """Somebody left."""
        self.leaves.append(ctx.info.user)

    @property
    def data(self) -> list[Any]:
        """The publications' data, in the order of arrival."""
        return [publication.data for publication in self.publications]


async def _subscribe(client: Client, channel: str, **options: Any) -> tuple[Subscription, Channel]:
    events = Channel()
    subscription = client.new_subscription(channel, events=events, **options)
    await subscription.subscribe()
    await client.connect()
    await subscription.ready(5)
    return subscription, events


async def _users(subscription: Subscription) -> list[str]:
    return sorted(info.user for info in (await subscription.presence()).clients.values())


async def features(cluster: Cluster, channel: str, _: Step) -> Any:
    """All that a client can do, and what the server's API does to it."""
    events = Connection()
    ann = cluster.client(token=cluster.token(sub="ann"), events=events)
    room, seen = await _subscribe(ann, channel)
    await settled(lambda: len(seen.joins) == 1, "ann joined")

    bob = cluster.client(token=cluster.token(sub="bob"))
    bobs, _bob_seen = await _subscribe(bob, channel)
    await settled(lambda: len(seen.joins) == 2, "bob joined")
    for n in range(5):
        await bobs.publish({"n": n})
    await settled(lambda: len(seen.publications) == 5, "five publications")

    present = await _users(room)
    stats = await room.presence_stats()
    top = await room.history(limit=0)

    async def page(**options: Any) -> list[int]:
        return [
            publication.data["n"] for publication in (await room.history(**options)).publications
        ]

    pages = [
        await page(limit=2),
        await page(limit=2, since=StreamPosition(2, top.epoch)),
        await page(limit=2, reverse=True),
        await page(limit=2, since=StreamPosition(4, top.epoch), reverse=True),
    ]
    errors = {}
    for name, work in (
        ("rpc", ann.rpc("method", {})),
        ("unknown", ann.publish("unknown:room", {})),
    ):
        try:
            await work
        except CentrifugeError as error:
            errors[name] = error.code
    await bobs.unsubscribe()
    await settled(lambda: len(seen.leaves) == 1, "bob left")

    await cluster.api("unsubscribe", user="ann", channel=channel)
    await settled(lambda: len(seen.unsubscribed) == 1, "the client is unsubscribed")
    await room.subscribe()
    await room.ready(5)
    await cluster.api("publish", channel=channel, data="again")
    await settled(lambda: len(seen.publications) == 6, "heard again")

    await cluster.api("subscribe", user="ann", channel="offers")
    await settled(lambda: len(events.server) == 1, "subscribed by the server")
    await cluster.api("publish", channel="offers", data="cheap")
    await settled(lambda: len(events.server) == 2, "heard by it")
    await cluster.api("unsubscribe", user="ann", channel="offers")
    await settled(lambda: len(events.server) == 3, "unsubscribed by the server")
    await cluster.api("disconnect", user="ann")
    await settled(lambda: len(events.disconnected) == 1, "disconnected by the server")
    await bob.disconnect()
    return {
        "publications": [
            [pub.offset, pub.data, pub.info.user if pub.info else None] for pub in seen.publications
        ],
        "joins": seen.joins,
        "leaves": seen.leaves,
        "present": present,
        "stats": [stats.num_clients, stats.num_users],
        "offset": top.offset,
        "pages": pages,
        "errors": errors,
        "ended": seen.unsubscribed,
        "server": events.server,
        "disconnected": events.disconnected,
    }


async def refresh(cluster: Cluster, channel: str, _: Step) -> Any:
    """Tokens of two seconds, for as long as several of them live."""
    tokens, sub_tokens = [], []

    async def get_token() -> str:
        tokens.append(cluster.token(sub="ann", exp=int(time.time()) + 2))
        return tokens[-1]

    async def get_sub_token(name: str) -> str:
        sub_tokens.append(cluster.token(sub="ann", channel=name, exp=int(time.time()) + 2))
        return sub_tokens[-1]

    events = Connection()
    ann = cluster.client(get_token=get_token, events=events)
    _, seen = await _subscribe(ann, f"${channel}", get_token=get_sub_token)
    await settled(lambda: len(tokens) >= 6 and len(sub_tokens) >= 6, "five refreshes of each")
    await cluster.api("publish", channel=f"${channel}", data="still here")
    await settled(lambda: len(seen.publications) == 1, "the publication arrives")
    await ann.disconnect()
    return {
        "connections": len(events.connected),
        "subscriptions": len(seen.subscribed),
        "publications": seen.data,
    }


async def killed(cluster: Cluster, channel: str, step: Step) -> Any:
    """The node that holds the client is killed in the middle of a stream."""
    tokens = 0

    async def get_token() -> str:
        nonlocal tokens
        tokens += 1
        return cluster.token(sub="ann", exp=int(time.time()) + 3600)

    events = Connection()
    ann = cluster.client(get_token=get_token, events=events)
    news, seen = await _subscribe(ann, channel)
    for n in range(5):
        await news.publish(n)
    await settled(lambda: len(seen.publications) == 5, "the first five")
    await step("kill", events.connected[0], channel)
    await settled(
        lambda: len(seen.publications) == 10 and len(seen.subscribed) == 2,
        "the missed publications arrive",
    )
    await news.publish(10)
    await settled(lambda: len(seen.publications) == 11, "the client gets publications again")
    present = sorted(set(await _users(news)))
    await ann.disconnect()
    return {
        "publications": seen.data,
        "subscribed": seen.subscribed,
        "tokens": tokens,
        "present": present,
    }


async def away(cluster: Cluster, channel: str, step: Step) -> Any:
    """A subscriber comes back when its channel's history is gone, and when Redis lost all."""
    return {
        "expired": await _away(cluster, f"brief:{channel}", step, wiped=False),
        "wiped": await _away(cluster, channel, step, wiped=True),
    }


async def _away(cluster: Cluster, channel: str, step: Step, *, wiped: bool) -> Any:
    ann = cluster.client(token=cluster.token(sub="ann"))
    _, seen = await _subscribe(ann, channel)
    await cluster.api("publish", channel=channel, data="heard")
    await settled(lambda: len(seen.publications) == 1, "the publication arrives")
    await ann.disconnect()
    if wiped:
        await step("wipe")
    await cluster.api("publish", channel=channel, data="missed")
    if not wiped:

        async def forgotten() -> bool:
            history = await cluster.api("history", channel=channel, limit=-1)
            return not history["publications"]

        await settled(forgotten, "the history expired")
    await ann.connect()
    await settled(lambda: len(seen.subscribed) == 2, "the client is subscribed again")
    await cluster.api("publish", channel=channel, data="live")
    await settled(lambda: len(seen.publications) == 2, "the client gets publications again")
    await ann.disconnect()
    return {"subscribed": seen.subscribed, "publications": seen.data}


SCENARIOS = {scenario.__name__: scenario for scenario in (features, refresh, killed, away)}
