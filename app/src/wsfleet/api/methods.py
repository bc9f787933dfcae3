"""The methods of the API; each returns its `result`, or raises an exception for its `error`."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import orjson
import structlog
from msgspec import Struct
from redis.exceptions import RedisError

from wsfleet.api import requests
from wsfleet.api.requests import bad_request
from wsfleet.broker import control
from wsfleet.broker.broker import ReplyTooLargeError
from wsfleet.channels import glob, publication
from wsfleet.channels.permissions import ChannelError
from wsfleet.channels.publication import Member, Record
from wsfleet.channels.stream import Entry
from wsfleet.node.node import Node
from wsfleet.protocol.centrifuge.codes import DisconnectCode, ErrorCode
from wsfleet.protocol.json_depth import payload_too_deep
from wsfleet.redis.store import UnavailableError

log = structlog.get_logger(__name__)

T = TypeVar("T")
Result = dict[str, Any]
Method = Callable[[Any], Awaitable[Result]]
Call = tuple[str, Struct] | Result
"""A method's name and its request, or the answer to an invalid command."""


PUBLISHING = ("publish", "broadcast")
CONCURRENCY = 1024
"""Number of commands of a batch, or channels of a broadcast, that run at the same time."""


class Api:
    """The methods of the server API; `methods` maps a name to its function and request type."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.methods: dict[str, tuple[Method, type[Struct]]] = {
            "publish": (self.publish, requests.Publish),
            "broadcast": (self.broadcast, requests.Broadcast),
            "subscribe": (self.subscribe, requests.Subscribe),
            "unsubscribe": (self.unsubscribe, requests.Unsubscribe),
            "disconnect": (self.disconnect, requests.Disconnect),
            "refresh": (self.refresh, requests.Refresh),
            "block_user": (self.block_user, requests.BlockUser),
            "unblock_user": (self.unblock_user, requests.UnblockUser),
            "revoke_token": (self.revoke_token, requests.RevokeToken),
            "presence": (self.presence, requests.Channel),
            "presence_stats": (self.presence_stats, requests.Channel),
            "history": (self.history, requests.History),
            "history_remove": (self.history_remove, requests.Channel),
            "channels": (self.channels, requests.Channels),
            "info": (self.info, requests.Nothing),
        }
        self.requests = {name: kind for name, (_, kind) in self.methods.items()}

    async def answer(self, name: str, request: Struct) -> Result:
        """Call a method; return its `result` or its `error`."""
        return await _outcome(self.methods[name][0](request))

    async def answer_all(self, calls: Sequence[Call], *, parallel: bool = False) -> list[Result]:
        """Call methods, in order unless `parallel`; return the answers in the order of `calls`.

        Consecutive publications are sent to Redis together; Redis keeps their order.
        """
        answers: list[Result] = []
        together: list[Call] = []
        for call in calls:
            if isinstance(call, dict) or parallel or call[0] in PUBLISHING:
                together.append(call)
                continue
            answers += await _at_once(self._answer, together)
            together.clear()
            answers.append(await self._answer(call))
        return answers + await _at_once(self._answer, together)

    async def _answer(self, call: Call) -> Result:
        return call if isinstance(call, dict) else await self.answer(*call)

    async def publish(self, request: requests.Publish) -> Result:
        """Publish to a channel."""
        return await self._publish(request.channel or "", request, self._record(request))

    async def broadcast(self, request: requests.Broadcast) -> Result:
        """Publish to several channels."""
        if not request.channels:
            raise bad_request("channels is empty")
        record = self._record(request)

        async def publish(channel: str) -> Result:
            return await _outcome(self._publish(channel, request, record))

        return {"responses": await _at_once(publish, request.channels)}

    async def _publish(
        self, name: str, request: requests.PublicationRequest, record: Record
    ) -> Result:
        channel = self._node.channels.find(name)
        position = await self._node.broker.publish(
            channel.name,
            channel.options,
            record,
            request.idempotency_key or "",
            skip_history=bool(request.skip_history),
            version=request.version or 0,
            version_epoch=request.version_epoch or "",
        )
        if not position.offset and not position.epoch:
            return {}
        return {"offset": position.offset, "epoch": position.epoch}

    def _record(self, request: requests.PublicationRequest) -> Record:
        data = request.payload()
        most = self._node.settings.max_json_depth
        if payload_too_deep(data, most):
            raise bad_request(f"data nests deeper than {most} levels (WSFLEET_MAX_JSON_DEPTH)")
        return Record(
            data=data,
            time=time.time_ns() // 1_000_000,
            tags=request.tags or {},
            node=self._node.settings.name,
        )

    async def subscribe(self, request: requests.Subscribe) -> Result:
        """Subscribe connections to a channel."""
        self._node.channels.find(request.channel or "")
        since = request.recover_since
        offset, epoch = since.position() if since else (0, "")
        await self._command(
            do="subscribe",
            **request.target(),
            channel=request.channel,
            recover=since is not None,
            offset=offset,
            epoch=epoch,
            expire_at=self._future(request.expire_at),
            info=requests.payload("info", request.info, request.b64info) or b"",
            data=requests.payload("data", request.data, request.b64data) or b"",
            override=request.override.flags() if request.override else {},
        )
        return {}

    async def unsubscribe(self, request: requests.Unsubscribe) -> Result:
        """End subscriptions."""
        if request.channel:
            self._node.channels.find(request.channel)
        await self._command(do="unsubscribe", **request.target(), channel=request.channel or "")
        return {}

    async def disconnect(self, request: requests.Disconnect) -> Result:
        """Close connections."""
        code, reason = request.reason()
        await self._command(
            do="disconnect",
            **request.target(),
            keep=request.whitelist or [],
            code=code,
            reason=reason,
        )
        return {}

    async def refresh(self, request: requests.Refresh) -> Result:
        """Set the expiry of connections."""
        await self._command(
            do="refresh",
            **request.target(),
            expired=bool(request.expired),
            expire_at=request.expire_at or 0,
            info=requests.payload("info", request.info, None) or b"",
        )
        return {}

    async def block_user(self, request: requests.BlockUser) -> Result:
        """Block a user, and disconnect them."""
        if not request.user:
            raise bad_request("user is empty")
        expire_at = self._future(request.expire_at)
        await self._node.denylist.block(request.user, expire_at)
        code = DisconnectCode.PERMISSION_DENIED
        await self._command(do="disconnect", user=request.user, code=code.code, reason=code.reason)
        return {}

    async def unblock_user(self, request: requests.UnblockUser) -> Result:
        """Unblock a user."""
        await self._node.denylist.unblock(request.user or "")
        return {}

    async def revoke_token(self, request: requests.RevokeToken) -> Result:
        """Revoke a token, and end the connections and subscriptions that it authorized."""
        if not request.uid:
            raise bad_request("uid is empty")
        await self._node.denylist.revoke(request.uid, self._future(request.expire_at))
        await self._node.broker.publish_control(control.encode(control.Revocation(request.uid)))
        return {}

    async def presence(self, request: requests.Channel) -> Result:
        """List the clients in a channel."""
        members = await self._members(request, self._node.config.client.reply_max_size)
        return {"presence": {client: _member(member) for client, member in members.items()}}

    async def presence_stats(self, request: requests.Channel) -> Result:
        """Count the clients and users in a channel."""
        members = await self._members(request, 0)
        users = {member.user for member in members.values()}
        return {"num_clients": len(members), "num_users": len(users)}

    async def history(self, request: requests.History) -> Result:
        """Read publications of a channel."""
        channel = self._node.channels.find(request.channel or "")
        if not channel.options.has_history:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "the channel has no history")
        offset, epoch = (request.since or requests.StreamPosition()).position()
        limit = request.limit or 0
        size = self._node.config.client.reply_max_size
        reading = await self._node.broker.history(
            channel.name,
            channel.options,
            offset,
            limit if limit >= 0 else channel.options.history_size,
            max_size=size,
            reverse=bool(request.reverse),
        )
        if reading.cut:
            raise ReplyTooLargeError(size)
        if epoch not in ("", reading.epoch):
            raise ChannelError(ErrorCode.UNRECOVERABLE_POSITION, "another epoch")
        publications = [
            _publication(entry, record)
            for entry, record in publication.all_understood(channel.name, reading.entries)
        ]
        return {"publications": publications, "epoch": reading.epoch, "offset": reading.offset}

    async def history_remove(self, request: requests.Channel) -> Result:
        """Remove a channel's publications; offsets go on."""
        channel = self._node.channels.find(request.channel or "")
        await self._node.broker.forget_history(channel.name)
        return {}

    async def channels(self, request: requests.Channels) -> Result:
        """List the channels with subscribers, and their numbers of clients."""
        pattern = request.pattern or "*"
        try:
            glob.compile_glob(pattern)
        except ValueError as error:
            raise bad_request(f"pattern: {error}") from None
        counts = await self._node.surveys.ask(await self._node.registry.nodes(), pattern)
        subscribers: Counter[str] = Counter()
        for count in counts.values():
            subscribers.update(count.subscribers)
        return {
            "channels": {name: {"num_clients": subscribers[name]} for name in sorted(subscribers)}
        }

    async def info(self, _: requests.Nothing) -> Result:
        """List the live nodes."""
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

    def _future(self, expire_at: int | None) -> int:
        if expire_at and expire_at <= time.time():
            raise bad_request("expire_at is in the past: give a later time, in Unix seconds")
        return expire_at or 0

    async def _members(self, request: requests.Channel, max_size: int) -> dict[str, Member]:
        channel = self._node.channels.find(request.channel or "")
        if not channel.options.presence:
            raise ChannelError(ErrorCode.NOT_AVAILABLE, "the channel has no presence")
        return await self._node.broker.members(channel.name, max_size=max_size)

    async def _command(self, **fields: Any) -> None:
        await self._node.broker.publish_control(control.encode(control.UserCommand(**fields)))


