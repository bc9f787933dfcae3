"""A client's session: a small dictionary that its next connection has as well, on any node."""

from collections.abc import Mapping
from typing import Any, Protocol

import orjson
import structlog
from pydantic_core import to_json

from wsfleet.protocol import strict_json

MAX_SESSION = 16_384
"""Bytes of a session: its keys, and its values as JSON."""

log = structlog.get_logger(__name__)


class SessionStore(Protocol):
    """What keeps sessions by name: each key of a session with its value as JSON."""

    async def read(self, name: str) -> Mapping[bytes, bytes]:
        """Return a session; it is empty if it is missing."""

    async def write(self, name: str, changes: Mapping[str, bytes]) -> int:
        """Change some keys, and remove those whose value is empty; return the session's bytes.

        If these are more than MAX_SESSION, nothing is changed.
        """


class Session(dict[str, Any]):
    """A client's session: a dictionary that its next connection has as well, on any node.

    It is loaded when the client connects, and `save` stores what has changed. Keys are strings,
    values are JSON: a pydantic model is stored as its JSON, and loaded as a dictionary. Without a
    name, which `Accept(session=...)` gives it, it is empty and cannot be saved.
    """

    __slots__ = ("_store", "_stored", "name")

    def __init__(self, name: str = "", store: SessionStore | None = None) -> None:
        super().__init__()
        self.name = name
        self._store = store
        self._stored: dict[str, bytes] = {}

    async def save(self) -> None:
        """Store the keys that have changed since they were loaded or saved; the others stay.

        Raises:
            ValueError: the session is larger than 16,384 bytes, or a value has no JSON form; then
                nothing is stored.
            TypeError: a key is not a string; nothing is stored.
            CallError: Redis is unavailable; it is unknown whether the changes were stored.
            RuntimeError: the session has no name.
        """
        store, wanted = self._named(), {key: _encoded(key, self[key]) for key in self}
        self._check(sum(len(key.encode()) + len(value) for key, value in wanted.items()))
        changes = {key: value for key, value in wanted.items() if self._stored.get(key) != value}
        changes |= dict.fromkeys(self._stored.keys() - wanted.keys(), b"")
        if changes:
            before = self._stored
            # It is unknown what is stored until the answer is here: without one, the next `save`
            # stores or removes these keys again.
            self._stored = before | dict.fromkeys(changes, b"")
            size = await store.write(self.name, changes)
            self._stored = before if size > MAX_SESSION else wanted
            self._check(size)

    async def load(self) -> None:
        """Replace the content by what is stored, also by other clients with the same session.

        Raises:
            CallError: Redis is unavailable.
            RuntimeError: the session has no name.
        """
        self.replace(await self._named().read(self.name))

    def replace(self, stored: Mapping[bytes, bytes]) -> None:
        """Replace the content by what is stored; what another program wrote is dropped."""
        self.clear()
        self._stored = {}
        for field, value in stored.items():
            try:
                key = field.decode()
                self[key] = orjson.loads(value)
            except ValueError as error:
                log.warning("session_value_invalid", session=self.name, error=str(error))
            else:
                self._stored[key] = value

    def _named(self) -> SessionStore:
        if self._store is None:
            raise RuntimeError(
                "the client has no session: let on_connect return Accept(..., session=NAME), in "
                "the node's own process; a client with a token, or of a dead node, has none"
            )
        return self._store

    def _check(self, size: int) -> None:
        if size > MAX_SESSION:
            raise ValueError(f"the session {self.name!r} has {size} bytes: at most {MAX_SESSION}")


def _encoded(key: object, value: object) -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"the keys of a session are strings: {key!r} is not")
    data = to_json(value, inf_nan_mode="null")
    strict_json.loads(data)
    return data
