"""The server's HTTP API, `/api`: requests, answers and errors as in Centrifugo's.

Every method is POST with a JSON object, and answers 200 with `result` or `error`; only a request
that is none (400, 422), has no key (401), or comes where no key is configured (403) gets another
status.
"""

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import orjson
import structlog
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError

from wsfleet import commands, records
from wsfleet.broker import ReplyTooLargeError
from wsfleet.channels import ChannelError
from wsfleet.node import Node
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.records import Member, Record
from wsfleet.store import UnavailableError
from wsfleet.stream import Entry
from wsfleet.websocket import KEYLESS_BODY_LIMIT
from wsfleet.websocket import Request as HTTPRequest

log = structlog.get_logger(__name__)

KEY_FIELD = "X-API-Key"
"""The field of a request's head that shows a key."""


class Request(BaseModel):
    """What all requests have in common: an unknown field is a mistake, and so is another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Channel(Request):
    """A request about one channel."""

    channel: str


class Publish(Channel):
    """Publish `data`, any JSON; the same `idempotency_key` within five minutes publishes once."""

    data: Any
    idempotency_key: str = Field(default="", max_length=128)
    tags: dict[str, str] = {}


class Broadcast(Request):
    """Publish the same to several channels; one may fail and another not."""

    channels: list[str]
    data: Any
    idempotency_key: str = Field(default="", max_length=128)
    tags: dict[str, str] = {}


class StreamPosition(Request):
    """A place in a channel's stream."""

    offset: int = Field(default=0, ge=0)
    epoch: str = ""


class Subscribe(Channel):
    """Subscribe the connections of a user, or only `client`, to a channel."""

    user: str
    client: str = ""
    recover_since: StreamPosition | None = None


class Unsubscribe(Request):
    """End the subscriptions of a user, or only of `client`; without a channel, all of them."""

    user: str
    channel: str = ""
    client: str = ""


class DisconnectReason(Request):
    """Close code and reason; 3500 to 3999 and 4500 to 4999 keep SDKs from coming back."""

    code: int = Field(default=DisconnectCode.FORCE_NO_RECONNECT.code, ge=3000, le=4999)
    reason: str = Field(
        default=DisconnectCode.FORCE_NO_RECONNECT.reason, min_length=1, max_length=120
    )


class Disconnect(Request):
    """Disconnect the connections of a user, or only `client`, or all but those in `whitelist`."""

    user: str
    client: str = ""
    whitelist: list[str] = []
    disconnect: DisconnectReason = DisconnectReason()


class BlockUser(Request):
    """Keep a user out until `expire_at`, in Unix seconds; 0 is until `unblock_user`."""

    user: str = Field(min_length=1)
    expire_at: int = Field(default=0, ge=0)


class UnblockUser(Request):
    """Let a user come again."""

    user: str


class RevokeToken(Request):
    """Refuse the token whose claim `jti` is `uid` until `expire_at`, which may be the token's."""

    uid: str = Field(min_length=1)
    expire_at: int = Field(default=0, ge=0)


class History(Channel):
    """Publications after (in reverse: before) `since`; a limit of 0 is the top position alone."""

    limit: int = Field(default=0, ge=-1)
    since: StreamPosition | None = None
    reverse: bool = False


class Channels(Request):
    """The channels that somebody is subscribed to; `pattern` as in a shell."""

    pattern: str = "*"


class Nothing(Request):
    """A request without parameters."""


class Error(BaseModel):
    """Why a method did not do it."""

    code: int
    message: str


class Failure(BaseModel):
    """The answer then."""

    error: Error


class Success(BaseModel):
    """The answer else; what is in it depends on the method."""

    result: dict[str, Any]


class Refusal(BaseModel):
    """The answer to who may not ask."""

    detail: str


R = TypeVar("R", bound=Request)
Method = Callable[[Any], Awaitable[dict[str, Any]]]


