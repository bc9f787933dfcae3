"""The messages of the Centrifuge protocol, in all encodings.

Names are those of the schema, `client.proto`. A payload (`data`, `conn_info`, `chan_info`) is
`bytes`: JSON text on a JSON connection, anything on a Protobuf one; empty means there is none.
A field left at its default is not sent.
"""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
UInt64 = Annotated[int, Meta(ge=0)]  # Meta knows no limit beyond int64: the codec sets it
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

REJECT_UNRECOVERED = 2
"""Bit of `SubscribeRequest.flag`: answer error 112 where `recovered` would be false."""


@dataclass(slots=True)
class Error:
    """Why a command was not carried out; `codes.ErrorCode` has those of the protocol."""

    code: UInt32 = 0
    message: str = ""
    temporary: bool = False


@dataclass(slots=True)
class ClientInfo:
    """The client of a publication, join, leave or presence entry; `client` is a connection's id."""

    user: str = ""
    client: str = ""
    conn_info: bytes = b""
    chan_info: bytes = b""


@dataclass(slots=True)
class Publication:
    """A message in a channel; `time` in Unix milliseconds, `info` if a client published it.

    `offset` is its place in the channel's stream, from 1, or 0 in a channel without history.
    """

    data: bytes = b""
    info: ClientInfo | None = None
    offset: UInt64 = 0
    tags: dict[str, str] = field(default_factory=dict)
    delta: bool = False
    time: Int64 = 0


@dataclass(slots=True)
class StreamPosition:
    """A place in a channel's stream; offsets of different epochs do not compare."""

    offset: UInt64 = 0
    epoch: str = ""


# Requests, and the results that answer them.


@dataclass(slots=True)
class SubscribeRequest:
    """Join a channel; with `recover`, get what was published after (`epoch`, `offset`)."""

    channel: str = ""
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: UInt64 = 0
    data: bytes = b""
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    tf: bytes = b""
    flag: Int64 = 0
    type: Int32 = 0


@dataclass(slots=True)
class SubscribeResult:
    """Where the subscription begins; `ttl` in seconds."""

    expires: bool = False
    ttl: UInt32 = 0
    recoverable: bool = False
    epoch: str = ""
    publications: list[Publication] = field(default_factory=list)
    recovered: bool = False
    offset: UInt64 = 0
    positioned: bool = False
    data: bytes = b""
    was_recovering: bool = False
    delta: bool = False


@dataclass(slots=True)
class ConnectRequest:
    """The first command; `subs` are the server-side subscriptions to recover, by channel."""

    token: str = ""
    data: bytes = b""
    subs: dict[str, SubscribeRequest] = field(default_factory=dict)
    name: str = ""
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ConnectResult:
    """The client is in; `ping` and `ttl` in seconds, `time` in Unix milliseconds."""

    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: UInt32 = 0
    data: bytes = b""
    subs: dict[str, SubscribeResult] = field(default_factory=dict)
    ping: UInt32 = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    time: Int64 = 0


@dataclass(slots=True)
class UnsubscribeRequest:
    """Leave a channel."""

    channel: str = ""


@dataclass(slots=True)
class UnsubscribeResult:
    """The channel is left, or was never joined."""


@dataclass(slots=True)
class PublishRequest:
    """Publish `data` to a channel; `type` is 0, or for another kind of channel."""

    channel: str = ""
    data: bytes = b""
    type: Int32 = 0


@dataclass(slots=True)
class PublishResult:
    """The publication is accepted."""


@dataclass(slots=True)
class PresenceRequest:
    """Ask for the members of a channel."""

    channel: str = ""


@dataclass(slots=True)
class PresenceResult:
    """The clients in the channel, by connection id."""

    presence: dict[str, ClientInfo] = field(default_factory=dict)


@dataclass(slots=True)
class PresenceStatsRequest:
    """Ask how many are in a channel."""

    channel: str = ""


@dataclass(slots=True)
class PresenceStatsResult:
    """How many connections, and how many different users, are in the channel."""

    num_clients: UInt32 = 0
    num_users: UInt32 = 0


@dataclass(slots=True)
class HistoryRequest:
    """Ask for at most `limit` publications after (in reverse: before) `since`.

    A limit of 0 asks for the stream's top position alone, a negative one for all that may be had.
    """

    channel: str = ""
    limit: Int32 = 0
    since: StreamPosition | None = None
    reverse: bool = False


@dataclass(slots=True)
class HistoryResult:
    """Publications of a channel; `epoch` and `offset` are the top of its stream."""

    publications: list[Publication] = field(default_factory=list)
    epoch: str = ""
    offset: UInt64 = 0


@dataclass(slots=True)
class SendRequest:
    """A message to the server that has no answer, and therefore needs no command id."""

    data: bytes = b""


@dataclass(slots=True)
class RPCRequest:
    """Call a method of the server."""

    data: bytes = b""
    method: str = ""


@dataclass(slots=True)
class RPCResult:
    """The result of the method."""

    data: bytes = b""


