"""Calls of the server API, from the application in the node's process."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import orjson
from msgspec import Raw, Struct
from redis.exceptions import RedisError

from wsfleet.api import requests
from wsfleet.api.methods import Api
from wsfleet.application.realtime.results import FLAGS, encode, optional
from wsfleet.channels.permissions import ChannelError
from wsfleet.channels.stream import Position
from wsfleet.protocol.centrifuge.codes import ErrorCode
from wsfleet.redis.store import UnavailableError

R = TypeVar("R")
S = TypeVar("S", bound=Struct)

TEMPORARY = frozenset(each.code for each in ErrorCode if each.temporary)


class CallError(Exception):
    """A call that failed, with code and message of the server API.

    After a `temporary` error, try again: Redis is unavailable, and it is unknown whether the call
    was carried out. A publication with an idempotency key is published once.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.temporary = code in TEMPORARY

    def __str__(self) -> str:
        """Return code and message."""
        return f"{self.code}: {self.message}"


@contextlib.contextmanager
def call_errors() -> Iterator[None]:
    """Raise the errors of channels and Redis inside of the block as CallError."""
    try:
        yield
    except ChannelError as error:
        raise CallError(error.code.code, f"{error.code.message}: {error}") from None
    except (UnavailableError, RedisError) as error:
        internal = ErrorCode.INTERNAL
        raise CallError(internal.code, f"{internal.message}: {error}") from None


class ClientInfo(Struct, frozen=True):
    """A client as others see it: of its connection, and of its subscription to the channel."""

    client: str
    user: str = ""
    conn_info: Any = None
    chan_info: Any = None


class Publication(Struct, frozen=True):
    """A publication of a channel; `info` is its publisher, None if it was the server.

    `data` is a JSON value; text, if a client has published what is not JSON. Without history, the
    offset is 0 and the epoch "".
    """

    data: Any
    offset: int = 0
    epoch: str = ""
    info: ClientInfo | None = None
    tags: dict[str, str] = {}

    @property
    def position(self) -> Position:
        """The position of the publication: those after it are history(since=position)."""
        return Position(self.offset, self.epoch)


class History(Struct, frozen=True):
    """Publications of a channel; `offset` and `epoch` are those of the newest one."""

    publications: list[Publication]
    offset: int
    epoch: str

    @property
    def position(self) -> Position:
        """The position of the newest publication in the channel."""
        return Position(self.offset, self.epoch)


class PresenceStats(Struct, frozen=True):
    """The numbers of clients and of users in a channel."""

    num_clients: int
    num_users: int


