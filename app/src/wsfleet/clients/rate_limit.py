"""The rates at which one client may send messages and bytes."""

import time
from functools import cache
from typing import NamedTuple

from wsfleet.transports.transport import Close

BURST = 10.0
"""Seconds over which a rate is averaged: who was silent for so long may say it all at once."""

TOO_MANY = Close(3013, "too many requests")
"""How a connection ends that says more; the code is the Centrifuge protocol's."""


class Rates(NamedTuple):
    """Seconds that a message and each of its bytes cost; 0 is nothing."""

    message: float
    byte: float

    @classmethod
    @cache
    def of(cls, messages: float, bytes_: float) -> "Rates":
        """So many a second; 0 is no limit."""
        return cls(1 / messages if messages else 0.0, 1 / bytes_ if bytes_ else 0.0)


class Meter:
    """Two token buckets for one connection.

    Each is the moment at which what was taken would be paid off at its rate (GCRA). A message that
    begins in time is taken whole, so that one larger than the bucket passes a connection at rest.
    """

    __slots__ = ("_bytes_until", "_messages_until", "_rates")

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._messages_until = self._bytes_until = 0.0

    def take(self, size: int, now: float | None = None) -> bool:
        """Count a message of so many bytes; False if it comes too soon after those before it."""
        now = time.monotonic() if now is None else now
        within = max(self._messages_until, self._bytes_until) < now + BURST
        self._messages_until = max(self._messages_until, now) + self._rates.message
        self._bytes_until = max(self._bytes_until, now) + size * self._rates.byte
        return within
