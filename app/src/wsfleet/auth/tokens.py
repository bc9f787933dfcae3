"""Connection and subscription tokens with Centrifugo's claims, and allowed origins.

The protocol's answer to a token that is refused:

    | error | connect | refresh | subscribe | sub_refresh |
    |---|---|---|---|---|
    | TokenExpiredError | error 109 | expired | error 109 | expired |
    | TokenInvalidError | disconnect 3500 | disconnect 3500 | error 103 | disconnect 3500 |
    | TokenMismatchError | | disconnect 3500 | disconnect 3500 | disconnect 3500 |
    | it is revoked | disconnect 3500 | disconnect 3500 | error 103 | error 103 |
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec
from jwt.exceptions import InvalidSignatureError, PyJWTError
from msgspec import Raw, Struct

from wsfleet.auth import token_keys
from wsfleet.channels.override import Override
from wsfleet.config.schema import ChannelOptions, ClientConfig
from wsfleet.config.token import TokenConfig
from wsfleet.protocol import strict_json
from wsfleet.protocol.payload import NULL, payload

NEED_HISTORY = ("force_positioning", "force_recovery")


class TokenError(Exception):
    """A token is refused; the text is for the server's log."""


class TokenInvalidError(TokenError):
    """The token is malformed, has no valid signature, or is not meant for this server."""


class TokenExpiredError(TokenError):
    """The token is expired, or not valid yet: the client should fetch another."""


class TokenMismatchError(TokenError):
    """The token is valid, but for another user, client or channel."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The rights and data that a token grants to one subscription.

    `info` is sent with presence, join, leave and publications, `data` to the subscriber itself;
    both are bytes, which are JSON unless the token has them in base64.
    """

    info: bytes | None = None
    data: bytes | None = None
    override: Mapping[str, bool] = field(default_factory=dict)

    def applied_to(self, options: ChannelOptions) -> ChannelOptions:
        """Return a channel's options with the token's overrides; none adds history."""
        override = self.override
        if not options.has_history:
            override = {key: on for key, on in override.items() if key not in NEED_HISTORY}
        return options.model_copy(update=override) if override else options


@dataclass(frozen=True, slots=True)
class ConnectionToken:
    """A client's identity.

    `id` is the claim `jti`, by which the token can be revoked. `expire_at` is in Unix seconds, 0
    is never. `info` is as in `Grant`, `meta` is JSON that only the server sees. `subs` are the
    channels that the server subscribes the client to.
    """

    user: str
    id: str
    expire_at: int
    info: bytes | None
    meta: bytes | None
    subs: Mapping[str, Grant]

    def check(self, *, user: str) -> None:
        """Check that a token for a refresh is of the connection's user.

        Raises:
            TokenMismatchError: it is not.
        """
        _must_match("user", self.user, user)


@dataclass(frozen=True, slots=True)
class SubscriptionToken:
    """The right to subscribe to one channel; `expire_at` is in Unix seconds, 0 is never.

    `id` is the claim `jti`. `client`, where it is not empty, is the only client that may use it.
    """

    user: str
    id: str
    channel: str
    client: str
    expire_at: int
    grant: Grant

    def check(self, *, channel: str, user: str, client: str) -> None:
        """Check that a token for subscribe or sub_refresh is for this channel, user and client.

        Raises:
            TokenMismatchError: it is not.
        """
        _must_match("channel", self.channel, channel)
        _must_match("user", self.user, user)
        if self.client:
            _must_match("client", self.client, client)


