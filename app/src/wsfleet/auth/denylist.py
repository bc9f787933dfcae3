"""Users who are blocked and tokens that are revoked: in Redis, for all nodes to come as well."""

import asyncio

from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.redis import key_names
from wsfleet.redis.store import Store


class Denylist:
    """Asked when a client comes; entries go by themselves at their time.

    All methods raise UnavailableError when Redis is away: who cannot be checked does not come in.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def block(self, user: str, expire_at: int) -> None:
        """Block a user until a moment in Unix seconds; 0 is for ever."""
        await self._put(key_names.blocked(user), expire_at)

    async def unblock(self, user: str) -> None:
        """Let a user come again."""
        await self._store.call("DEL", key_names.blocked(user))

    async def revoke(self, token: str, expire_at: int) -> None:
        """Refuse the token with this `jti` until a moment in Unix seconds; 0 is for ever."""
        await self._put(key_names.revoked(token), expire_at)

    async def objection(self, user: str, token: str) -> DisconnectCode | None:
        """Why this user, or who shows the token with this `jti`, may not be connected."""
        if not user and not token:
            return None
        blocked, revoked = await asyncio.gather(  # one round trip
            self.blocked(user), self.revoked(token)
        )
        if blocked:
            return DisconnectCode.PERMISSION_DENIED
        return DisconnectCode.INVALID_TOKEN if revoked else None

    async def blocked(self, user: str) -> bool:
        """Whether a user is blocked; "" is nobody."""
        return bool(user and await self._store.call("EXISTS", key_names.blocked(user)))

    async def revoked(self, token: str) -> bool:
        """Whether the token with this `jti` is revoked; "" is none."""
        return bool(token and await self._store.call("EXISTS", key_names.revoked(token)))

    async def _put(self, key: str, expire_at: int) -> None:
        expiry = ("EXAT", expire_at) if expire_at else ()
        await self._store.call("SET", key, 1, *expiry)