class Api:
    """The methods; each gives the `result`, or raises what becomes an `error`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def publish(self, request: Publish) -> dict[str, Any]:
        """Publish to a channel."""
        channel = self._node.channels.find(request.channel)
        record = Record(
            data=orjson.dumps(request.data),
            time=time.time_ns() // 1_000_000,
            tags=request.tags,
            node=self._node.settings.name,
        )
        position = await self._node.broker.publish(
            channel.name, channel.options, record, request.idempotency_key
        )
        if not channel.options.has_history:
            return {}
        return {"offset": position.offset, "epoch": position.epoch}

    async def broadcast(self, request: Broadcast) -> dict[str, Any]:
        """Publish to several channels."""
        common = request.model_dump(exclude={"channels"})
        publications = (Publish(channel=name, **common) for name in request.channels)
        answers = (answer(self.publish, publication) for publication in publications)
        return {"responses": await asyncio.gather(*answers)}

    async def subscribe(self, request: Subscribe) -> dict[str, Any]:
        """Subscribe connections to a channel."""
        self._node.channels.find(request.channel)
        since = request.recover_since
        await self._command(
            do="subscribe",
            user=request.user,
            client=request.client,
            channel=request.channel,
            recover=since is not None,
            offset=since.offset if since else 0,
            epoch=since.epoch if since else "",
        )
        return {}

    async def unsubscribe(self, request: Unsubscribe) -> dict[str, Any]:
        """End subscriptions."""
        await self._command(
            do="unsubscribe", user=request.user, client=request.client, channel=request.channel
        )
        return {}

    async def disconnect(self, request: Disconnect) -> dict[str, Any]:
        """Close connections."""
        await self._command(
            do="disconnect",
            user=request.user,
            client=request.client,
            keep=request.whitelist,
            code=request.disconnect.code,
            reason=request.disconnect.reason,
        )
        return {}

    async def block_user(self, request: BlockUser) -> dict[str, Any]:
        """Block a user, and disconnect them."""
        self._must_be_to_come(request.expire_at)
        await self._node.denylist.block(request.user, request.expire_at)
        code = DisconnectCode.PERMISSION_DENIED
        await self._command(do="disconnect", user=request.user, code=code.code, reason=code.reason)
        return {}

    async def unblock_user(self, request: UnblockUser) -> dict[str, Any]:
        """Unblock a user."""
        await self._node.denylist.unblock(request.user)
        return {}

    async def revoke_token(self, request: RevokeToken) -> dict[str, Any]:
        """Revoke a token, and disconnect who came with it."""
        self._must_be_to_come(request.expire_at)
        await self._node.denylist.revoke(request.uid, request.expire_at)
        await self._node.broker.command(commands.encode(commands.Revocation(request.uid)))
        return {}

    async def presence(self, request: Channel) -> dict[str, Any]:
        """Who is in a channel."""
        size = self._node.config.client.reply_max_size
        members = await self._members(request.channel, size)
        return {"presence": {client: _member(member) for client, member in members.items()}}

    async def presence_stats(self, request: Channel) -> dict[str, Any]:
        """How many are in a channel."""
        members = await self._members(request.channel, 0)
        users = {member.user for member in members.values()}
        return {"num_clients": len(members), "num_users": len(users)}

    async def history(self, request: History) -> dict[str, Any]:
        """Publications of a channel."""
        channel = self._node.channels.find(request.channel)
        if not channel.options.has_history:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "the channel has no history")
        since = request.since or StreamPosition()
        limit = request.limit if request.limit >= 0 else channel.options.history_size
        size = self._node.config.client.reply_max_size
        reading = await self._node.broker.history(
            channel.name,
            channel.options,
            since.offset,
            limit,
            max_size=size,
            reverse=request.reverse,
        )
        if reading.cut:
            raise ReplyTooLargeError(size)
        if since.epoch not in ("", reading.epoch):
            raise ChannelError(ErrorCode.UNRECOVERABLE_POSITION, "another epoch")
        publications = [
            _publication(entry, record)
            for entry, record in records.all_understood(channel.name, reading.entries)
        ]
        return {"publications": publications, "epoch": reading.epoch, "offset": reading.offset}

    async def history_remove(self, request: Channel) -> dict[str, Any]:
        """Remove a channel's publications; offsets go on."""
        channel = self._node.channels.find(request.channel)
        await self._node.broker.forget_history(channel.name)
        return {}

    async def channels(self, request: Channels) -> dict[str, Any]:
        """Channels with subscribers, and how many."""
        counts = await self._node.surveys.ask(await self._node.registry.nodes(), request.pattern)
        subscribers: Counter[str] = Counter()
        for count in counts.values():
            subscribers.update(count.subscribers)
        return {
            "channels": {name: {"num_clients": subscribers[name]} for name in sorted(subscribers)}
        }

    async def info(self, _: Nothing) -> dict[str, Any]:
        """The live nodes."""
        nodes = await self._node.registry.nodes()
        counts = await self._node.surveys.ask(nodes)
        return {
            "nodes": [
                {
                    "uid": name,
                    "name": name,
                    "version": described.get("version", ""),
                    "num_clients": counts[name].clients,
                    "num_users": counts[name].users,
                    "num_subs": counts[name].subscriptions,
                    "num_channels": counts[name].channels,
                    "uptime": max(0, int(time.time() - float(described.get("started", 0)))),
                }
                for name, described in sorted(nodes.items())
            ]
        }

    def _must_be_to_come(self, expire_at: int) -> None:
        if expire_at and expire_at <= time.time():
            raise ChannelError(ErrorCode.BAD_REQUEST, "expire_at is over: it is in Unix seconds")

    async def _members(self, name: str, max_size: int) -> dict[str, Member]:
        channel = self._node.channels.find(name)
        if not channel.options.presence:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "the channel has no presence")
        return await self._node.broker.members(channel.name, max_size=max_size)

    async def _command(self, **fields: Any) -> None:
        await self._node.broker.command(commands.encode(commands.Command(**fields)))


