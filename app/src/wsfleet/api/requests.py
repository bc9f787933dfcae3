"""The requests of the API.

Unknown fields are ignored, and `null` means that a field is absent. Defaults are those of
Centrifugo. Payloads keep the bytes that were received.

Source: internal/apiproto/api.proto of github.com/centrifugal/centrifugo.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct, defstruct, field

from wsfleet.channels.override import Override
from wsfleet.channels.permissions import ChannelError
from wsfleet.protocol import strict_json
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.protocol.payload import from_base64

UInt32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Meta(ge=0)]  # Meta knows no limit beyond int64: see `in_uint64`
UnixSeconds = Annotated[int, Meta(ge=-(2**53), le=2**53)]  # Redis counts milliseconds in int64
MAX_IDEMPOTENCY_KEY = 128


class RequestError(Exception):
    """An invalid body; `status` is the HTTP status of the response, and the text is the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StreamPosition(Struct):
    """A position in a channel's stream."""

    offset: UInt64 | None = 0
    epoch: str | None = ""

    def position(self) -> tuple[int, str]:
        """Return offset and epoch.

        Raises:
            ChannelError: the offset is too large.
        """
        return in_uint64("offset", self.offset), self.epoch or ""


class PublicationRequest(Struct):
    """A payload to publish: `data`, any JSON, or `b64data`, any bytes in Base64.

    The same `idempotency_key` within five minutes publishes once. A `version` that is not above
    that of the last publication, in the same `version_epoch`, is not published; it needs a channel
    with history. `delta` is not supported.
    """

    data: Raw = field(default_factory=Raw)
    b64data: str | None = ""
    skip_history: bool | None = False
    tags: dict[str, str] | None = None
    idempotency_key: str | None = ""
    delta: bool | None = False
    version: UInt64 | None = 0
    version_epoch: str | None = ""

    def payload(self) -> bytes:
        """Return the bytes to publish.

        Raises:
            ChannelError: the payload is missing, or an option is invalid or not supported.
        """
        if self.delta:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "delta compression is not supported")
        if len(self.idempotency_key or "") > MAX_IDEMPOTENCY_KEY:
            raise bad_request(f"idempotency_key is longer than {MAX_IDEMPOTENCY_KEY} characters")
        if in_uint64("version", self.version) and self.skip_history:
            raise bad_request("version needs history: leave out skip_history")
        data = payload("data", self.data, self.b64data)
        if data is None:
            raise bad_request("data is missing")
        return data


class Publish(PublicationRequest):
    """A request to publish to a channel."""

    channel: str | None = ""


class Broadcast(PublicationRequest):
    """A request to publish one payload to several channels; each has its own result."""

    channels: list[str] | None = None


class Target(Struct):
    """The connections of a user ("" are those without one), or only `client` or `session`.

    Connections have no sessions yet, so a request with `session` matches none. The fields of
    Centrifugo PRO, `label_filter` and `all_users`, are not supported.
    """

    user: str | None = ""
    client: str | None = ""
    session: str | None = ""
    label_filter: dict[str, Any] | None = None
    all_users: bool | None = False

    def target(self) -> dict[str, str]:
        """Return these fields for the control message to the nodes.

        Raises:
            ChannelError: a field is not supported.
        """
        if self.label_filter or self.all_users:
            raise ChannelError(
                ErrorCode.NOT_AVAILABLE, "label_filter and all_users are not supported"
            )
        return {
            "user": self.user or "",
            "client": self.client or "",
            "session": self.session or "",
        }


class Subscribe(Target):
    """A request to subscribe connections until `expire_at`, in Unix seconds; 0 is no expiry.

    Presence, join and leave contain `info`; the subscriber receives `data`.
    """

    channel: str | None = ""
    expire_at: UnixSeconds | None = 0
    info: Raw = field(default_factory=Raw)
    b64info: str | None = ""
    data: Raw = field(default_factory=Raw)
    b64data: str | None = ""
    recover_since: StreamPosition | None = None
    override: Override | None = None


class Unsubscribe(Target):
    """A request to end subscriptions to a channel; without a channel, all subscriptions."""

    channel: str | None = ""


class DisconnectReason(Struct):
    """A close code, 3000 to 4999, and a reason; over 123 bytes are cut off.

    SDKs do not reconnect after 3500 to 3999 and 4500 to 4999. 0 and "" mean 3503, force disconnect.
    """

    code: UInt32 | None = 0
    reason: str | None = ""


