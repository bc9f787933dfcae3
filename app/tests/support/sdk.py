"""The SDK centrifuge-python, connected to a node, and what it is told."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from centrifuge import (  # type: ignore[import-untyped]
    Client,
    JoinContext,
    PublicationContext,
    SubscribedContext,
    Subscription,
    SubscriptionEventHandler,
    UnsubscribedContext,
)

from tests.support.nodes import RunningNode
from tests.support.tokens import SECRET

OPEN_CHANNEL = """
    presence: true
    join_leave: true
    force_push_join_leave: true
    history_size: 100
    history_ttl: 300s
    force_recovery: true
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
    allow_publish_for_subscriber: true
    allow_publish_for_anonymous: true
    allow_presence_for_subscriber: true
    allow_presence_for_anonymous: true
    allow_history_for_subscriber: true
    allow_history_for_anonymous: true
"""
"""Options of a channel with history where anonymous clients may do everything."""
CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  allow_anonymous_connect_without_token: true
  allowed_origins: ["*"]
  subscribe_to_user_personal_channel: {{enabled: true}}
channel:
  without_namespace:{OPEN_CHANNEL}  namespaces:
    - name: small
      history_size: 2
      history_ttl: 300s
      force_recovery: true
      allow_subscribe_for_client: true
      allow_subscribe_for_anonymous: true
      allow_publish_for_client: true
      allow_publish_for_anonymous: true
    - name: quiet
      allow_subscribe_for_client: true
      allow_subscribe_for_anonymous: true
      allow_publish_for_client: true
      allow_publish_for_anonymous: true
    - name: closed
"""


class Events(SubscriptionEventHandler):  # type: ignore[misc]  # the SDK brings no types
    """Notes what a subscription is told."""

    def __init__(self) -> None:
        self.publications: list[PublicationContext] = []
        self.subscribed: list[SubscribedContext] = []
        self.unsubscribed: list[UnsubscribedContext] = []
        self.joins: list[JoinContext] = []
        self.leaves: list[Any] = []

    async def on_publication(self, ctx: PublicationContext) -> None:
        """A publication came."""
        self.publications.append(ctx)

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        """The subscription is there, perhaps again."""
        self.subscribed.append(ctx)

    async def on_unsubscribed(self, ctx: UnsubscribedContext) -> None:
        """It ended."""
        self.unsubscribed.append(ctx)

    async def on_join(self, ctx: JoinContext) -> None:
        """Somebody came."""
        self.joins.append(ctx)

    async def on_leave(self, ctx: Any) -> None:
        """Somebody left."""
        self.leaves.append(ctx)

    @property
    def data(self) -> list[Any]:
        """The publications' data, in the order of arrival."""
        return [ctx.pub.data for ctx in self.publications]

    @property
    def offsets(self) -> list[int]:
        """The publications' offsets, in the order of arrival."""
        return [ctx.pub.offset for ctx in self.publications]


@contextlib.asynccontextmanager
async def sdk(
    node: RunningNode, *, protobuf: bool = False, token: str = "", **options: Any
) -> AsyncIterator[Client]:
    """A connected SDK client."""
    client = Client(
        node.client_url.replace("http", "ws") + "/connection/websocket",
        token=token,
        use_protobuf=protobuf,
        min_reconnect_delay=0.05,
        max_reconnect_delay=0.2,
        **options,
    )
    await client.connect()
    await client.ready(5)
    try:
        yield client
    finally:
        await client.disconnect()


async def subscribed(client: Client, channel: str, **options: Any) -> tuple[Subscription, Events]:
    """A subscription that is there."""
    events = Events()
    subscription = client.new_subscription(channel, events=events, **options)
    await subscription.subscribe()
    await subscription.ready(5)
    return subscription, events


def has(things: list[Any], count: int) -> bool:
    """Whether a list that grows is this long by now."""
    return len(things) == count


Pair = tuple[RunningNode, RunningNode]
