"""Control messages that nodes send each other (subscribe, disconnect, revoke, shed, survey)."""

from typing import Annotated, Literal

import msgspec

CloseCode = Annotated[int, msgspec.Meta(ge=0, le=4999)]
"""A close code (RFC 6455, section 7.4)."""


class UserCommand(msgspec.Struct, frozen=True, tag="Command"):
    """Subscribe, unsubscribe, disconnect or refresh the connections of a user.

    `client` and `session` narrow it to one connection, `keep` spares some. `code` and `reason` are
    those of a disconnect. `offset` and `epoch` are where a subscription is recovered from, if
    `recover`. `expire_at` (Unix seconds, 0 is never), `info`, `data` and `override` are those of a
    subscription, as in `auth.Grant`; the first two also those of a refresh, with `expired` for now.
    """

    do: Literal["subscribe", "unsubscribe", "disconnect", "refresh"]
    user: str
    client: str = ""
    channel: str = ""
    code: CloseCode = 0
    reason: str = ""
    keep: list[str] = []
    recover: bool = False
    offset: int = 0
    epoch: str = ""
    session: str = ""
    expire_at: int = 0
    expired: bool = False
    info: bytes = b""
    data: bytes = b""
    override: dict[str, bool] = {}

    def concerns(self, user: str, client: str) -> bool:
        """Return whether the command is for this connection."""
        return (
            user == self.user
            and (not self.client or client == self.client)
            and client not in self.keep
            and not self.session  # no connection has one
        )


class SingleConnection(msgspec.Struct, frozen=True, tag=True):
    """Of a user's connections only `client` may stay."""

    user: str
    client: str


class Revocation(msgspec.Struct, frozen=True, tag=True):
    """End the connections and subscriptions that rest on the token with this `jti`."""

    token: str


class Shed(msgspec.Struct, frozen=True, tag=True):
    """Send up to `count` clients to other nodes, `rate` a second; at least `keep` clients stay."""

    count: int
    keep: int
    rate: float


class Survey(msgspec.Struct, frozen=True, tag=True):
    """Ask every node for its `Count`, which goes to `asker`; `pattern` says which channels."""

    id: str
    asker: str
    pattern: str = ""


class Count(msgspec.Struct, frozen=True, tag=True):
    """A node's answer to a survey: numbers, and the subscribers of the channels asked for."""

    survey: str
    node: str
    clients: int
    users: int
    subscriptions: int
    channels: int
    subscribers: dict[str, int]


ControlMessage = UserCommand | SingleConnection | Revocation | Shed | Survey | Count

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ControlMessage)


def encode(message: ControlMessage) -> bytes:
    """Encode a control message."""
    return _encoder.encode(message)


def decode(data: bytes) -> ControlMessage:
    """Decode a control message.

    Raises:
        msgspec.DecodeError: it is invalid, or unknown.
    """
    try:
        message: ControlMessage = _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:  # not wrapped by msgspec
        raise msgspec.DecodeError(str(error)) from None
    return message
