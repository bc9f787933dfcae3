"""permessage-deflate (RFC 7692): the negotiation in a handshake, and the payloads; no I/O.

Neither side keeps a context from one message to the next, so a connection costs no memory, and a
frame that was deflated once is right for every client.
"""

import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from websockets.exceptions import InvalidHeaderFormat
from websockets.headers import parse_extension

from wsfleet.transports.frames import BINARY, RSV1, TEXT, ViolationError, frame
from wsfleet.transports.transport import Framing

EXTENSION = "permessage-deflate"
MIN_SIZE = 256
"""Bytes of a frame from which on it is deflated: a smaller one saves little."""
LEVEL, WINDOW_BITS, MEMORY_LEVEL = 1, 12, 5
"""Parameters of zlib: messages of some KB shrink as with its defaults, in a third of the time."""
_NARROWEST, _WIDEST = 8, 15
_TAIL = b"\x00\x00\xff\xff"
"""The end of each payload, which is not sent (RFC 7692, section 7.2.1)."""
_AFTER_LAST_BLOCK = (_TAIL, b"\x00" + _TAIL)


class Agreement(NamedTuple):
    """The answer to an offer, and whether the server may deflate with its window."""

    answer: str
    deflates: bool


def negotiate(fields: Iterable[str]) -> Agreement | None:
    """Accept the first valid offer in the fields Sec-WebSocket-Extensions; None without one.

    A malformed field offers nothing, nor does an offer with a parameter or a value that RFC 7692,
    section 7.1, does not have.
    """
    for field in fields:
        try:
            offers = parse_extension(field)
        except InvalidHeaderFormat:
            continue
        for name, parameters in offers:
            if name == EXTENSION and (agreement := _accept(parameters)) is not None:
                return agreement
    return None


def _accept(parameters: Sequence[tuple[str, str | None]]) -> Agreement | None:
    offered = dict(parameters)
    if len(offered) < len(parameters):  # a parameter is there twice
        return None
    for name, value in parameters:
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            valid = value is None
        elif name in ("server_max_window_bits", "client_max_window_bits"):
            valid = value in _WINDOWS or (value is None and name.startswith("client"))
        else:
            valid = False
        if not valid:
            return None
    answer = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
    window = offered.get("server_max_window_bits")
    if window is None:
        return Agreement(answer, True)
    return Agreement(f"{answer}; server_max_window_bits={window}", int(window) >= WINDOW_BITS)


_WINDOWS = {str(bits) for bits in range(_NARROWEST, _WIDEST + 1)}


def deflated_frame(opcode: int, payload: bytes) -> bytes:
    """Return a frame with a deflated payload, or a usual frame if that is not longer."""
    whole = frame(opcode, payload)
    if len(whole) < MIN_SIZE:
        return whole
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS, MEMORY_LEVEL)
    deflated = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    shorter = frame(RSV1 | opcode, deflated[: -len(_TAIL)])
    return min(whole, shorter, key=len)


FRAMING = Framing(
    "websocket-deflate",
    text=partial(deflated_frame, TEXT),
    binary=partial(deflated_frame, BINARY),
)
"""As `frames.FRAMING`, with deflated payloads."""


def inflate(payload: bytes, max_size: int) -> bytes:
    """Return the payload of a message that the client deflated.

    Raises:
        ViolationError: it is not DEFLATE (1007), or more than `max_size` bytes (1009); no more are
            inflated.
    """
    decompressor = zlib.decompressobj(-_WIDEST)
    try:
        whole = decompressor.decompress(payload + _TAIL, max_size + 1)
    except zlib.error:
        raise ViolationError(1007, "payload is not DEFLATE") from None
    if len(whole) > max_size:
        raise ViolationError(1009, f"message is over {max_size} bytes")
    if decompressor.eof and decompressor.unused_data not in _AFTER_LAST_BLOCK:
        raise ViolationError(1007, "payload goes on after its last block")
    return whole
