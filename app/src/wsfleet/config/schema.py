"""The keys of the configuration file; their docstrings are their documentation."""

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, SecretStr, model_validator

from wsfleet.config.proxy import (
    DEFAULT_PROXY,
    ChannelProxies,
    ClientProxies,
    NamedProxy,
    Proxy,
    RpcConfig,
    RpcOptions,
    check_unique,
    named,
    naming,
)
from wsfleet.config.section import Section
from wsfleet.config.token import SubscriptionTokenConfig, TokenConfig
from wsfleet.config.types import Origin, Regex, Seconds, SecondsOrNever, WholeSeconds
from wsfleet.protocol import plain

ChannelEvent = Literal["subscribe", "publish", "sub_refresh"]

PRESENCE_TTL = 60
"""Seconds that an entry in a channel's presence lives unless it is renewed."""
CHANNEL_EVENTS: tuple[ChannelEvent, ...] = ("subscribe", "publish", "sub_refresh")


class ChannelOptions(Section):
    """The options for the channels of one namespace."""

    presence: bool = False
    """Store the list of subscribers, for the presence and presence_stats calls."""
    join_leave: bool = False
    """Send join and leave messages to subscribers that ask for them, or to all, see below."""
    force_push_join_leave: bool = False
    """Send join and leave messages to every subscriber."""
    history_size: NonNegativeInt = 0
    """Number of publications that the channel's stream keeps; 0 is no history."""
    history_ttl: WholeSeconds = 0
    """Time to live of the stream after its last publication; history needs this and a size."""
    history_meta_ttl: WholeSeconds = 0
    """Time to live of offset and epoch; 0 is `channel.history_meta_ttl`."""
    force_positioning: bool = False
    """Check every subscriber's position in the stream, so that a lost publication is noticed.

    Unlike Centrifugo, needs history."""
    allow_positioning: bool = False
    """Let subscribers ask for positioning. Clients that may read history always may."""
    force_recovery: bool = False
    """Send missed publications from history to subscribers that reconnect; includes positioning."""
    allow_recovery: bool = False
    """Let subscribers ask for recovery. Clients that may read history always may."""
    allow_subscribe_for_client: bool = False
    """Clients with a user may subscribe."""
    allow_subscribe_for_anonymous: bool = False
    """Extends `allow_subscribe_for_client` to clients without a user."""
    allow_publish_for_client: bool = False
    """Clients with a user may publish, subscribed or not."""
    allow_publish_for_subscriber: bool = False
    """Clients with a user may publish where they are subscribed."""
    allow_publish_for_anonymous: bool = False
    """Extends the two keys above to clients without a user."""
    allow_presence_for_client: bool = False
    """Clients with a user may ask for presence, subscribed or not."""
    allow_presence_for_subscriber: bool = False
    """Clients with a user may ask for presence where they are subscribed."""
    allow_presence_for_anonymous: bool = False
    """Extends the two keys above to clients without a user."""
    allow_history_for_client: bool = False
    """Clients with a user may read history, subscribed or not."""
    allow_history_for_subscriber: bool = False
    """Clients with a user may read history where they are subscribed."""
    allow_history_for_anonymous: bool = False
    """Extends the two keys above to clients without a user."""
    allow_user_limited_channels: bool = False
    """A name such as `chat#7,42` is open only to the users 7 and 42.

    Unlike Centrifugo, never to a client without a user, not even as `chat#`."""
    channel_regex: Regex = ""
    """The part of the name after the namespace must match this. It replaces the rule that names are
    ASCII."""
    durability: Literal["primary", "replicated"] = "primary"
    """A publish is acknowledged when the `primary` of Redis has it, or when it is `replicated` to a
    replica as well, see [redis.md](redis.md). Not a key of Centrifugo."""
    subscribe_proxy_enabled: bool = False
    """A backend decides who may subscribe, see [proxy.md](proxy.md), instead of
    `allow_subscribe_*`."""
    subscribe_proxy_name: str = DEFAULT_PROXY
    """The proxy for that: `default`, which is `channel.proxy.subscribe`, or one of `proxies`."""
    publish_proxy_enabled: bool = False
    """A backend decides who may publish, and what, instead of `allow_publish_*`."""
    publish_proxy_name: str = DEFAULT_PROXY
    """The proxy for that: `default`, which is `channel.proxy.publish`, or one of `proxies`."""
    sub_refresh_proxy_enabled: bool = False
    """A backend renews subscriptions that expire, instead of a token."""
    sub_refresh_proxy_name: str = DEFAULT_PROXY
    """The proxy for that: `default`, which is `channel.proxy.sub_refresh`, or one of `proxies`."""

    unsupported: ClassVar[str] = """
        map_clients_presence_channel_prefix map_users_presence_channel_prefix force_recovery_mode
        auto_cache_recover allowed_delta_types allow_tags_filter delta_publish
        publication_data_format
        subscribe_stream_proxy_enabled subscribe_stream_proxy_name
        subscribe_stream_proxy_bidirectional subscription_type map shared_poll
    """

    @property
    def has_history(self) -> bool:
        """Whether the channel's publications are kept."""
        return self.history_size > 0

    @model_validator(mode="after")
    def _history_is_whole(self) -> Self:
        if (self.history_size > 0) != (self.history_ttl > 0):
            raise ValueError("history needs both history_size and history_ttl")
        for name in ("force_recovery", "force_positioning"):
            if getattr(self, name) and not self.has_history:
                raise ValueError(f"{name} needs history_size and history_ttl")
        return self