@dataclass(slots=True)
class RefreshRequest:
    """A new token for the connection, before the old one expires."""

    token: str = ""


@dataclass(slots=True)
class RefreshResult:
    """The connection lives on, for `ttl` seconds if it expires."""

    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: UInt32 = 0


@dataclass(slots=True)
class SubRefreshRequest:
    """A new token for a subscription, before the old one expires."""

    channel: str = ""
    token: str = ""
    type: Int32 = 0


@dataclass(slots=True)
class SubRefreshResult:
    """The subscription lives on, for `ttl` seconds if it expires."""

    expires: bool = False
    ttl: UInt32 = 0


# Events that a server pushes.


@dataclass(slots=True)
class Join:
    """Somebody joined the channel."""

    info: ClientInfo | None = None


@dataclass(slots=True)
class Leave:
    """Somebody left the channel."""

    info: ClientInfo | None = None


@dataclass(slots=True)
class Unsubscribe:
    """The server ended a subscription; SDKs need both fields, see `codes.UnsubscribeCode`."""

    code: UInt32 = 0
    reason: str = ""


@dataclass(slots=True)
class Message:
    """A message to this connection that belongs to no channel."""

    data: bytes = b""


@dataclass(slots=True)
class Subscribe:
    """The server subscribed the connection to a channel."""

    recoverable: bool = False
    epoch: str = ""
    offset: UInt64 = 0
    positioned: bool = False
    data: bytes = b""


@dataclass(slots=True)
class Connect(ConnectResult):
    """The push of a `ConnectResult`, on transports whose clients cannot send commands."""


@dataclass(slots=True)
class Disconnect:
    """The connection is about to be closed; SDKs need both fields, see `codes.DisconnectCode`."""

    code: UInt32 = 0
    reason: str = ""


@dataclass(slots=True)
class Refresh:
    """The server gave the connection another lifetime, in seconds."""

    expires: bool = False
    ttl: UInt32 = 0


Request = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | RPCRequest
    | SendRequest
    | RefreshRequest
    | SubRefreshRequest
)
Result = (
    ConnectResult
    | SubscribeResult
    | UnsubscribeResult
    | PublishResult
    | PresenceResult
    | PresenceStatsResult
    | HistoryResult
    | RPCResult
    | RefreshResult
    | SubRefreshResult
)
Event = (
    Publication | Join | Leave | Unsubscribe | Message | Subscribe | Connect | Disconnect | Refresh
)


@dataclass(slots=True)
class Command:
    """One request of a client; one without id and request is its answer to a ping.

    `refusal` is the error that the command must be answered with instead of being carried out.
    """

    id: UInt32 = 0
    request: Request | None = None
    refusal: Error | None = None

    @property
    def is_pong(self) -> bool:
        """Whether this is the answer to a ping."""
        return self.request is None


@dataclass(slots=True)
class Push:
    """Something that happened, in a channel or (without one) to the connection."""

    event: Event
    channel: str = ""


@dataclass(slots=True)
class Reply:
    """The answer to command `id`, or a push; one without anything is a ping."""

    id: UInt32 = 0
    result: Result | None = None
    error: Error | None = None
    push: Push | None = None


PING = Reply()

# The schema's name of each kind. Of several requests in one command the first in this order
# counts: the order of Client.dispatchCommand in github.com/centrifugal/centrifuge, client.go.
REQUESTS: dict[type[Request], str] = {
    ConnectRequest: "connect",
    SubscribeRequest: "subscribe",
    UnsubscribeRequest: "unsubscribe",
    PublishRequest: "publish",
    PresenceRequest: "presence",
    PresenceStatsRequest: "presence_stats",
    HistoryRequest: "history",
    RPCRequest: "rpc",
    SendRequest: "send",
    RefreshRequest: "refresh",
    SubRefreshRequest: "sub_refresh",
}
RESULTS: dict[type[Result], str] = {
    ConnectResult: "connect",
    SubscribeResult: "subscribe",
    UnsubscribeResult: "unsubscribe",
    PublishResult: "publish",
    PresenceResult: "presence",
    PresenceStatsResult: "presence_stats",
    HistoryResult: "history",
    RPCResult: "rpc",
    RefreshResult: "refresh",
    SubRefreshResult: "sub_refresh",
}
EVENTS: dict[type[Event], str] = {
    Publication: "pub",
    Join: "join",
    Leave: "leave",
    Unsubscribe: "unsubscribe",
    Message: "message",
    Subscribe: "subscribe",
    Connect: "connect",
    Disconnect: "disconnect",
    Refresh: "refresh",
}

PARTS = (Error, ClientInfo, StreamPosition, Publication, SubscribeRequest, SubscribeResult)
MESSAGES: tuple[type, ...] = tuple(dict.fromkeys([*PARTS, *REQUESTS, *RESULTS, *EVENTS]))
"""All types that consist of fields; parts come before the types that contain them."""