def _member(member: Member) -> dict[str, Any]:
    described: dict[str, Any] = {"client": member.client, "user": member.user}
    for name, data in (("conn_info", member.conn_info), ("chan_info", member.chan_info)):
        if data:
            described[name] = _fragment(data)
    return described


def _publication(entry: Entry, record: Record) -> dict[str, Any]:
    described: dict[str, Any] = {"data": _fragment(record.data), "offset": entry.offset}
    if record.publisher is not None:
        described["info"] = _member(record.publisher)
    if record.tags:
        described["tags"] = record.tags
    return described


def _fragment(data: bytes) -> Any:
    """Payload as JSON; one of a Protobuf client that is none becomes a string."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return data.decode(errors="replace")
    return orjson.Fragment(data)


async def answer(method: Method, request: Request) -> dict[str, Any]:
    """Call a method; its `result`, or the `error` that it ended with."""
    try:
        return {"result": await method(request)}
    except ChannelError as error:
        return _error(error.code, str(error))
    except (UnavailableError, RedisError) as error:
        log.warning("api request failed", error=str(error))
        return _error(ErrorCode.INTERNAL, str(error))


def _error(code: ErrorCode, message: str) -> dict[str, Any]:
    return {"error": {"code": code.code, "message": f"{code.message}: {message}"}}


def accepts_key(node: Node, shown: str) -> bool:
    """Whether this is one of the configured keys."""
    keys = node.config.http_api.accepted
    matches = [hmac.compare_digest(shown.encode(), key.encode()) for key in keys]
    return any(matches)  # all were compared: the time that it took tells nothing


def body_limit(node: Node, request: HTTPRequest) -> int:
    """Bytes that the body of a request may have, by the key that it shows."""
    if accepts_key(node, request.headers.get(KEY_FIELD, "")):
        return node.settings.max_request_size
    return KEYLESS_BODY_LIMIT


def key_check(node: Node) -> Callable[[str | None], Awaitable[None]]:
    """What a request must pass that is not for everybody, as a dependency of its route."""
    header = APIKeyHeader(name=KEY_FIELD, auto_error=False)

    async def check(given: Annotated[str | None, Depends(header)]) -> None:
        if not node.config.http_api.accepted:
            raise HTTPException(403, "the API is closed: http_api.key is not configured")
        if not accepts_key(node, given or ""):
            raise HTTPException(401, "the header X-API-Key is missing or wrong")

    return check


def create_router(node: Node) -> APIRouter:
    """The API's routes; without a key in the configuration nobody may use them."""
    api = Api(node)
    router = APIRouter(
        prefix="/api",
        tags=["server API"],
        dependencies=[Depends(key_check(node))],
        responses={
            400: {"model": Refusal, "description": "The body is no text in UTF-8."},
            401: {"model": Refusal, "description": "The header X-API-Key is missing or wrong."},
            403: {"model": Refusal, "description": "No key is configured."},
        },
    )

    def add(name: str, method: Method, model: type[R]) -> None:
        async def route(request: R) -> Response:
            return Response(
                orjson.dumps(await answer(method, request)), media_type="application/json"
            )

        route.__annotations__["request"] = model
        route.__doc__ = method.__doc__
        router.add_api_route(
            f"/{name}", route, methods=["POST"], name=name, response_model=Success | Failure
        )

    methods: list[tuple[Method, type[Request]]] = [
        (api.publish, Publish),
        (api.broadcast, Broadcast),
        (api.subscribe, Subscribe),
        (api.unsubscribe, Unsubscribe),
        (api.disconnect, Disconnect),
        (api.block_user, BlockUser),
        (api.unblock_user, UnblockUser),
        (api.revoke_token, RevokeToken),
        (api.presence, Channel),
        (api.presence_stats, Channel),
        (api.history, History),
        (api.history_remove, Channel),
        (api.channels, Channels),
        (api.info, Nothing),
    ]
    for method, model in methods:
        add(method.__name__, method, model)
    return router