async def _outcome(work: Awaitable[Result]) -> Result:
    try:
        return {"result": await work}
    except ChannelError as error:
        return failure(error.code, str(error))
    except (UnavailableError, RedisError) as error:
        log.warning("api_request_failed", error=str(error))
        return failure(ErrorCode.INTERNAL, str(error))


async def _at_once(work: Callable[[T], Awaitable[Result]], things: Sequence[T]) -> list[Result]:
    """Call `work` for each of `things`, `CONCURRENCY` at a time; return results in their order."""
    results: list[Result] = []
    for start in range(0, len(things), CONCURRENCY):
        results += await asyncio.gather(*map(work, things[start : start + CONCURRENCY]))
    return results


def failure(code: ErrorCode, message: str) -> Result:
    """Return the answer of a method that ended with an error."""
    # Clients of Centrifugo compare the message of this error, so nothing is added to it.
    if code is not ErrorCode.UNKNOWN_CHANNEL:
        message = f"{code.message}: {message}"
    else:
        message = code.message
    return {"error": {"code": code.code, "message": message}}


def _member(member: Member) -> Result:
    described: Result = {"client": member.client, "user": member.user}
    for name, data in (("conn_info", member.conn_info), ("chan_info", member.chan_info)):
        if data:
            described[name] = _fragment(data)
    return described


def _publication(entry: Entry, record: Record) -> Result:
    described: Result = {"data": _fragment(record.data), "offset": entry.offset}
    if record.publisher is not None:
        described["info"] = _member(record.publisher)
    if record.tags:
        described["tags"] = record.tags
    return described


def _fragment(data: bytes) -> Any:
    """Return a payload as JSON; a Protobuf client's payload that is not JSON becomes a string."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return data.decode(errors="replace")
    return orjson.Fragment(data)
