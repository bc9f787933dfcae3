"""WebSocket frames (RFC 6455, section 5): writing a server's, reading a client's; no I/O."""

from codecs import utf_8_decode
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from websockets.frames import EXTERNAL_CLOSE_CODES
from websockets.speedups import apply_mask

from wsfleet.transports.transport import Close, Framing

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NO_STATUS, ABNORMAL = 1005, 1006
"""Never sent: for a close frame without a code, and for a missing one (RFC 6455, section 7.4.1)."""
RSV1 = 0x40
"""The bit of a message's first frame whose payload is deflated (RFC 7692, section 6)."""
_FIN, _RSV, _OPCODE, _MASK, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_CONTROL = 0x08
_LONGEST_CONTROL = 125
NOT_UTF_8 = (1007, "text is not UTF-8")


class ViolationError(Exception):
    """The client violates the protocol; close the connection with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ReceivedMessage(NamedTuple):
    """A message of a client, whole TEXT or BINARY, or a control frame."""

    opcode: int
    payload: bytes | str


def frame(opcode: int, payload: bytes) -> bytes:
    """Return one message around `payload`, in one frame.

    `opcode` has the bit `RSV1` if the payload is deflated.
    """
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 65_536:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big") + payload


FRAMING = Framing("websocket", text=partial(frame, TEXT), binary=partial(frame, BINARY))
"""Each payload is a message in one frame."""


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame; a reason that is too long is cut."""
    if code == NO_STATUS:
        return frame(CLOSE, b"")
    text = reason.encode()[: _LONGEST_CONTROL - 2].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + text)


def parse_close(payload: bytes) -> Close:
    """Parse the payload of a close frame (RFC 6455, section 5.5.1).

    Raises:
        ViolationError: its code may not be sent, or its reason is not UTF-8.
    """
    if not payload:
        return Close(NO_STATUS, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000):
        raise ViolationError(1002, "no valid close code")
    return Close(code, _text(payload[2:]))


class FrameReader:
    """A reader of one client's frames, which it assembles to messages.

    It keeps what has arrived of one message, and of one head or control frame: never more than
    `max_size` bytes and one read of the transport. Text is checked as it arrives. `inflate` is
    called with a deflated payload and `max_size`; without it, none may be deflated.
    """

    __slots__ = (
        "_checked",
        "_fin",
        "_inflate",
        "_left",
        "_mask",
        "_max_size",
        "_opcode",
        "_parts",
        "_rest",
    )

    def __init__(self, max_size: int, inflate: Callable[[bytes, int], bytes] | None = None) -> None:
        self._max_size = max_size
        self._inflate = inflate
        self._rest = b""  # an incomplete head or control frame
        # The incomplete message: its opcode with RSV1, its payload, how much was checked.
        self._opcode = CONTINUATION
        self._parts: bytearray | None = None
        self._checked = 0
        # The incomplete data frame: the number of missing bytes, and their mask.
        self._left = 0
        self._mask = b""
        self._fin = False

    def feed(self, data: bytes) -> Iterator[ReceivedMessage]:
        """Read bytes, and yield the messages and control frames that are complete.

        Raises:
            ViolationError: after the messages before it; the reader must not be used any more.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        start, end = 0, len(data)
        while start < end:
            if self._left:
                stop = min(end, start + self._left)
                message = self._go_on(data[start:stop])
            else:
                needed, payload_at = self._head(data, start, end)
                stop, opcode = start + needed, data[start] & (RSV1 | _OPCODE)
                if stop <= end:
                    payload = apply_mask(data[payload_at:stop], data[payload_at - 4 : payload_at])
                    message = self._take(data[start] & _FIN != 0, opcode, payload)
                elif opcode & _CONTROL or not 0 < payload_at < end:
                    self._rest = data[start:]
                    return
                else:
                    self._fin, self._left = data[start] & _FIN != 0, stop - payload_at
                    self._mask = data[payload_at - 4 : payload_at]
                    if opcode != CONTINUATION:
                        self._take(False, opcode, b"")
                    message, stop = self._go_on(data[payload_at:]), end
            if message is not None:
                yield message
            start = stop

    def _head(self, data: bytes, start: int, end: int) -> tuple[int, int]:
        """Return the frame's length, and where its payload is; 0 if not yet known."""
        if end - start < 2:
            return 2, 0
        first, second = data[start], data[start + 1]
        if first & _RSV and (
            first & (_RSV | _CONTROL) != RSV1 or not first & _OPCODE or self._inflate is None
        ):
            raise ViolationError(1002, "reserved bits are set")
        if not second & _MASK:
            raise ViolationError(1002, "frame is not masked")
        opcode, length = first & _OPCODE, second & _LENGTH
        if opcode & _CONTROL:
            if opcode > PONG:
                raise ViolationError(1002, "unknown opcode")
            if not first & _FIN:
                raise ViolationError(1002, "control frame is fragmented")
            if length > _LONGEST_CONTROL:
                raise ViolationError(1002, "control frame is too long")
        elif opcode > BINARY:
            raise ViolationError(1002, "unknown opcode")
        elif (opcode == CONTINUATION) != (self._parts is not None):
            raise ViolationError(1002, "fragment out of place")
        head = 6
        if length > _LONGEST_CONTROL:
            extra = 2 if length == 126 else 8
            head += extra
            if end - start < 2 + extra:
                return head, 0
            length = int.from_bytes(data[start + 2 : start + 2 + extra], "big")
        if not opcode & _CONTROL and len(self._parts or b"") + length > self._max_size:
            raise ViolationError(1009, f"message is over {self._max_size} bytes")
        return head + length, start + head

    def _take(self, fin: bool, opcode: int, payload: bytes) -> ReceivedMessage | None:
        """Take a frame, or a part of a data frame as if it were a fragment."""
        if opcode & _CONTROL:
            return ReceivedMessage(opcode, payload)
        if opcode != CONTINUATION and fin:
            return self._message(opcode, payload)
        if self._parts is None:
            self._opcode, self._parts, self._checked = opcode, bytearray(payload), 0
        else:
            self._parts += payload
        if fin:
            whole, self._parts = bytes(self._parts), None
            return self._message(self._opcode, whole)
        if self._opcode == TEXT:
            self._checked += _whole_characters(self._parts[self._checked :])
        return None

    def _message(self, opcode: int, payload: bytes) -> ReceivedMessage:
        if opcode & RSV1 and self._inflate is not None:
            opcode, payload = opcode & _OPCODE, self._inflate(payload, self._max_size)
        return ReceivedMessage(opcode, _text(payload) if opcode == TEXT else payload)

    def _go_on(self, masked: bytes) -> ReceivedMessage | None:
        """Take the next bytes of a data frame that arrives in parts."""
        payload, turn = apply_mask(masked, self._mask), len(masked) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        self._left -= len(masked)
        return self._take(self._fin and not self._left, CONTINUATION, payload)


def _whole_characters(payload: bytearray) -> int:
    """Return the length of the text in `payload` without an incomplete character at its end."""
    try:
        size = utf_8_decode(payload, "strict", False)[1]
    except UnicodeDecodeError:
        raise ViolationError(*NOT_UTF_8) from None
    if b"\xed\xa0" <= payload[size:] < b"\xee":  # a surrogate: Python waits for its third byte
        raise ViolationError(*NOT_UTF_8)
    return size


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise ViolationError(*NOT_UTF_8) from None
