"""The keys of the configuration file; their docstrings are their documentation."""

import typing
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SecretStr,
    model_validator,
)

from wsfleet.config.types import Origin, Regex, Seconds, SecondsOrNever, WholeSeconds
from wsfleet.protocol import plain

PRESENCE_TTL = 60
"""Seconds that an entry in a channel's presence lives unless it is renewed."""


class Section(BaseModel):
    """A mapping of the file; an attribute is a key, its docstring the key's documentation."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    unsupported: ClassVar[str] = ""
    """Keys that Centrifugo 6.9 has in this section and that are not supported here."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None or k not in cls.model_fields}


class ChannelOptions(Section):
    """What holds for the channels of one namespace."""

    presence: bool = False
    """Keep who is subscribed, for the presence and presence_stats calls."""
    join_leave: bool = False
    """Tell subscribers who comes and goes: those that ask for it, or all, see below."""
    force_push_join_leave: bool = False
    """Send join and leave to every subscriber, asked for or not."""
    history_size: NonNegativeInt = 0
    """Publications that the channel's stream keeps; 0 is no history."""
    history_ttl: WholeSeconds = 0
    """How long the stream outlives its last publication; history needs this and a size."""
    history_meta_ttl: WholeSeconds = 0
    """How long offset and epoch are remembered; 0 is `channel.history_meta_ttl`."""
    force_positioning: bool = False
    """Watch every subscriber's position in the stream, so that a lost publication is noticed.

    Unlike Centrifugo, needs history."""
    allow_positioning: bool = False
    """Let a subscriber ask for positioning. Who may read history may ask as well."""
    force_recovery: bool = False
    """Send a subscriber that comes back what it missed, from history; includes positioning."""
    allow_recovery: bool = False
    """Let a subscriber ask for recovery. Who may read history may ask as well."""
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
    """A name such as `chat#7,42` is open to the users 7 and 42, and to them alone.

    Unlike Centrifugo, never to a client without a user, not even as `chat#`."""
    channel_regex: Regex = ""
    """What follows the namespace in the name must match. Set, it replaces the rule that names are
    ASCII."""
    durability: Literal["primary", "replicated"] = "primary"
    """When a publish is acknowledged: once Redis's `primary` has it, or once it is `replicated` to
    a replica as well, see [redis.md](redis.md). Not a key of Centrifugo's."""

    unsupported: ClassVar[str] = """
        map_clients_presence_channel_prefix map_users_presence_channel_prefix force_recovery_mode
        auto_cache_recover allowed_delta_types allow_tags_filter delta_publish
        publication_data_format subscribe_proxy_enabled subscribe_proxy_name publish_proxy_enabled
        publish_proxy_name sub_refresh_proxy_enabled sub_refresh_proxy_name
        subscribe_stream_proxy_enabled subscribe_stream_proxy_name
        subscribe_stream_proxy_bidirectional subscription_type map shared_poll
    """

    @property
    def has_history(self) -> bool:
        """Whether publications of the channel are kept."""
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

    without_namespace: ChannelOptions = ChannelOptions()
    """Options of channels without a namespace, the plain protocol's `broadcast` among them."""
    namespaces: list[Namespace] = []
    """Options of each namespace, which is a mapping of the same keys and `name`."""
    history_meta_ttl: WholeSeconds = 720 * 3600
    """How long offset and epoch of a stream are remembered, unless its namespace says otherwise;
    not shorter than any `history_ttl`."""
    max_length: PositiveInt = 255
    """Bytes of a channel's name. Unlike Centrifugo, checked for every use, not only to subscribe.
    """
    private_prefix: str = "$"
    """A name that begins so needs a subscription token. Empty: none does."""
    namespace_boundary: str = ":"
    """Ends the namespace in a name. Empty: there are no namespaces."""
    user_boundary: str = "#"
    """Begins the list of users in a name. Empty: no name has one."""
    user_separator: str = ","
    """Separates the users in a name. Empty: the list is one user."""

    unsupported: ClassVar[str] = "proxy publication_data_format"

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [namespace.name for namespace in self.namespaces]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"namespaces: the name {twice[0]!r} is given twice")
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


class TokenConfig(Section):
    """How tokens are checked: with any of these keys; without one no token is accepted."""

    hmac_secret_key: SecretStr = SecretStr("")
    """A secret that tokens are signed with (HS256, HS384, HS512): 32 bytes or more."""
    hmac_previous_secret_key: SecretStr = SecretStr("")
    """A second secret that is still accepted, while clients come over to a new one."""
    hmac_previous_secret_key_valid_until: NonNegativeInt = 0
    """Until when that is so, Unix seconds; 0 is for ever."""
    rsa_public_key: str = ""
    """A public key in PEM, of 2048 bits or more, for tokens with RS256, RS384 and RS512."""
    ecdsa_public_key: str = ""
    """A public key in PEM on the curve P-256, P-384 or P-521, for tokens with ES256, ES384 or ES512
    accordingly."""
    jwks_file: str = ""
    """A file with a JSON Web Key Set, whose RSA and EC keys are accepted; a token's `kid` chooses
    among them. Read again when it changes. Not a key of Centrifugo's, which fetches
    `jwks_public_endpoint`."""
    audience: str = ""
    """Unless empty, the claim `aud` must be this, or a list with it."""
    issuer: str = ""
    """Unless empty, the claim `iss` must be this."""

    unsupported: ClassVar[str] = """
        jwks_public_endpoint audience_regex issuer_regex user_id_claim
        insecure_skip_jwks_endpoint_safety_check
    """

    @model_validator(mode="after")
    def _previous_has_a_current(self) -> Self:
        if self.hmac_previous_secret_key.get_secret_value():
            if not self.hmac_secret_key.get_secret_value():
                raise ValueError("hmac_previous_secret_key needs hmac_secret_key")
        elif self.hmac_previous_secret_key_valid_until:
            raise ValueError("hmac_previous_secret_key_valid_until needs hmac_previous_secret_key")
        return self