class NodeInfo(Struct, frozen=True):
    """One live node of the cluster; `uptime` is in seconds."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: int


class _Position(Struct):
    offset: int = 0
    epoch: str = ""


class _Presence(Struct):
    presence: dict[str, ClientInfo]


class _Channel(Struct):
    num_clients: int


class _Channels(Struct):
    channels: dict[str, _Channel]


class _Info(Struct):
    nodes: list[NodeInfo]


class Calls:
    """The calls; each has the arguments of the server API's method of the same name.

    `data` and `info` are JSON values, pydantic models, or bytes that have been encoded already.
    Every call raises CallError if it fails, ValueError if a value has no JSON form, and
    RuntimeError if no node serves the application.
    """

    def _calls(self) -> Api:
        """Return the server API of the node in this process."""
        raise NotImplementedError

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        idempotency_key: str = "",
        tags: Mapping[str, str] | None = None,
        skip_history: bool = False,
        version: int = 0,
        version_epoch: str = "",
    ) -> Position:
        """Publish to a channel; return the position, with offset 0 if there is no history.

        The same `idempotency_key` within five minutes publishes once. A `version` that is not above
        that of the last publication, in the same `version_epoch`, is not published.
        """
        request = _request(
            requests.Publish,
            channel=channel,
            data=Raw(encode(data)),
            idempotency_key=idempotency_key,
            tags=dict(tags or {}),
            skip_history=skip_history,
            version=version,
            version_epoch=version_epoch,
        )
        answer = _result(await self._calls().answer("publish", request))
        return Position(answer.get("offset", 0), answer.get("epoch", ""))

    async def broadcast(
        self,
        channels: Sequence[str],
        data: object,
        *,
        idempotency_key: str = "",
        tags: Mapping[str, str] | None = None,
        skip_history: bool = False,
    ) -> list[Position | CallError]:
        """Publish to several channels; return the position or the error of each, in order."""
        if isinstance(channels, str):
            raise TypeError(f"channels are a list of names: [{channels!r}]")
        request = _request(
            requests.Broadcast,
            channels=list(channels),
            data=Raw(encode(data)),
            idempotency_key=idempotency_key,
            tags=dict(tags or {}),
            skip_history=skip_history,
        )
        answer = _result(await self._calls().answer("broadcast", request))
        return [_position_or_error(each) for each in answer["responses"]]

    async def subscribe(
        self,
        user: str,
        channel: str,
        *,
        client: str = "",
        expire_at: float = 0,
        info: object = None,
        data: object = None,
        recover_since: Position | None = None,
        override: Mapping[str, bool] | None = None,
    ) -> None:
        """Subscribe a user's connections, or one `client` of them, until `expire_at`.

        `expire_at` is in Unix seconds, 0 is never. `override` has options of the channel for these
        subscriptions, such as {"presence": False}.
        """
        if unknown := set(override or ()) - set(FLAGS):
            raise CallError(
                ErrorCode.BAD_REQUEST.code,
                f"override has {', '.join(sorted(unknown))}; it may have {', '.join(FLAGS)}",
            )
        flags = {name: {"value": on} for name, on in (override or {}).items()}
        request = _request(
            requests.Subscribe,
            user=user,
            channel=channel,
            client=client,
            expire_at=int(expire_at),
            info=Raw(optional(info) or b""),
            data=Raw(optional(data, opaque=True) or b""),
            recover_since=_stream_position(recover_since),
            override=flags or None,
        )
        _result(await self._calls().answer("subscribe", request))

    async def unsubscribe(self, user: str, channel: str, *, client: str = "") -> None:
        """Unsubscribe a user's connections, or one `client` of them; "" is all their channels."""
        request = _request(requests.Unsubscribe, user=user, channel=channel, client=client)
        _result(await self._calls().answer("unsubscribe", request))

    async def disconnect(
        self,
        user: str,
        *,
        client: str = "",
        whitelist: Collection[str] = (),
        code: int = 0,
        reason: str = "",
    ) -> None:
        """Disconnect a user's connections, or one `client` of them, except those of `whitelist`.

        `code` is from 3000 to 4999; SDKs do not reconnect after 3500 to 3999 and 4500 to 4999. 0 is
        3503, force disconnect.
        """
        if isinstance(whitelist, str):
            raise TypeError(f"whitelist is a list of clients: [{whitelist!r}]")
        request = _request(
            requests.Disconnect,
            user=user,
            client=client,
            whitelist=list(whitelist),
            disconnect={"code": code, "reason": reason},
        )
        _result(await self._calls().answer("disconnect", request))

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        """Return the clients in a channel, by their ids."""
        return (
            await self._read("presence", _request(requests.Channel, channel=channel), _Presence)
        ).presence

    async def presence_stats(self, channel: str) -> PresenceStats:
        """Count the clients and users in a channel."""
        return await self._read(
            "presence_stats", _request(requests.Channel, channel=channel), PresenceStats
        )

    async def history(
        self,
        channel: str,
        *,
        limit: int = 0,
        since: Position | None = None,
        reverse: bool = False,
    ) -> History:
        """Return publications after `since`, or in `reverse` before it, oldest or newest first.

        A limit of 0 returns the position alone, a negative one the whole history.
        """
        request = _request(
            requests.History,
            channel=channel,
            limit=limit,
            since=_stream_position(since),
            reverse=reverse,
        )
        found = await self._read("history", request, History)
        publications = [
            msgspec.structs.replace(each, epoch=found.epoch) for each in found.publications
        ]
        return msgspec.structs.replace(found, publications=publications)

    async def history_remove(self, channel: str) -> None:
        """Remove a channel's publications; offsets go on."""
        _result(
            await self._calls().answer(
                "history_remove", _request(requests.Channel, channel=channel)
            )
        )

    async def channels(self, pattern: str = "") -> dict[str, int]:
        """Return the channels with subscribers, and their numbers of clients.

        `*` in a pattern is any text, `?` a character, `[a-z]` one of a set, `{a,b}` a choice.
        """
        found = await self._read(
            "channels", _request(requests.Channels, pattern=pattern), _Channels
        )
        return {name: channel.num_clients for name, channel in found.channels.items()}

    async def info(self) -> list[NodeInfo]:
        """Return the live nodes of the cluster."""
        return (await self._read("info", requests.Nothing(), _Info)).nodes

    async def _read(self, method: str, request: Struct, kind: type[R]) -> R:
        answer = _result(await self._calls().answer(method, request))
        return msgspec.json.decode(orjson.dumps(answer), type=kind)


def _request(kind: type[S], **fields: Any) -> S:
    """Return a request, whose fields are checked as those of the API over HTTP."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise CallError(ErrorCode.BAD_REQUEST.code, f"bad request: {error}") from None


def _stream_position(position: Position | None) -> dict[str, Any] | None:
    return None if position is None else {"offset": position.offset, "epoch": position.epoch}


def _result(answer: Mapping[str, Any]) -> Any:
    if (error := answer.get("error")) is not None:
        raise CallError(error["code"], error["message"])
    return answer["result"]


def _position_or_error(answer: Mapping[str, Any]) -> Position | CallError:
    try:
        result = _result(answer)
    except CallError as error:
        return error
    return Position(result.get("offset", 0), result.get("epoch", ""))