class Namespace(ChannelOptions):
    """Options for the channels whose names begin with `name` and the boundary."""

    name: str = Field(pattern=r"^[-a-zA-Z0-9_.]{2,}$")
    """The namespace's name: two or more of `A-Z a-z 0-9 . _ -`; required."""


class ChannelConfig(Section):
    """How channels are named, and their options."""

    proxy: ChannelProxies = ChannelProxies()
    """Proxies for the events of channels, where a namespace switches them on."""
    without_namespace: ChannelOptions = ChannelOptions()
    """Options of channels without a namespace, such as the plain protocol's `broadcast`."""
    namespaces: list[Namespace] = []
    """Options of each namespace: a mapping with the same keys and `name`."""
    history_meta_ttl: WholeSeconds = 720 * 3600
    """Time to live of a stream's offset and epoch, unless its namespace sets it; not shorter than
    any `history_ttl`."""
    max_length: PositiveInt = 255
    """Longest name of a channel, in bytes. Unlike in Centrifugo, checked for every command, not
    only for subscribe."""
    private_prefix: str = "$"
    """A name with this prefix needs a subscription token. Empty: no name needs one."""
    namespace_boundary: str = ":"
    """Ends the namespace in a name. Empty: names have no namespace."""
    user_boundary: str = "#"
    """Begins the list of users in a name. Empty: no name has one."""
    user_separator: str = ","
    """Separates the users in a name. Empty: the list is one user."""

    unsupported: ClassVar[str] = "publication_data_format"

    def options(self) -> Iterator[tuple[str, ChannelOptions]]:
        """Yield the name and the options of each namespace; "" is channels without one."""
        yield "", self.without_namespace
        yield from ((namespace.name, namespace) for namespace in self.namespaces)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        check_unique("namespaces", [namespace.name for namespace in self.namespaces])
        for options in (self.without_namespace, *self.namespaces):
            if options.history_ttl > (options.history_meta_ttl or self.history_meta_ttl):
                where = f" of namespace {options.name}" if isinstance(options, Namespace) else ""
                raise ValueError(f"history_ttl{where} must not be longer than history_meta_ttl")
        special = (self.namespace_boundary, self.user_boundary)
        if (
            any(mark and mark in plain.CHANNEL for mark in special)
            or (self.private_prefix and plain.CHANNEL.startswith(self.private_prefix))
            or self.max_length < len(plain.CHANNEL)
        ):
            raise ValueError(f"{plain.CHANNEL!r} must stay an ordinary name without a namespace")
        return self


