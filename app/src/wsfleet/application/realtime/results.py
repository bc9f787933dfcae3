"""The results of an application's handlers, and their JSON."""

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pydantic_core import to_json

from wsfleet.application import port
from wsfleet.auth.tokens import Grant
from wsfleet.protocol import strict_json

FLAGS = (
    "presence",
    "join_leave",
    "force_push_join_leave",
    "force_positioning",
    "force_recovery",
)
"""Options of a channel that a subscription may override."""
MAX_SESSION_NAME = 255
"""Bytes of the name of a session, which is part of a key in Redis."""
MAX_UNIX_SECONDS = 2**53
"""As in the answers of HTTP backends, see `http_proxy.answers`."""


@dataclass(frozen=True, slots=True)
class Allow:
    """The result of `on_subscribe`: what one subscription gets besides the permission.

    `info` is what others see of the client in this channel, `data` is for the client alone; both
    are JSON values or pydantic models. `expire_at` is in Unix seconds; 0 is never. The other
    fields override options of the channel; None leaves the channel's.
    """

    _: KW_ONLY
    info: Any = None
    data: Any = None
    expire_at: float = 0
    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_positioning: bool | None = None
    force_recovery: bool | None = None

    def answer(self, *, opaque: bool = True) -> port.Subscribed:
        """Return the answer for the node; `opaque`: the client takes data that are not JSON."""
        return port.Subscribed(self.grant(opaque=opaque), unix_seconds(self.expire_at))

    def grant(self, *, opaque: bool = True) -> Grant:
        """Return the answer for the node, without the expiry."""
        override = {flag: on for flag in FLAGS if (on := getattr(self, flag)) is not None}
        return Grant(optional(self.info), optional(self.data, opaque=opaque), override)


@dataclass(frozen=True, slots=True)
class Accept:
    """The result of `on_connect`: the client's identity; without a `user` it is anonymous.

    `expire_at` is in Unix seconds; 0 is never. `info` is what other clients see of this one, `meta`
    what only the server sees, `data` is for the client: JSON values or pydantic models. `channels`
    are those that the server subscribes it to, or a mapping of each to its `Allow`. `session` names
    the client's session, in at most 255 bytes: all clients with this name share it.

    Raises:
        TypeError: `user` or `session` is not a string, or `channels` is one.
        ValueError: `session` is too long. An `Allow` in `channels` expires; such subscriptions last
            as long as the connection.
    """

    user: str = ""
    _: KW_ONLY
    expire_at: float = 0
    info: Any = None
    meta: Any = None
    data: Any = None
    channels: Collection[str] | Mapping[str, Allow] = ()
    session: str = ""

    def __post_init__(self) -> None:
        """Check what a type checker would find, since a wrong type would reach other nodes."""
        for name, value in (("user", self.user), ("session", self.session)):
            if not isinstance(value, str):
                raise TypeError(f"{name} is a string: give {str(value)!r} instead of {value!r}")
        if len(self.session.encode()) > MAX_SESSION_NAME:
            raise ValueError(f"the name of a session has at most {MAX_SESSION_NAME} bytes: hash it")
        if isinstance(self.channels, str):
            raise TypeError(f"channels are a list of names: [{self.channels!r}]")
        if isinstance(self.channels, Mapping):
            for channel, allow in self.channels.items():
                if allow.expire_at:
                    raise ValueError(
                        f"the subscription to {channel!r} lasts as long as the connection: give "
                        "expire_at to Accept"
                    )

    def answer(self, *, opaque: bool = True) -> port.Connected:
        """Return the answer for the node; `opaque`: the client takes data that are not JSON.

        Raises:
            TypeError, ValueError: the name of a channel is not a string, or a value is not JSON.
        """
        channels = self.channels
        if not isinstance(channels, Mapping):
            channels = dict.fromkeys(channels, Allow())
        for channel in channels:
            if not isinstance(channel, str):
                raise TypeError(f"channels are a list of names: {channel!r} is not a string")
        return port.Connected(
            user=self.user,
            expire_at=unix_seconds(self.expire_at),
            info=optional(self.info) or b"",
            meta=optional(self.meta) or b"",
            data=optional(self.data, opaque=opaque) or b"",
            subs={channel: allow.grant(opaque=opaque) for channel, allow in channels.items()},
            session=self.session,
        )


@dataclass(frozen=True, slots=True)
class Renew:
    """The result of `on_refresh` and `on_sub_refresh`: when it expires next, in Unix seconds.

    0 is never. `info` and `meta` replace those of the client, and None leaves them; a subscription
    has no `meta`.
    """

    expire_at: float
    _: KW_ONLY
    info: Any = None
    meta: Any = None

    def answer(self) -> port.Renewed:
        """Return the answer for the node."""
        return port.Renewed(
            expire_at=unix_seconds(self.expire_at),
            info=optional(self.info),
            meta=optional(self.meta),
        )


def unix_seconds(expire_at: float) -> int:
    """Return a moment in whole seconds.

    Raises:
        ValueError: it is not from 0 to 2^53, which other nodes and backends read alike.
    """
    if not 0 <= expire_at <= MAX_UNIX_SECONDS:
        raise ValueError(f"expire_at is in Unix seconds, 0 is never: {expire_at} is neither")
    return int(expire_at)


def optional(value: object, *, opaque: bool = False) -> bytes | None:
    """Return a value as `encode` does; None if it is None."""
    return None if value is None else encode(value, opaque=opaque)


def encode(value: object, *, opaque: bool = True) -> bytes:
    """Return a JSON value, a pydantic model, or a structure of both as JSON.

    `bytes` are returned as they are: JSON, or nothing, or if `opaque` any payload. NaN and
    the infinities, which JSON does not have, become null.

    Raises:
        ValueError: the value has no JSON form, or not the same one for every parser.
    """
    data = value if isinstance(value, bytes) else to_json(value, inf_nan_mode="null")
    if opaque or not data:
        strict_json.check_opaque(data)
    else:
        strict_json.loads(data)
    return data
