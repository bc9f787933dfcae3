"""The events of an application's handlers: each handler has one argument, the event."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from wsfleet.application.port import Client

T = TypeVar("T", default=Any)
"""The type of an event's data: any JSON, or what the handler's annotation names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of one client."""

    client: Client

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the handshake, names in lower case."""
        return self.client.headers

    @property
    def emulated_headers(self) -> Mapping[str, str]:
        """The headers in the connect command, which a page can set, unlike those of its handshake.

        Any client may send any of them.
        """
        return self.client.emulated_headers

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies of the handshake."""
        return self.client.cookies

    @property
    def address(self) -> str:
        """The client's address, behind trusted proxies."""
        return self.client.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect(Event, Generic[T]):
    """A client without a token connects.

    `data` is that of the connect command. `name` and `version` are those of the client's program,
    `channels` those that it asks for.
    """

    data: T
    name: str = ""
    version: str = ""
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh(Event):
    """A connection expires now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEvent(Event):
    """An event of one client in a channel; `name` is the channel without its namespace."""

    channel: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe(ChannelEvent, Generic[T]):
    """A client without a subscription token subscribes; `data` is that of the command."""

    data: T


@dataclass(frozen=True, slots=True, kw_only=True)
class SubRefresh(ChannelEvent):
    """A subscription expires now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish(ChannelEvent, Generic[T]):
    """A client publishes `data`; nothing is published yet."""

    data: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc(Event, Generic[T]):
    """A client calls a method."""

    method: str
    data: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected(Event):
    """A connection has ended, for any reason.

    For a client of a node that died, `code` is 0, and the client has no headers, no state and no
    session.
    """

    code: int
    reason: str
