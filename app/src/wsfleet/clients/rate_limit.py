"""Rate limits for one client: messages and bytes a second."""

import time
from functools import cache
from typing import NamedTuple

from wsfleet.transports.transport import Close

BURST = 10.0
"""Burst window, in seconds: a client that was idle this long may send a full window's worth at
once."""

TOO_MANY = Close(3013, "too many requests")
"""The close of a connection above its rates; the code is the Centrifuge protocol's."""


class Rates(NamedTuple):
    """The seconds that a message and each of its bytes cost; 0 is no limit."""

    message: float
    byte: float

    @classmethod
    @cache
    def of(cls, messages: float, bytes_: float) -> "Rates":
        """Return the costs for rates a second; 0 is no limit."""
        return cls(1 / messages if messages else 0.0, 1 / bytes_ if bytes_ else 0.0)


class Meter:
    """Two token buckets for one connection.

    Each stores the theoretical arrival time of GCRA. A message that begins in time is taken whole,
    so one larger than the bucket passes a connection at rest.
    """

    __slots__ = ("_bytes_until", "_messages_until", "_rates")

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._messages_until = self._bytes_until = 0.0

    def take(self, size: int, now: float | None = None) -> bool:
        """Count a message of `size` bytes; return False if it comes too soon."""
        now = time.monotonic() if now is None else now
        within = max(self._messages_until, self._bytes_until) < now + BURST
        self._messages_until = max(self._messages_until, now) + self._rates.message
        self._bytes_until = max(self._bytes_until, now) + size * self._rates.byte
        return within
