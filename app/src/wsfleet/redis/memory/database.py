"""A database in memory: keys that expire, and the subscribers of pub/sub channels."""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import TypeVar

from redis.exceptions import ResponseError

Id = tuple[int, int]
"""The id of a stream's entry: Redis writes it as `5-0`."""
Entries = list[tuple[Id, list[bytes]]]
"""Entries of a stream, in the order of their ids: fields and values in turn."""
OnMessage = Callable[[bytes, bytes], None]

_id_of = itemgetter(0)


class Hash(dict[bytes, bytes]):
    """A hash."""


class Members(set[bytes]):
    """A set."""


class SortedSet(dict[bytes, float]):
    """A sorted set: member -> score."""

    def between(self, low: float, high: float, *, exclusive: bool = False) -> list[bytes]:
        """Return the members with these scores in Redis's order: by score, then by name.

        `exclusive` leaves out `high` itself.
        """
        found = sorted((score, member) for member, score in self.items() if low <= score <= high)
        return [member for score, member in found if not (exclusive and score == high)]


class EntryStream:
    """A stream: entries, and the largest id that it ever had."""

    def __init__(self) -> None:
        self.entries: Entries = []
        self.last: Id = (0, 0)

    def add(self, number: Id, fields: list[bytes], max_length: int) -> None:
        """Append an entry, and keep the newest `max_length`.

        Raises:
            redis.exceptions.ResponseError: the id is not above all others.
        """
        if number <= self.last:
            raise ResponseError(
                "The ID specified in XADD is equal or smaller than the target stream top item"
            )
        self.entries.append((number, fields))
        self.last = number
        self.trim(max_length)

    def trim(self, max_length: int) -> None:
        """Keep the newest entries.

        Raises:
            redis.exceptions.ResponseError: the length is negative.
        """
        if max_length < 0:
            raise ResponseError("The MAXLEN argument must be >= 0.")
        del self.entries[: max(0, len(self.entries) - max_length)]

    def between(self, first: Id, last: Id) -> Entries:
        """Return the entries with these ids, both included."""
        start = bisect_left(self.entries, first, key=_id_of)
        return self.entries[start : bisect_right(self.entries, last, key=_id_of)]


Value = TypeVar("Value", bytes, Hash, Members, SortedSet, EntryStream)


class Database:
    """A database in memory, for the nodes of one event loop.

    A key is removed with its last element, as in Redis. An expired key is removed at its next use;
    `sweep` removes the other expired keys. `clock` returns Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._values: dict[bytes, bytes | Hash | Members | SortedSet | EntryStream] = {}
        self._deadlines: dict[bytes, float] = {}
        self._subscribers: dict[bytes, dict[OnMessage, None]] = {}

    def __len__(self) -> int:
        """Return the number of keys; expired ones count until they are removed."""
        return len(self._values)

    def exists(self, key: bytes) -> bool:
        """Return whether a key exists."""
        deadline = self._deadlines.get(key)
        if deadline is not None and deadline <= self.clock():
            self.delete(key)
        return key in self._values

    def find(self, key: bytes, kind: type[Value]) -> Value | None:
        """Return the value of a key, None if it is missing.

        Raises:
            redis.exceptions.ResponseError: it is of another kind.
        """
        if not self.exists(key):
            return None
        value = self._values[key]
        if not isinstance(value, kind):
            raise ResponseError("Operation against a key holding the wrong kind of value")
        return value

    def read(self, key: bytes, kind: type[Value]) -> Value:
        """Return the value of a key, an empty one if it is missing; the caller must not change it.

        Raises:
            redis.exceptions.ResponseError: as for `find`.
        """
        value = self.find(key, kind)
        return kind() if value is None else value

    def ensure(self, key: bytes, kind: type[Value]) -> Value:
        """Return the value of a key, a new empty one if it is missing.

        Raises:
            redis.exceptions.ResponseError: as for `find`.
        """
        value = self.read(key, kind)
        self._values[key] = value
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Store a string; the key does not expire any more."""
        self._values[key] = value
        self._deadlines.pop(key, None)

    def delete(self, key: bytes) -> bool:
        """Delete a key; return whether it existed."""
        self._deadlines.pop(key, None)
        return self._values.pop(key, None) is not None

    def remove(self, key: bytes, kind: type[Hash | Members | SortedSet], *names: bytes) -> int:
        """Remove fields or members, and the key with the last of them; return how many there were.

        Raises:
            redis.exceptions.ResponseError: as for `find`.
        """
        value = self.find(key, kind)  # type: ignore[type-var]  # one of the three
        if value is None:
            return 0
        found = [name for name in dict.fromkeys(names) if name in value]
        for name in found:
            if isinstance(value, Members):
                value.remove(name)
            else:
                del value[name]
        if not value:
            self.delete(key)
        return len(found)

    def expire(self, key: bytes, seconds: float) -> bool:
        """Let a key expire in some seconds; return whether it exists."""
        return self.expire_at(key, self.clock() + seconds)

    def expire_at(self, key: bytes, deadline: float) -> bool:
        """Let a key expire at a moment in Unix seconds; return whether it exists."""
        if not self.exists(key):
            return False
        self._deadlines[key] = deadline
        return True

    def persist(self, key: bytes) -> bool:
        """Remove the expiry of a key; return whether it had one."""
        return self.exists(key) and self._deadlines.pop(key, None) is not None

    def deadline(self, key: bytes) -> float | None:
        """Return when a key expires, in Unix seconds; None if it does not, or is missing."""
        return self._deadlines.get(key) if self.exists(key) else None

    def sweep(self) -> None:
        """Free the memory of all expired keys."""
        for key in list(self._deadlines):
            self.exists(key)

    def publish(self, channel: bytes, message: bytes) -> int:
        """Send a message to the subscribers of a channel; return how many there are."""
        subscribers = list(self._subscribers.get(channel, ()))
        for on_message in subscribers:
            on_message(channel, message)
        return len(subscribers)

    def subscribe(self, channel: bytes, on_message: OnMessage) -> None:
        """Call `on_message` for each message in a channel, in order."""
        self._subscribers.setdefault(channel, {})[on_message] = None

    def unsubscribe(self, on_message: OnMessage, channels: Iterable[bytes] | None = None) -> None:
        """End the subscriptions of a subscriber to some channels, or to all."""
        for channel in list(self._subscribers) if channels is None else channels:
            subscribers = self._subscribers.get(channel, {})
            subscribers.pop(on_message, None)
            if not subscribers:
                self._subscribers.pop(channel, None)

    def subscribers(self, channel: bytes) -> int:
        """Return the number of a channel's subscribers."""
        return len(self._subscribers.get(channel, ()))
