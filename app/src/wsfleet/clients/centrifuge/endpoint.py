"""The endpoint `/connection/websocket`: all clients of the Centrifuge protocol on this node."""

import asyncio

import structlog

from wsfleet.application import port
from wsfleet.application.disconnects import Disconnects
from wsfleet.application.port import Router
from wsfleet.application.routing import count_from_start
from wsfleet.application.sessions import Sessions
from wsfleet.application.untold import Untold
from wsfleet.broker import control
from wsfleet.broker.events import BrokerEventHandler, NodeCount
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry
from wsfleet.clients.centrifuge.client import CentrifugeClient
from wsfleet.clients.centrifuge.push import Fanout
from wsfleet.clients.serving import ClientAddress, refuse, serve
from wsfleet.hub.connection import Connection
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codec import Codec
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.protocol.centrifuge.json_codec import JSONCodec
from wsfleet.protocol.centrifuge.negotiation import negotiate
from wsfleet.protocol.centrifuge.protobuf_codec import ProtobufCodec
from wsfleet.redis.background import Background
from wsfleet.transports.handshake import Request
from wsfleet.transports.transport import Close, Closes
from wsfleet.transports.websocket import WebSocket

log = structlog.get_logger(__name__)

CLOSES = Closes(
    restart=Close(DisconnectCode.SHUTDOWN.code, DisconnectCode.SHUTDOWN.reason),
    slow=Close(DisconnectCode.SLOW.code, DisconnectCode.SLOW.reason),
)
PRESENCE_CHUNK = 500
"""Presence entries that are renewed at once."""


class Centrifuge(BrokerEventHandler):
    """All clients of the protocol on this node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.router: Router | None = None
        self.disconnects: Disconnects | None = None
        self.sessions = Sessions(node)
        self._addresses = ClientAddress(node.settings.trusted_proxies)
        limit = node.config.channel.max_length
        codecs: list[Codec] = [JSONCodec(max_channel=limit), ProtobufCodec(max_channel=limit)]
        self.codecs = {codec.name: codec for codec in codecs}
        self.clients: dict[str, CentrifugeClient] = {}
        self.fanout = Fanout(node.hub, self._disconnect)
        self.background = Background(node.metrics.handler_failed)
        node.dispatcher.add(self)
        node.background.append(self.refresh_presence)

    def route(self, router: Router | None) -> None:
        """Ask an application's backends, if there are any, from now on: before the node starts."""
        self.router = router
        if router is not None:
            count_from_start(self.node.metrics, router, self.node.channels.namespaces)
        if router is not None and router.disconnected is not None:
            self.disconnects = Disconnects(self.node, router.disconnected)
        else:
            Untold(self.node)

    async def endpoint(self, websocket: WebSocket, request: Request) -> None:
        """Serve one client."""
        config = self.node.config.client
        if (refusal := self.node.admission.origin(request.headers)) is not None:
            refuse(self.node, websocket, refusal)
            return
        negotiated = negotiate(request.subprotocols, request.query)
        codec = self.codecs[negotiated.encoding]
        known = None
        if self.router is not None:
            known = port.Client(
                "",
                encoding=codec.name,
                address=await self._addresses.of(request),
                headers=dict(request.headers),
            )

        def create(connection: Connection) -> CentrifugeClient:
            if not negotiated.frame_ping_pong:
                connection.answer_pings_itself()
            if known is not None:
                known.id = connection.client_id
            format_ = self.fanout.format(codec, connection.shared_framing)
            return CentrifugeClient(
                self,
                connection,
                format_,
                app_pings=not negotiated.frame_ping_pong,
                known=known,
            )

        await serve(
            self.node,
            websocket,
            "centrifuge",
            CLOSES,
            create,
            subprotocol=negotiated.subprotocol,
            outbox_limit=config.queue_max_size,
        )

    def add(self, client: CentrifugeClient) -> bool:
        """Add a client whose user is known; return False if the user has too many connections."""
        if not self.node.users.add(client):
            return False
        self.clients[client.id] = client
        return True

    def remove(self, client: CentrifugeClient) -> bool:
        """Remove a client; return False if it was not added, or is removed already."""
        if self.clients.pop(client.id, None) is None:
            return False
        self.node.users.remove(client)
        return True

    def published(self, channel: str, entry: Entry, record: Record) -> None:
        """Push a publication to the channel's subscribers."""
        self.fanout.publication(channel, entry, record)

    def member_changed(self, channel: str, joined: bool, member: Member) -> None:
        """Push a join or a leave to the channel's subscribers that want them."""
        self.fanout.membership(channel, joined, member)

    def lost(self, channel: str) -> None:
        """Let positioned subscribers recover: the answer tells them that they cannot."""
        for client in list(self.clients.values()):
            client.subscriptions.lost(channel)

    def commanded(self, message: control.ControlMessage) -> None:
        """End the other connections of a user; all other messages are for `Users`."""
        if isinstance(message, control.SingleConnection):
            for other in self.node.users.of(message.user):
                if (client := self.clients.get(other.id)) is not None:
                    client.only_one_stays(message.client)

    def count(self, count: NodeCount) -> None:
        """Count the channels' subscribers."""
        for client in self.clients.values():
            count.subscribers.update(client.subscriptions.table.live.keys())

    async def refresh_presence(self) -> None:
        """Renew the clients' entries in the presence; those of a dead node expire."""
        interval = self.node.config.client.presence_update_interval
        while True:
            await asyncio.sleep(interval)
            present = [
                (client.subscriptions.membership, subscription)
                for client in self.clients.values()
                for subscription in client.subscriptions.table.live.values()
                if subscription.present
            ]
            for start in range(0, len(present), PRESENCE_CHUNK):
                chunk = present[start : start + PRESENCE_CHUNK]
                renewals = (membership.renew(subscription) for membership, subscription in chunk)
                for result in await asyncio.gather(*renewals, return_exceptions=True):
                    if isinstance(result, Exception):
                        log.error("presence_renewal_failed", exc_info=result)
                        self.node.metrics.handler_failed("presence")

    def _disconnect(self, connection: Connection, code: DisconnectCode) -> None:
        if (client := self.clients.get(connection.client_id)) is not None:
            client.disconnect(code)