class SubscriptionTokenConfig(TokenConfig):
    """How subscription tokens are checked, where they are not signed as connection tokens are."""

    enabled: bool = False
    """Check subscription tokens by this section, not by `client.token`."""


class PersonalChannel(Section):
    """A channel for each user, which the server subscribes its connections to."""

    enabled: bool = False
    """Subscribe each client with a user to `#USER`, or to `NAMESPACE:#USER`."""
    personal_channel_namespace: str = ""
    """The namespace of those channels. Empty: none."""
    single_connection: bool = False
    """A user's new connection ends the others, on every node, with code 3504, which is final for
    SDKs. Of several that come at once the last one stays. Those of the plain protocol do not count.

    Unlike Centrifugo, does not need `presence`."""


class ClientConfig(Section):
    """Connections. What is about tokens, origins and users holds for the plain protocol as well."""

    token: TokenConfig = TokenConfig()
    """How connection tokens are checked, and subscription tokens unless the next says otherwise."""
    subscription_token: SubscriptionTokenConfig = SubscriptionTokenConfig()
    """How subscription tokens are checked."""
    allow_anonymous_connect_without_token: bool = False
    """Accept clients without a token; they are clients without a user."""
    disallow_anonymous_connection_tokens: bool = False
    """Refuse tokens whose `sub` is empty."""
    allowed_origins: list[Origin] = []
    """Origins of the web pages that may connect: `https://example.com`; `*`, `?` and `[a-z]` are
    wildcards. Empty: none; clients that send no Origin, which are no browsers, always may.

    Unlike Centrifugo, without `{a,b}`."""
    subscribe_to_user_personal_channel: PersonalChannel = PersonalChannel()
    """A channel for each user."""
    ping_interval: Seconds = 25.0
    """Between two pings of the Centrifuge protocol; longer than `pong_timeout`.

    Unlike Centrifugo, cannot be off: a client that went away in silence would stay for ever."""
    pong_timeout: SecondsOrNever = 8.0
    """How long to wait for the answer until the client is disconnected."""
    expired_close_delay: Seconds = 25.0
    """How long a connection outlives its token, for the client to bring a new one."""
    expired_sub_close_delay: Seconds = 25.0
    """How long a subscription outlives its token."""
    stale_close_delay: Seconds = 10.0
    """How long a client may take to send its connect command."""
    presence_update_interval: Seconds = 27.0
    """Between two renewals of a client's presence, which lives for 60 s: 30 s at the most, so that
    one of them may fail."""
    queue_max_size: PositiveInt = 8_388_608
    """Bytes that may wait for one client, where one write counts for half of them at most; a slower
    one is disconnected with 3008. 1 MiB in Centrifugo, where the size of one write alone
    disconnects."""
    user_connection_limit: NonNegativeInt = 0
    """Connections that one user may have on a node process, of both protocols together; 0 is no
    limit."""
    channel_limit: PositiveInt = 128
    """Channels that one client may be subscribed to."""
    reply_max_size: PositiveInt = 2_097_152
    """Bytes of publications or members in one reply. A subscribe or connect that would recover more
    is answered with `recovered: false`, a history or presence call with error 106, also in the
    server API. Not a key of Centrifugo's."""
    history_max_publication_limit: PositiveInt = 300
    """Publications in one answer to a history call."""
    recovery_max_publication_limit: NonNegativeInt = 0
    """Missed publications that a recovery may send; with more it fails, and the client is told so.

    Unlike Centrifugo (300), 0 by default: no limit but the channel's history and `reply_max_size`.
    """

    unsupported: ClassVar[str] = """
        proxy concurrency channel_position_check_delay channel_position_max_time_lag
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
                "ping_interval must be 1s or longer: SDKs are told whole seconds, and when told 0 "
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
    """What callers of the API must show. Empty, and without `keys`: nobody may call it."""
    keys: list[SecretStr] = []
    """Further keys that are accepted, while callers come over from one to another. Not a key of
    Centrifugo's."""
    error_mode: Literal["", "transport"] = ""
    """How an error is answered: with status 200 and `error`, or, with `transport`, by an HTTP
    status and the error alone. A request may ask for that: `X-Centrifugo-Error-Mode: transport`."""

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
    http_api: HttpApi = HttpApi()
    """The server's API."""

    unsupported: ClassVar[str] = """
        http_server log engine broker presence_manager map_broker controller shared_poll rpc
        proxies grpc_api consumers websocket sse http_stream webtransport uni_sse uni_http_stream
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


def section_of(section: type[Section], key: str) -> type[Section] | None:
    """The section that `key` is, or that it is a list of."""
    annotation = section.model_fields[key].annotation
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def paths(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Path of each key in the section, and of those below it."""
    for key in section.model_fields:
        yield prefix + key
        if inner := section_of(section, key):
            is_list = typing.get_origin(section.model_fields[key].annotation) is list
            yield from paths(inner, f"{prefix}{key}{'[]' if is_list else ''}.")
