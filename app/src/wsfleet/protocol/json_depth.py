"""How deep the JSON of a client nests."""

import re

from wsfleet.protocol import strict_json

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ROUND = bytes.maketrans(b"[]{}", b"()()")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def too_deep(data: bytes, most: int) -> bool:
    """Whether valid JSON nests deeper than `most` levels.

    Parsers of other clients may take fewer levels than this node's, and fail at such JSON.
    """
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    brackets = _STRING.sub(b"", data).translate(_ROUND, _OTHERS)
    for _ in range(most):  # each turn removes the innermost level
        if not brackets:
            return False
        brackets = brackets.replace(b"()", b"")
    return bool(brackets)


def payload_too_deep(payload: bytes, most: int) -> bool:
    """Whether a payload, which may be anything, is JSON that nests deeper than `most` levels."""
    return too_deep(payload, most) and strict_json.is_json(payload)
