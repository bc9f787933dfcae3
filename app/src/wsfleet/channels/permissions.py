"""Names of channels, and the permissions of clients in them: Centrifugo's rules, without I/O."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from wsfleet.config.schema import ChannelConfig, ChannelOptions
from wsfleet.config.types import compile_regex
from wsfleet.protocol.centrifuge.codes import ErrorCode


class ChannelError(Exception):
    """A channel cannot be used, by any client; `code` is the protocol's error."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel: its name, options, and the users that its name lists.

    `namespace` is "" for a channel without one. `users` is None if the name does not limit who may
    subscribe.
    """

    name: str
    namespace: str
    options: ChannelOptions
    private: bool
    users: frozenset[str] | None


class Channels:
    """The channels of the configuration, found by name."""

    def __init__(self, config: ChannelConfig) -> None:
        self._config = config
        self._options = {"": _completed(config.without_namespace, config)}
        for namespace in config.namespaces:
            self._options[namespace.name] = _completed(namespace, config)
        self._regexes: dict[str, Any] = {
            name: compile_regex(options.channel_regex)
            for name, options in self._options.items()
            if options.channel_regex
        }

    @property
    def namespaces(self) -> Collection[str]:
        """The names of all namespaces; "" is that of channels without one."""
        return self._options.keys()

    def find(self, name: str) -> Channel:
        """Return a channel that the server names: by its API, in a token, as a personal channel.

        Such a name may have characters that a client's may not, such as a user's name in any
        script.

        Raises:
            ChannelError: BAD_REQUEST if the name is empty or too long (in bytes of UTF-8),
                UNKNOWN_CHANNEL if its namespace does not exist.
        """
        return self._find(name)[0]

    def resolve(self, name: str) -> Channel:
        """Return a channel that a client names.

        Raises:
            ChannelError: as `find`, and BAD_REQUEST if the name does not match the namespace's
                `channel_regex` or, without one, is not ASCII.
        """
        channel, rest = self._find(name)
        if regex := self._regexes.get(channel.namespace):
            if not regex.search(rest):
                raise ChannelError(
                    ErrorCode.BAD_REQUEST, "channel name does not match channel_regex"
                )
        elif not name.isascii():
            raise ChannelError(ErrorCode.BAD_REQUEST, "channel name is not ASCII")
        return channel

    def short_name(self, channel: Channel) -> str:
        """Return a channel's name without its namespace."""
        if not channel.namespace:
            return channel.name
        return channel.name.partition(self._config.namespace_boundary)[2]

    def personal(self, user: str, namespace: str) -> str:
        """Return the name of a user's personal channel."""
        prefix = namespace + self._config.namespace_boundary if namespace else ""
        return f"{prefix}{self._config.user_boundary}{user}"

    def _find(self, name: str) -> tuple[Channel, str]:
        """Return the channel, and its name without the namespace."""
        config = self._config
        if not name:
            raise ChannelError(ErrorCode.BAD_REQUEST, "channel name is empty")
        if name.startswith("}"):  # its keys would have no hash tag in common
            raise ChannelError(ErrorCode.BAD_REQUEST, "channel name begins with }")
        try:
            size = len(name.encode())
        except UnicodeEncodeError:  # half a surrogate pair
            raise ChannelError(ErrorCode.BAD_REQUEST, "channel name is not Unicode") from None
        if size > config.max_length:
            raise ChannelError(ErrorCode.BAD_REQUEST, "channel name is too long")
        private = bool(config.private_prefix) and name.startswith(config.private_prefix)
        public_name = name.removeprefix(config.private_prefix)
        boundary = config.namespace_boundary
        if boundary and boundary in public_name:
            namespace, _, rest = public_name.partition(boundary)
        else:
            namespace, rest = "", name
        options = self._options.get(namespace)
        if options is None:
            raise ChannelError(ErrorCode.UNKNOWN_CHANNEL, f"unknown namespace {namespace!r}")
        users = self._users(name) if options.allow_user_limited_channels else None
        return Channel(name, namespace, options, private, users), rest

    def _users(self, name: str) -> frozenset[str] | None:
        boundary, separator = self._config.user_boundary, self._config.user_separator
        if not boundary or boundary not in name:
            return None
        users = name.rpartition(boundary)[2]
        return frozenset(users.split(separator) if separator else [users])


