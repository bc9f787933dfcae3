"""The denylist of users and tokens, in Redis: it holds on all nodes, also later ones."""

import asyncio

from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.redis import key_names
from wsfleet.redis.store import Store


class Denylist:
    """The denylist; entries expire by themselves.

    All methods raise UnavailableError if Redis is unavailable: a client that cannot be checked is
    refused.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def block(self, user: str, expire_at: int) -> None:
        """Block a user until a moment in Unix seconds; 0 is for ever."""
        await self._put(key_names.blocked(user), expire_at)

    async def unblock(self, user: str) -> None:
        """Unblock a user."""
        await self._store.call("DEL", key_names.blocked(user))

    async def revoke(self, token: str, expire_at: int) -> None:
        """Refuse the token with this `jti` until a moment in Unix seconds; 0 is for ever."""
        await self._put(key_names.revoked(token), expire_at)

    async def objection(self, user: str, token: str) -> DisconnectCode | None:
        """Return why a user, or the token with this `jti`, is denied; None if neither is."""
        if not user and not token:
            return None
        blocked, revoked = await asyncio.gather(  # one round trip
            self.blocked(user), self.revoked(token)
        )
        if blocked:
            return DisconnectCode.PERMISSION_DENIED
        return DisconnectCode.INVALID_TOKEN if revoked else None

    async def blocked(self, user: str) -> bool:
        """Return whether a user is blocked; never for "", no user."""
        return bool(user and await self._store.call("EXISTS", key_names.blocked(user)))

    async def revoked(self, token: str) -> bool:
        """Return whether the token with this `jti` is revoked; never for "", no token."""
        return bool(token and await self._store.call("EXISTS", key_names.revoked(token)))

    async def _put(self, key: str, expire_at: int) -> None:
        expiry = ("EXAT", expire_at) if expire_at else ()
        await self._store.call("SET", key, 1, *expiry)