class Verifier:
    """A verifier of tokens, by one section of the configuration, whose path is `name`.

    Raises:
        ConfigError: a key is invalid.
    """

    def __init__(self, config: TokenConfig, name: str = "client.token") -> None:
        self._config = config
        self._name = name
        self._keys = token_keys.Keys(config, name)
        self._jws = token_keys.verifier()

    def verify_connection(self, token: str, now: float | None = None) -> ConnectionToken:
        """Verify a connection token; `now` is Unix seconds, the clock's by default.

        Raises:
            TokenInvalidError, TokenExpiredError: it is refused.
        """
        now = time.time() if now is None else now
        claims = _read(_ConnectionClaims, self._signed(token, now))
        self._check_recipient(claims)
        if claims.channel:
            raise TokenInvalidError("a subscription token does not connect")
        _check_time(claims, now)
        if claims.subs:
            subs = {channel: _grant(options) for channel, options in claims.subs.items()}
        else:
            subs = {channel: Grant() for channel in claims.channels or ()}
        return ConnectionToken(
            user=claims.sub or "",
            id=claims.jti or "",
            expire_at=claims.end,
            info=_payload("info", claims.info, claims.b64info),
            meta=_payload("meta", claims.meta, None),
            subs=subs,
        )

    def verify_subscription(self, token: str, now: float | None = None) -> SubscriptionToken:
        """Verify a subscription token; the caller calls `check` on the result.

        Raises:
            TokenInvalidError, TokenExpiredError: it is refused.
        """
        now = time.time() if now is None else now
        payload = self._signed(token, now)
        claims = _read(_SubscriptionClaims, payload)
        self._check_recipient(claims)
        _check_time(claims, now)
        if not claims.channel:
            raise TokenInvalidError("the claim channel is missing")
        return SubscriptionToken(
            user=claims.sub or "",
            id=claims.jti or "",
            channel=claims.channel,
            client=claims.client or "",
            expire_at=claims.end,
            grant=_grant(_read(SubscribeOptions, payload)),
        )

    def _signed(self, token: str, now: float) -> bytes:
        """Return the claims of a token that is signed with one of the keys."""
        keys = self._keys.current()
        if not keys:
            names = f"{self._name}.hmac_secret_key, rsa_public_key, ecdsa_public_key or jwks_file"
            raise TokenInvalidError(f"no key is configured: set {names}")
        reason: Exception | str = "its alg value is not allowed, or its kid not known"
        try:
            header = self._jws.get_unverified_header(token)
            for key in keys:
                if key.may_have_signed(header, now):
                    try:
                        found = self._jws.decode_complete(token, key.material, key.algorithms)
                    except InvalidSignatureError as error:
                        reason = error
                    else:
                        payload: bytes = found["payload"]
                        return payload
        except (PyJWTError, ValueError) as error:  # ValueError: text that is not UTF-8
            reason = error
        raise TokenInvalidError(str(reason))

    def _check_recipient(self, claims: "_Claims") -> None:
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
        if self._config.audience and self._config.audience not in audience:
            raise TokenInvalidError("the token is for another audience")
        if self._config.issuer and self._config.issuer != claims.iss:
            raise TokenInvalidError("the token is of another issuer")


def verifiers(config: ClientConfig) -> tuple[Verifier, Verifier]:
    """Return the verifiers of connection tokens and of subscription tokens.

    Raises:
        ConfigError: a key is invalid.
    """
    connection = Verifier(config.token)
    if not config.subscription_token.enabled:
        return connection, connection
    return connection, Verifier(config.subscription_token, "client.subscription_token")


def origin_allowed(origin: str | None, patterns: list[str]) -> bool:
    """Return whether a page of this origin may connect; None is a client that is no browser."""
    if not origin:
        return True
    return any(fnmatchcase(origin.lower(), pattern) for pattern in patterns)


# Claims in JSON: null counts as absent, and unknown ones are ignored.


class SubscribeOptions(Struct):
    """The grant of one subscription as JSON: in a token, or in the answer of a backend."""

    info: Raw = NULL
    b64info: str | None = None
    data: Raw = NULL
    b64data: str | None = None
    override: Override | None = None

    def grant(self) -> Grant:
        """Return the grant.

        Raises:
            ValueError: a payload is not valid.
        """
        return Grant(
            info=payload(self.info, self.b64info),
            data=payload(self.data, self.b64data),
            override=self.override.flags() if self.override else {},
        )


class _Claims(Struct):
    sub: str | None = None
    exp: int | float | None = None
    nbf: int | float | None = None
    expire_at: int | None = None
    jti: str | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    channel: str | None = None

    @property
    def end(self) -> int:
        """When the connection or subscription expires; the token itself expires at `exp`."""
        if self.expire_at is not None:
            return max(self.expire_at, 0)
        return int(self.exp or 0)


class _ConnectionClaims(_Claims):
    info: Raw = NULL
    b64info: str | None = None
    meta: Raw = NULL
    channels: list[str] | None = None
    subs: dict[str, SubscribeOptions] | None = None


class _SubscriptionClaims(_Claims):
    client: str | None = None


C = TypeVar("C", bound=Struct)


def _read(model: type[C], payload: bytes) -> C:
    try:
        strict_json.loads(payload)
        return msgspec.json.decode(payload, type=model)
    except (strict_json.InvalidJSONError, msgspec.DecodeError) as error:
        raise TokenInvalidError(f"claims: {error}") from None


def _check_time(claims: _Claims, now: float) -> None:
    if claims.exp is not None and claims.exp <= now:
        raise TokenExpiredError("the token is expired")
    if claims.nbf is not None and claims.nbf >= now:
        raise TokenExpiredError("the token is not valid yet")


def _must_match(what: str, token: str, client: str) -> None:
    if token != client:
        raise TokenMismatchError(f"the token is for {what} {token!r}, not {client!r}")


def _grant(options: SubscribeOptions) -> Grant:
    try:
        return options.grant()
    except ValueError as error:
        raise TokenInvalidError(f"claims b64info, b64data: {error}") from None


def _payload(claim: str, json: Raw, encoded: str | None) -> bytes | None:
    try:
        return payload(json, encoded)
    except ValueError as error:
        raise TokenInvalidError(f"claims b64{claim}: {error}") from None
