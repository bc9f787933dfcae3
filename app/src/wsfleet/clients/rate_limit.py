"""How much one client may say: messages and bytes a second, and how deep its JSON may nest."""

import re
import time
from typing import NamedTuple

from wsfleet.hub.connection import Close
from wsfleet.protocol import strict_json

BURST = 10.0
"""Seconds over which a rate is averaged: who was silent for so long may say it all at once."""

TOO_MANY = Close(3013, "too many requests")
"""How a connection ends that says more; the code is the Centrifuge protocol's."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ROUND = bytes.maketrans(b"[]{}", b"()()")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


class Rates(NamedTuple):
    """Seconds that a message and each of its bytes cost; 0 is nothing."""

    message: float
    byte: float

    @classmethod
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


def too_deep(data: bytes, most: int) -> bool:
    """Whether valid JSON nests deeper than `most` levels.

    Parsers of other clients may take less than this node's does, and fall over what it passes on.
    """
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    brackets = _STRING.sub(b"", data).translate(_ROUND, _OTHERS)
    for _ in range(most):  # each turn takes away the innermost level
        if not brackets:
            return False
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def payload_too_deep(payload: bytes, most: int) -> bool:
    """Whether a payload, which may be anything, is JSON that nests deeper than `most` levels."""
    return too_deep(payload, most) and strict_json.is_json(payload)
