"""The sessions of a node's clients, in Redis; they outlive their clients by the resume window.

A session expires unless it is renewed, so nobody counts its clients: each node renews the sessions
of its own clients, and one that dies renews none.
"""

import asyncio
import contextlib
import math
from collections.abc import Mapping

from redis.exceptions import RedisError

from wsfleet.application.port import Client
from wsfleet.application.realtime.calls import call_errors
from wsfleet.application.session import MAX_SESSION, Session
from wsfleet.node.node import Node
from wsfleet.redis import key_names
from wsfleet.redis.store import UnavailableError

RENEWAL_INTERVAL = 20.0
"""Seconds between two renewals."""
CHUNK = 500
"""Sessions that are renewed at once."""


class Sessions:
    """The sessions of a node's clients."""

    def __init__(self, node: Node) -> None:
        self._store = node.store
        self._open: dict[str, Session] = {}
        # One renewal may fail, and the last one may have been an interval ago.
        self._lifetime = math.ceil(node.settings.resume_window + 2 * RENEWAL_INTERVAL)
        node.background.append(self.renew)

    def named(self, name: str) -> Session:
        """Return the session of a name; it is not loaded."""
        return Session(name, self)

    async def open(self, client: Client) -> None:
        """Load a client's session, and renew it until `close`.

        Raises:
            UnavailableError, redis.exceptions.RedisError: Redis is unavailable.
        """
        self._open[client.id] = client.session
        client.session.replace(await self._load(client.session.name))

    def close(self, client: Client) -> None:
        """Let a client's session expire, unless another client has it."""
        self._open.pop(client.id, None)

    async def renew(self) -> None:
        """Renew the sessions of all clients, again and again."""
        while True:
            await asyncio.sleep(RENEWAL_INTERVAL)
            names = list({session.name for session in self._open.values()})
            for start in range(0, len(names), CHUNK):
                with contextlib.suppress(UnavailableError, RedisError):
                    await asyncio.gather(*map(self._renew, names[start : start + CHUNK]))

    # For `Session`.

    async def read(self, name: str) -> Mapping[bytes, bytes]:
        """Return a session; it is empty if it is missing.

        Raises:
            CallError: Redis is unavailable.
        """
        with call_errors():
            return await self._load(name)

    async def write(self, name: str, changes: Mapping[str, bytes]) -> int:
        """Change some keys, and remove those whose value is empty; return the session's bytes.

        If these are more than MAX_SESSION, nothing is changed.

        Raises:
            CallError: Redis is unavailable.
        """
        pairs = [item for pair in changes.items() for item in pair]
        with call_errors():
            size: int = await self._store.function(
                "session_save", [key_names.session(name)], MAX_SESSION, self._lifetime, *pairs
            )
        return size

    async def _load(self, name: str) -> Mapping[bytes, bytes]:
        stored: Mapping[bytes, bytes]
        _, stored = await asyncio.gather(  # one round trip
            self._renew(name), self._store.call("HGETALL", key_names.session(name))
        )
        return stored

    async def _renew(self, name: str) -> None:
        await self._store.call("EXPIRE", key_names.session(name), self._lifetime)
