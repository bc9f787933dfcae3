"""Who is connected to this node as which user, whatever the protocol."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from wsfleet import commands
from wsfleet.background import Background
from wsfleet.denylist import Denylist
from wsfleet.listener import Census, Listener
from wsfleet.protocol.centrifuge.codes import DisconnectCode

RECHECK_INTERVAL = 60.0
"""Seconds after which a connection ends at the latest that should have ended."""
RECHECK_CHUNK = 500


class Client(Protocol):
    """One client, as which user it came, and by which token (its `jti`); "" is none."""

    @property
    def id(self) -> str:
        """Name of the connection."""

    @property
    def user(self) -> str:
        """Whose it is."""

    @property
    def token_id(self) -> str:
        """What it came with."""

    async def command(self, wanted: commands.Command) -> None:
        """Carry out a command of the server's API."""

    def disconnect(self, code: DisconnectCode) -> None:
        """End the connection."""


class Users(Listener):
    """The connections by user; "" are those of nobody in particular, whom no limit is for."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clients: dict[str, set[Client]] = {}
        self._background = Background()
        self._hurry = asyncio.Event()

    def __iter__(self) -> Iterator[Client]:
        """All clients; they may leave while the caller goes through them."""
        return iter([client for clients in self._clients.values() for client in clients])

    def of(self, user: str) -> list[Client]:
        """The connections of a user."""
        return list(self._clients.get(user, ()))

    def is_full(self, user: str) -> bool:
        """Whether the user has as many connections as one may have."""
        return bool(user and self._limit) and len(self._clients.get(user, ())) >= self._limit

    def add(self, client: Client) -> bool:
        """Count a client in; False if its user has too many already."""
        if self.is_full(client.user):
            return False
        self._clients.setdefault(client.user, set()).add(client)
        return True

    def remove(self, client: Client) -> None:
        """Count a client out, if it was counted in."""
        clients = self._clients.get(client.user, set())
        clients.discard(client)
        if not clients:
            self._clients.pop(client.user, None)

    def commanded(self, command: commands.Message) -> None:
        """Carry out what is wanted of the connections of a user, or of those with a token."""
        match command:
            case commands.Command():
                for client in self.of(command.user):
                    if command.concerns(client.user, client.id):
                        self._background.start(client.command(command))
            case commands.Revocation():
                for client in self:
                    if client.token_id == command.token:
                        client.disconnect(DisconnectCode.INVALID_TOKEN)

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
            known = [client for client in self if client.user or client.token_id]
            for start in range(0, len(known), RECHECK_CHUNK):
                chunk = known[start : start + RECHECK_CHUNK]
                asked = (denylist.objection(client.user, client.token_id) for client in chunk)
                answers = await asyncio.gather(*asked, return_exceptions=True)
                for client, objection in zip(chunk, answers, strict=True):
                    if isinstance(objection, DisconnectCode):
                        client.disconnect(objection)

    def count(self, census: Census) -> None:
        """Count those who are connected, and their users."""
        census.clients += sum(map(len, self._clients.values()))
        census.users |= self._clients.keys()