class PersonalChannel(Section):
    """A channel for each user; the server subscribes the user's connections to it."""

    enabled: bool = False
    """Subscribe each client with a user to `#USER`, or to `NAMESPACE:#USER`."""
    personal_channel_namespace: str = ""
    """The namespace of those channels. Empty: none."""
    single_connection: bool = False
    """A user's new connection ends the others, on every node, with code 3504, which is final for
    SDKs. Of several simultaneous ones the last stays. Plain protocol connections do not count.

    Unlike Centrifugo, does not need `presence`."""


class ClientConfig(Section):
    """Connections. The keys for tokens, origins and users also apply to the plain protocol."""

    token: TokenConfig = TokenConfig()
    """The keys that verify connection tokens; also subscription tokens unless the next is on."""
    subscription_token: SubscriptionTokenConfig = SubscriptionTokenConfig()
    """The keys that verify subscription tokens."""
    proxy: ClientProxies = ClientProxies()
    """Proxies for the events of connections."""
    allow_anonymous_connect_without_token: bool = False
    """Accept clients without a token; they are clients without a user."""
    disallow_anonymous_connection_tokens: bool = False
    """Refuse tokens whose `sub` is empty."""
    allowed_origins: list[Origin] = []
    """Origins of the web pages that may connect: `https://example.com`; `*`, `?` and `[a-z]` are
    wildcards. Empty: none. Clients without an Origin, which are not browsers, always may.

    Unlike Centrifugo, without `{a,b}`."""
    subscribe_to_user_personal_channel: PersonalChannel = PersonalChannel()
    """A channel for each user."""
    ping_interval: Seconds = 25.0
    """Time between two pings of the Centrifuge protocol; longer than `pong_timeout`.

    Unlike in Centrifugo, it cannot be off: dead connections would never be noticed."""
    pong_timeout: SecondsOrNever = 8.0
    """Time for the client's pong; after it the client is disconnected."""
    expired_close_delay: Seconds = 25.0
    """Time for the client to send a new token after the old one has expired."""
    expired_sub_close_delay: Seconds = 25.0
    """The same for the token of a subscription."""
    stale_close_delay: Seconds = 10.0
    """Time for the client to send its connect command."""
    presence_update_interval: Seconds = 27.0
    """Time between two renewals of a client's presence, which expires after 60 s: at most 30 s, so
    that one renewal may fail."""
    queue_max_size: PositiveInt = 8_388_608
    """Most bytes that wait for one client; one write counts for at most half of them. A slower
    client is disconnected with 3008. 1 MiB in Centrifugo, where one large write alone
    disconnects."""
    user_connection_limit: NonNegativeInt = 0
    """Most connections of a user on a node process, of both protocols together; 0 is no limit."""
    channel_limit: PositiveInt = 128
    """Most channels to which a client may be subscribed."""
    reply_max_size: PositiveInt = 2_097_152
    """Most bytes of publications or members in one reply. A subscribe or connect that would recover
    more gets `recovered: false`, a history or presence call error 106, also in the server API. Not
    a key of Centrifugo."""
    history_max_publication_limit: PositiveInt = 300
    """Most publications in one answer to a history call."""
    recovery_max_publication_limit: NonNegativeInt = 0
    """Most publications in a recovery. If more were missed, the client gets `recovered: false`.

    Unlike in Centrifugo (300), the default is 0: only the history and `reply_max_size` limit it."""

    unsupported: ClassVar[str] = """
        concurrency channel_position_check_delay channel_position_max_time_lag
        connection_limit connection_rate_limit connect_include_server_time
        insecure_skip_token_signature_verify user_id_http_header insecure
        connect_code_to_unidirectional_disconnect
    """

    @model_validator(mode="after")
    def _times_agree(self) -> Self:
        if self.ping_interval <= self.pong_timeout:
            raise ValueError("ping_interval must be longer than pong_timeout")
        if self.ping_interval < 1:
            raise ValueError(
                "ping_interval must be 1s or longer: SDKs get it in whole seconds, and with 0 "
                "they answer no ping"
            )
        if 2 * self.presence_update_interval > PRESENCE_TTL:
            raise ValueError(
                f"presence_update_interval must be {PRESENCE_TTL / 2:g}s or shorter: presence "
                f"lives for {PRESENCE_TTL}s, and a client must not vanish when one renewal fails"
            )
        return self


