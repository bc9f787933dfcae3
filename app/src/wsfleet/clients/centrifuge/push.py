"""Sending to clients of the Centrifuge protocol: to one, or to all of a channel.

A push to all subscribers of a channel is encoded once for each encoding and framed once for each
framing.
"""

from collections.abc import Callable, Sequence

import structlog

from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry
from wsfleet.clients.centrifuge.errors import DisconnectedError
from wsfleet.hub.connection import Connection
from wsfleet.hub.hub import Hub
from wsfleet.protocol.centrifuge.codec import Codec, ProtocolError
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.protocol.centrifuge.messages import (
    ClientInfo,
    Event,
    Join,
    Leave,
    Publication,
    Push,
    Reply,
)
from wsfleet.transports.transport import Close, Framing

log = structlog.get_logger(__name__)


def client_info(member: Member) -> ClientInfo:
    """Return the protocol's message for a member."""
    return ClientInfo(member.user, member.client, member.conn_info, member.chan_info)


def to_publication(entry: Entry, record: Record) -> Publication:
    """Return the protocol's message for an entry of a channel's stream."""
    return Publication(
        data=record.data,
        info=client_info(record.publisher) if record.publisher else None,
        offset=entry.offset,
        tags=record.tags,
        time=record.time,
    )


def framer(codec: Codec, framing: Framing) -> Callable[[bytes], bytes]:
    """Return the function of `framing` that frames the payloads of `codec`."""
    return framing.binary if codec.binary else framing.text


class Format:
    """One encoding in one framing, and the hub's topics of the clients that have both.

    The topic of a channel's subscribers is `publications` and the channel's name; of those that
    want its joins and leaves, `members` and the name.
    """

    __slots__ = ("codec", "frame", "members", "publications")

    def __init__(self, codec: Codec, framing: Framing) -> None:
        self.codec = codec
        self.frame = framer(codec, framing)
        self.publications = f"{codec.name} {framing.name} publications "
        self.members = f"{codec.name} {framing.name} members "


class Fanout:
    """Pushes to all clients of the protocol on this node.

    `on_unencodable` is given the connections of an encoding that cannot carry a push.
    """

    def __init__(
        self, hub: Hub, on_unencodable: Callable[[Connection, DisconnectCode], None]
    ) -> None:
        self._hub = hub
        self._on_unencodable = on_unencodable
        self._formats: dict[str, dict[str, Format]] = {}  # by encoding, and by framing

    def format(self, codec: Codec, framing: Framing) -> Format:
        """Return the format of an encoding in a framing; pushes are sent in it from now on."""
        framings = self._formats.setdefault(codec.name, {})
        if framing.name not in framings:
            framings[framing.name] = Format(codec, framing)
        return framings[framing.name]

    def publication(self, channel: str, entry: Entry, record: Record) -> None:
        """Push a publication to the channel's subscribers."""
        push = None
        for formats in self._formats.values():
            payload = None
            for each in formats.values():
                topic = each.publications + channel
                if self._hub.has(topic):
                    push = push or Push(to_publication(entry, record), channel)
                    payload = self._send(each, topic, push, payload)

    def membership(self, channel: str, joined: bool, member: Member) -> None:
        """Push a join or a leave to the channel's subscribers that want them."""
        info = client_info(member)
        push = Push(Join(info) if joined else Leave(info), channel)
        for formats in self._formats.values():
            payload = None
            for each in formats.values():
                topic = each.members + channel
                if self._hub.has(topic):
                    payload = self._send(each, topic, push, payload)

    def _send(self, to: Format, topic: str, push: Push, payload: bytes | None) -> bytes | None:
        """Send a push in one format; return its payload, which may have been encoded already."""
        try:
            payload = payload or to.codec.encode([Reply(push=push)])
        except ProtocolError as error:
            log.info("push_unencodable", channel=push.channel, error=str(error))
            for connection in self._hub.subscribers(topic):
                self._on_unencodable(connection, error.disconnect)
            return None
        self._hub.publish(topic, to.frame(payload))
        return payload


class Sender:
    """All that is sent to one client alone: replies, pushes, pings, and the close.

    `ended` is set when the connection ends: no further command is handled.
    """

    __slots__ = ("_client", "_codec", "_connection", "_frame", "ended")

    def __init__(self, connection: Connection, codec: Codec) -> None:
        self._client = connection.client_id
        self._connection = connection
        self._codec = codec
        self._frame = framer(codec, connection.framing)
        self.ended = False

    @property
    def paused(self) -> bool:
        """Whether nothing is read from the client: too much waits to be handled."""
        return self._connection.paused

    def reply(self, replies: Sequence[Reply]) -> None:
        """Send the answer to a command, and after it the pushes that were held back.

        Raises:
            ProtocolError: the encoding cannot carry the answer.
        """
        self._connection.uncork(self._frame(self._codec.encode(replies)))

    def push(self, event: Event, channel: str = "") -> None:
        """Send an event to the client; disconnect it if its encoding cannot carry the event."""
        try:
            payload = self._codec.encode([Reply(push=Push(event, channel))])
        except ProtocolError as error:
            self.unencodable(error)
        else:
            self._connection.send(self._frame(payload))

    def ping(self) -> None:
        """Send a ping of the protocol."""
        self._connection.send(self._frame(self._codec.ping))

    def unencodable(self, error: ProtocolError) -> None:
        """Disconnect the client, whose encoding cannot carry the data."""
        log.info("reply_unencodable", client_id=self._client, error=str(error))
        self.disconnect(error.disconnect)

    async def drained(self) -> None:
        """Wait before a reply that may be large, until the client has taken those before it.

        So a client that asks for much and reads nothing costs the node one such reply.

        Raises:
            DisconnectedError: the connection has ended meanwhile.
        """
        await self._connection.drained()
        if self.ended:
            raise DisconnectedError(DisconnectCode.CONNECTION_CLOSED)

    def disconnect(self, code: DisconnectCode | Close) -> None:
        """Close the connection; SDKs decide by the code whether to reconnect."""
        self.close(code.code, code.reason)

    def close(self, code: int, reason: str) -> None:
        """Close the connection with a code of the protocol, or of the server's API.

        The close frame alone has the code: over WebSocket there is no push before it.
        """
        self.ended = True
        self._connection.close(code, reason)
