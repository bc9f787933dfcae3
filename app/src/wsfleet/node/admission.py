"""Admission of clients by their handshake: origin and token."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs

import structlog

from wsfleet.auth.denylist import Denylist
from wsfleet.auth.tokens import TokenError, TokenExpiredError, Verifier, origin_allowed
from wsfleet.config.schema import ClientConfig
from wsfleet.node.users import Users
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.redis.store import UnavailableError

log = structlog.get_logger(__name__)

RETRY_AFTER = "1"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a handshake that is refused; `label` is its reason in the metrics."""

    status: HTTPStatus
    label: str
    text: str

    @property
    def headers(self) -> dict[str, str]:
        """The header fields that the status needs (RFC 9110)."""
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            return {"Retry-After": RETRY_AFTER}
        return {"WWW-Authenticate": "Bearer"} if self.status is HTTPStatus.UNAUTHORIZED else {}


@dataclass(frozen=True, slots=True)
class Identity:
    """The user of a plain client, from its token; "" is no user.

    `expire_at` is in Unix seconds, 0 is never.
    """

    user: str = ""
    token_id: str = ""
    info: bytes = b""
    expire_at: int = 0


NOBODY = Identity()
"""A client without a token."""

ORIGIN = Refusal(HTTPStatus.FORBIDDEN, "origin", "this origin is not in client.allowed_origins")
NO_TOKEN = Refusal(
    HTTPStatus.UNAUTHORIZED, "no_token", "a token is needed: ?token= or Authorization: Bearer"
)
INVALID = Refusal(HTTPStatus.UNAUTHORIZED, "invalid_token", "the token is not valid")
EXPIRED = Refusal(
    HTTPStatus.UNAUTHORIZED, "expired_token", "the token is expired, or not valid yet"
)
REVOKED = Refusal(HTTPStatus.UNAUTHORIZED, "revoked_token", "the token is revoked")
ANONYMOUS = Refusal(
    HTTPStatus.FORBIDDEN, "anonymous_token", "a token without a user is not accepted"
)
BLOCKED = Refusal(HTTPStatus.FORBIDDEN, "blocked_user", "the user is blocked")
USER_LIMIT = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS, "user_connection_limit", "the user has too many connections"
)
UNCHECKED = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "Redis does not say whether the token is revoked"
)

_OBJECTIONS = {
    DisconnectCode.PERMISSION_DENIED: BLOCKED,
    DisconnectCode.INVALID_TOKEN: REVOKED,
}


class Admission:
    """The rules of the configuration's section `client`, for handshakes of both protocols."""

    def __init__(
        self, config: ClientConfig, tokens: Verifier, users: Users, denylist: Denylist
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._users = users
        self._denylist = denylist

    def origin(self, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a page may not connect; None if it may. Only browsers send an Origin."""
        allowed = origin_allowed(headers.get("origin"), self._config.allowed_origins)
        return None if allowed else ORIGIN

    async def identify(self, headers: Mapping[str, str], query: str) -> Identity | Refusal:
        """Return the identity of a plain client, or why it is refused."""
        token = _token(headers, query)
        if not token:
            return NOBODY if self._config.allow_anonymous_connect_without_token else NO_TOKEN
        try:
            found = self._tokens.verify_connection(token)
        except TokenExpiredError:
            return EXPIRED
        except TokenError as error:
            log.info("token_refused", error=str(error))
            return INVALID
        if not found.user and self._config.disallow_anonymous_connection_tokens:
            return ANONYMOUS
        if self._users.is_full(found.user):
            return USER_LIMIT
        try:
            objection = await self._denylist.objection(found.user, found.id)
        except UnavailableError:
            return UNCHECKED
        if objection is not None:
            return _OBJECTIONS[objection]
        return Identity(found.user, found.id, found.info or b"", found.expire_at)


def _token(headers: Mapping[str, str], query: str) -> str:
    """Return the token of a handshake: from the Authorization header (RFC 6750), or the query."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return parse_qs(query).get("token", [""])[0]