class Disconnect(Target):
    """A request to disconnect connections, except those of the clients in `whitelist`."""

    whitelist: list[str] | None = None
    disconnect: DisconnectReason | None = None
    # gocent v3 sends this name; Go reads keys without regard to case.
    gocent_disconnect: DisconnectReason | None = field(default=None, name="Disconnect")

    def reason(self) -> tuple[int, str]:
        """Return the close code and the reason.

        Raises:
            ChannelError: the code is not from 3000 to 4999.
        """
        given = self.disconnect or self.gocent_disconnect or DisconnectReason()
        default = DisconnectCode.FORCE_NO_RECONNECT
        code = given.code or default.code
        if not 3000 <= code <= 4999:
            raise bad_request("the code of disconnect must be from 3000 to 4999")
        return code, given.reason or default.reason


class Refresh(Target):
    """A request to set the expiry of connections: `expire_at`, in Unix seconds; 0 is no expiry.

    With `expired` they expire now. `info` replaces the connection's info in later subscriptions and
    publications.
    """

    expired: bool | None = False
    expire_at: UnixSeconds | None = 0
    info: Raw = field(default_factory=Raw)


class BlockUser(Struct):
    """A request to block a user until `expire_at`, in Unix seconds; 0 is until `unblock_user`."""

    user: str | None = ""
    expire_at: UnixSeconds | None = 0


class UnblockUser(Struct):
    """A request to unblock a user."""

    user: str | None = ""


class RevokeToken(Struct):
    """A request to refuse the token with the claim `jti` = `uid` until `expire_at`.

    The token's own expiry is late enough for `expire_at`.
    """

    uid: str | None = ""
    expire_at: UnixSeconds | None = 0


class Channel(Struct):
    """A request about one channel."""

    channel: str | None = ""


class History(Channel):
    """A request for publications after `since`, or in `reverse` before it.

    A limit of 0 requests the top position alone, a negative limit the whole history.
    """

    limit: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = 0
    since: StreamPosition | None = None
    reverse: bool | None = False


class Channels(Struct):
    r"""A request for the channels with subscribers whose names match `pattern`.

    `*` is any text, `?` a character, `[a-z]` and `[!a-z]` one of a set, `{a,b}` a choice, and `\`
    escapes. "" matches all.
    """

    pattern: str | None = ""


class Nothing(Struct):
    """A request without parameters."""


class OldCommand(Struct):
    """A command to `/api` itself, in the format of Centrifugo before version 5."""

    method: str | UInt32 | None = ""
    params: Raw = field(default_factory=Raw)
    id: UInt32 | None = 0


def batch_of(requests: Mapping[str, type[Struct]]) -> type[Struct]:
    """Return the type of a batch: commands, each with one of these methods and its request.

    Commands of a `parallel` batch run in any order.
    """
    members: list[Any] = [(name, kind | None, None) for name, kind in requests.items()]
    commands: Any = list[defstruct("Command", members) | None]  # type: ignore[misc]
    return defstruct(
        "Batch", [("commands", commands | None, None), ("parallel", bool | None, False)]
    )


class Reader:
    """A decoder of one type of request."""

    __slots__ = ("_decoder",)

    def __init__(self, kind: type[Struct]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def read(self, body: bytes) -> Any:
        """Decode and return a request.

        Raises:
            RequestError: 400 if the body is not JSON, 422 if a field is invalid.
        """
        try:
            strict_json.loads(body)
        except strict_json.InvalidJSONError as error:
            raise RequestError(400, f"the body is not JSON: {error}") from None
        try:
            return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise RequestError(422, f"the request is not valid: {error}") from None
        except RecursionError:
            raise RequestError(422, "the request is not valid: it nests too deep") from None


def documents(body: bytes) -> list[bytes]:
    """Split a body into its JSON documents, one at least.

    Raises:
        RequestError: 400 if the body is empty or not JSON.
    """
    try:
        return strict_json.split(body)
    except strict_json.InvalidJSONError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None


def payload(name: str, json: Raw, encoded: str | None) -> bytes | None:
    """Return a payload: the decoded Base64 if it is present, else the JSON.

    Raises:
        ChannelError: the text is not Base64, or its bytes are JSON to some parsers only.
    """
    if not encoded:
        return bytes(json) or None
    try:
        return from_base64(encoded)
    except ValueError as error:
        raise bad_request(f"b64{name}: {error}") from None


def in_uint64(name: str, value: int | None) -> int:
    """Return the value of a field of 64 bits; 0 for None.

    Raises:
        ChannelError: the value is above 2^64 - 1.
    """
    if (value or 0) >= 2**64:
        raise bad_request(f"{name} is above 2^64 - 1")
    return value or 0


def bad_request(message: str) -> ChannelError:
    """Return the error of a request with an invalid value."""
    return ChannelError(ErrorCode.BAD_REQUEST, message)
