"""Who is connected to this node as which user, whatever the protocol."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from wsfleet.auth.denylist import Denylist
from wsfleet.broker import control
from wsfleet.broker.events import BrokerEventHandler, NodeCount
from wsfleet.protocol.centrifuge.codes import DisconnectCode
from wsfleet.redis.background import Background

RECHECK_INTERVAL = 60.0
"""Seconds after which a connection ends at the latest that should have ended."""
RECHECK_CHUNK = 500


class UserClient(Protocol):
    """One client, and as which user it came; "" is nobody in particular."""

    @property
    def id(self) -> str:
        """Name of the connection."""

    @property
    def user(self) -> str:
        """Whose it is."""

    def tokens(self) -> list[str]:
        """The `jti` of each token that it, or something that it has, rests on."""

    def revoked(self, token_id: str) -> None:
        """End what rests on the token with this `jti`."""

    async def command(self, wanted: control.UserCommand) -> None:
        """Carry out a command of the server's API."""

    def disconnect(self, code: DisconnectCode) -> None:
        """End the connection."""


class Users(BrokerEventHandler):
    """The connections by user; "" are those of nobody in particular, whom no limit is for."""

    def __init__(self, limit: int, on_failed: Callable[[str], None] = lambda event: None) -> None:
        self._limit = limit
        self._clients: dict[str, set[UserClient]] = {}
        self._background = Background(on_failed)
        self._hurry = asyncio.Event()

    def __iter__(self) -> Iterator[UserClient]:
        """All clients; they may leave while the caller goes through them."""
        return iter([client for clients in self._clients.values() for client in clients])

    def of(self, user: str) -> list[UserClient]:
        """The connections of a user."""
        return list(self._clients.get(user, ()))

    def is_full(self, user: str) -> bool:
        """Whether the user has as many connections as one may have."""
        return bool(user and self._limit) and len(self._clients.get(user, ())) >= self._limit

    def add(self, client: UserClient) -> bool:
        """Count a client in; False if its user has too many already."""
        if self.is_full(client.user):
            return False
        self._clients.setdefault(client.user, set()).add(client)
        return True

    def remove(self, client: UserClient) -> None:
        """Count a client out, if it was counted in."""
        clients = self._clients.get(client.user, set())
        clients.discard(client)
        if not clients:
            self._clients.pop(client.user, None)

    def commanded(self, command: control.ControlMessage) -> None:
        """Carry out what is wanted of the connections of a user, or of those with a token."""
        match command:
            case control.UserCommand():
                for client in self.of(command.user):
                    if command.concerns(client.user, client.id):
                        self._background.start(client.command(command))
            case control.Revocation():
                self._revoked(command.token)

    def hurry(self) -> None:
        """Check again now: for a while no command was heard."""
        self._hurry.set()

    async def recheck(self, denylist: Denylist) -> None:
        """Ask again and again about those who are here: a command may not have come."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_INTERVAL):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._check(denylist.blocked, list(self._clients), self._blocked)
            tokens = {token for client in self for token in client.tokens()}
            await self._check(denylist.revoked, list(tokens), self._revoked)

    async def _check(
        self,
        ask: Callable[[str], Awaitable[bool]],
        names: list[str],
        end: Callable[[str], None],
    ) -> None:
        """End what Redis says should have ended; where it does not answer, the next check may."""
        for start in range(0, len(names), RECHECK_CHUNK):
            chunk = names[start : start + RECHECK_CHUNK]
            answers = await asyncio.gather(*map(ask, chunk), return_exceptions=True)
            for name, answer in zip(chunk, answers, strict=True):
                if answer is True:
                    end(name)

    def _blocked(self, user: str) -> None:
        for client in self.of(user):
            client.disconnect(DisconnectCode.PERMISSION_DENIED)

    def _revoked(self, token: str) -> None:
        for client in self:
            client.revoked(token)

    def count(self, census: NodeCount) -> None:
        """Count those who are connected, and their users."""
        census.clients += sum(map(len, self._clients.values()))
        census.users |= self._clients.keys()