def may_subscribe(channel: Channel, user: str) -> ErrorCode | None:
    """Return why a client without a subscription token may not subscribe; None if it may.

    `user` is "" if it has none. A valid subscription token stands in for this permission.
    """
    options = channel.options
    if channel.private:
        allowed = False
    elif channel.users is not None:
        allowed = user != "" and user in channel.users
    else:
        allowed = options.allow_subscribe_for_client and (
            user != "" or options.allow_subscribe_for_anonymous
        )
    return None if allowed else ErrorCode.PERMISSION_DENIED


def may_publish(channel: Channel, user: str, *, subscribed: bool) -> ErrorCode | None:
    """Return why a client may not publish; None if it may."""
    options = channel.options
    allowed = _allowed(
        user,
        client=options.allow_publish_for_client,
        subscriber=options.allow_publish_for_subscriber and subscribed,
        anonymous=options.allow_publish_for_anonymous,
    )
    return None if allowed else ErrorCode.PERMISSION_DENIED


def may_see_presence(channel: Channel, user: str, *, subscribed: bool) -> ErrorCode | None:
    """Return why a client may not read presence; None if it may."""
    options = channel.options
    if not options.presence:
        return ErrorCode.NOT_AVAILABLE
    return None if _presence_allowed(options, user, subscribed) else ErrorCode.PERMISSION_DENIED


def may_read_history(channel: Channel, user: str, *, subscribed: bool) -> ErrorCode | None:
    """Return why a client may not read the channel's history; None if it may."""
    options = channel.options
    if not options.has_history:
        return ErrorCode.NOT_AVAILABLE
    return None if _history_allowed(options, user, subscribed) else ErrorCode.PERMISSION_DENIED


def subscription_options(
    channel: Channel,
    user: str,
    options: ChannelOptions,
    *,
    positioned: bool = False,
    recoverable: bool = False,
    join_leave: bool = False,
) -> ChannelOptions:
    """Return the options of one subscription, with what its client asks for and may have.

    `options` are the channel's own, or those with a token's overrides. Options that the client may
    not have are left out without an error, as the protocol requires.
    """
    own = channel.options
    may_read = _history_allowed(own, user, True)
    granted: list[str] = []
    if positioned and own.has_history and (own.allow_positioning or may_read):
        granted.append("force_positioning")
    if recoverable and own.has_history and (own.allow_recovery or may_read):
        granted.append("force_recovery")
    if join_leave and own.join_leave and _presence_allowed(own, user, True):
        granted.append("force_push_join_leave")
    return options.model_copy(update=dict.fromkeys(granted, True))


def _presence_allowed(options: ChannelOptions, user: str, subscribed: bool) -> bool:
    return _allowed(
        user,
        client=options.allow_presence_for_client,
        subscriber=options.allow_presence_for_subscriber and subscribed,
        anonymous=options.allow_presence_for_anonymous,
    )


def _history_allowed(options: ChannelOptions, user: str, subscribed: bool) -> bool:
    return _allowed(
        user,
        client=options.allow_history_for_client,
        subscriber=options.allow_history_for_subscriber and subscribed,
        anonymous=options.allow_history_for_anonymous,
    )


def _allowed(user: str, *, client: bool, subscriber: bool, anonymous: bool) -> bool:
    return (client or subscriber) and (user != "" or anonymous)


def _completed(options: ChannelOptions, config: ChannelConfig) -> ChannelOptions:
    if options.history_meta_ttl:
        return options
    return options.model_copy(update={"history_meta_ttl": config.history_meta_ttl})