class HttpApi(Section):
    """The server's HTTP API."""

    key: SecretStr = SecretStr("")
    """The key for callers of the API. If it is empty and `keys` too, the API is closed."""
    keys: list[SecretStr] = []
    """Further accepted keys, for a change from one key to another. Not a key of Centrifugo."""
    error_mode: Literal["", "transport"] = ""
    """The form of errors: by default status 200 and `error`; with `transport` an HTTP status and
    the error alone. A request may choose it: `X-Centrifugo-Error-Mode: transport`."""

    unsupported: ClassVar[str] = "disabled handler_prefix external insecure"

    @property
    def accepted(self) -> list[str]:
        """All keys that open the API."""
        return [key for secret in (self.key, *self.keys) if (key := secret.get_secret_value())]


class Config(Section):
    """The whole file."""

    channel: ChannelConfig = ChannelConfig()
    """Channels."""
    client: ClientConfig = ClientConfig()
    """Clients."""
    rpc: RpcConfig = RpcConfig()
    """Calls of methods."""
    proxies: list[NamedProxy] = []
    """Further proxies, which namespaces refer to by `name`."""
    http_api: HttpApi = HttpApi()
    """The server's API."""

    unsupported: ClassVar[str] = """
        http_server log engine broker presence_manager map_broker controller shared_poll
        grpc_api consumers websocket sse http_stream webtransport uni_sse uni_http_stream
        uni_websocket uni_grpc emulation admin prometheus health swagger debug init opentelemetry
        graphite usage_stats node shutdown pid_file enable_unreleased_features
    """

    @model_validator(mode="after")
    def _personal_channels_exist(self) -> Self:
        personal = self.client.subscribe_to_user_personal_channel
        name = personal.personal_channel_namespace
        if personal.enabled and name and name not in {n.name for n in self.channel.namespaces}:
            where = "client.subscribe_to_user_personal_channel.personal_channel_namespace"
            raise ValueError(f"{where}: there is no namespace {name!r}")
        return self

    @model_validator(mode="after")
    def _proxies_exist(self) -> Self:
        check_unique("proxies", [proxy.name for proxy in self.proxies])
        for name, options in self.channel.options():
            where = f"channel.namespaces {name!r}" if name else "channel.without_namespace"
            for event in CHANNEL_EVENTS:
                with naming(f"{where}: {event}_proxy_name"):
                    self.channel_proxy(event, options)
        with naming("rpc.without_namespace: proxy_name"):
            self.rpc_proxy(self.rpc.without_namespace)
        for namespace in self.rpc.namespaces:
            with naming(f"rpc.namespaces {namespace.name!r}: proxy_name"):
                self.rpc_proxy(namespace)
        return self

    def channel_proxy(self, event: ChannelEvent, options: ChannelOptions) -> Proxy | None:
        """Return the proxy for an event of a namespace; None if it is not enabled."""
        enabled = getattr(options, f"{event}_proxy_enabled")
        name = getattr(options, f"{event}_proxy_name")
        default = getattr(self.channel.proxy, event)
        return self._proxy(name, default, f"channel.proxy.{event}", enabled=enabled)

    def rpc_proxy(self, options: RpcOptions) -> Proxy | None:
        """Return the proxy for the methods of a namespace; None if it is not enabled."""
        enabled, name = options.proxy_enabled, options.proxy_name
        return self._proxy(name, self.rpc.proxy, "rpc.proxy", enabled=enabled)

    def _proxy(self, name: str, default: Proxy, path: str, *, enabled: bool) -> Proxy | None:
        if not enabled and name == DEFAULT_PROXY:
            return None
        proxy = named(name, default, path, self.proxies)
        return proxy if enabled else None
