"""Frames that RFC 6455 forbids: each ends its connection with the code of section 7.4.1."""

import os
from itertools import product

from tests.support.tcp import masked
from tests.support.victim import ANYWHERE, Victim
from wsfleet.transports.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close_frame,
    frame,
)

pytestmark = ANYWHERE

FORBIDDEN = {
    "not masked": (frame(TEXT, b"x"), 1002),
    **{f"reserved bit {bit}": (masked(TEXT, b"", rsv=bit), 1002) for bit in (16, 32, 64)},
    **{f"opcode {op}": (masked(op, b""), 1002) for op in (*range(3, 8), *range(11, 16))},
    "fragmented ping": (masked(PING, b"", fin=False), 1002),
    "fragmented pong": (masked(PONG, b"", fin=False), 1002),
    "fragmented close": (masked(CLOSE, b"", fin=False), 1002),
    "long ping": (masked(PING, b"x" * 126), 1002),
    "ping of 2^63 bytes": (masked(PING, b"", length=b"\x7f\x80" + 7 * b"\0"), 1002),
    "continuation of nothing": (masked(CONTINUATION, b"x"), 1002),
    "message in a message": (masked(TEXT, b"a", fin=False) + masked(BINARY, b"b"), 1002),
    "text of 2^63 bytes": (masked(TEXT, b"", length=b"\x7f\x80" + 7 * b"\0"), 1009),
    "text of 2^64 - 1 bytes": (masked(TEXT, b"", length=b"\x7f" + 8 * b"\xff"), 1009),
    "binary of 2^32 bytes": (masked(BINARY, b"", length=b"\x7f\0\0\0\1\0\0\0\0"), 1009),
    "over the limit": (masked(TEXT, b"x" * 65_537), 1009),
    "over the limit in fragments": (
        masked(TEXT, b"x" * 65_536, fin=False) + masked(CONTINUATION, b"x", fin=False),
        1009,
    ),
    "not UTF-8": (masked(TEXT, b"\xff"), 1007),
    "overlong UTF-8": (masked(TEXT, b"\xc0\xaf"), 1007),
    "a surrogate": (masked(TEXT, b"\xed\xa0\x80"), 1007),
    "beyond Unicode": (masked(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "half a character": (masked(TEXT, b"\xe2\x82"), 1007),
    "not UTF-8 in fragments": (
        masked(TEXT, b"\xc3", fin=False) + masked(CONTINUATION, b"("),
        1007,
    ),
    "close with one byte": (masked(CLOSE, b"\x03"), 1002),
    **{
        f"close with {code}": (masked(CLOSE, code.to_bytes(2, "big")), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
    },
    "close with a reason that is not UTF-8": (masked(CLOSE, b"\x03\xe8\xff"), 1007),
}
ALLOWED = {
    "ping": (masked(PING, b""), frame(PONG, b"")),
    "ping of 125 bytes": (masked(PING, b"\xff" * 125), frame(PONG, b"\xff" * 125)),
    "pong that nobody asked for": (masked(PONG, b"x") + masked(PING, b"1"), frame(PONG, b"1")),
    "ping in a message": (masked(TEXT, b"", fin=False) + masked(PING, b"2"), frame(PONG, b"2")),
    "close": (masked(CLOSE, b""), close_frame(1005, "")),
    "close with a reason": (masked(CLOSE, b"\x03\xe8" + b"x" * 123), close_frame(1000, "")),
    **{
        f"close with {code}": (masked(CLOSE, code.to_bytes(2, "big")), close_frame(code, ""))
        for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999)
    },
}


async def test_each_has_its_code(victim: Victim) -> None:
    """Each invalid frame has its close code, although the peer continues; a metric counts."""
    expected: dict[int, int] = {}
    before = {code: await victim.disconnected(code) for code in (1002, 1007, 1009)}
    for path, (name, (attack, code)) in product(victim.paths, FORBIDDEN.items()):
        async with victim.upgraded(path) as peer:
            peer.write(attack + masked(TEXT, b"x") * 10)
            rest = await peer.rest()
        assert rest[:1] == b"\x88", (path, name)
        assert int.from_bytes(rest[2:4], "big") == code, (path, name)
        expected[code] = expected.get(code, 0) + 1
    for code, count in expected.items():
        await victim.has_disconnected(code, before[code] + count)


async def test_valid_control_frames_are_answered(victim: Victim) -> None:
    """A ping gets its payload, a close gets its code; only a close ends a connection."""
    for path, (name, (sent, answer)) in product(victim.paths, ALLOWED.items()):
        async with victim.upgraded(path) as peer:
            peer.write(sent)
            if not name.startswith("close"):
                peer.write(masked(CLOSE, b"\x03\xe8"))
                answer += close_frame(1000, "")
            assert await peer.rest() == answer, (path, name)


async def test_a_fragment_a_byte(victim: Victim) -> None:
    """Endless fragments take the memory of one message at most, then get 1009."""
    async with victim.upgraded() as peer:
        peer.write(masked(TEXT, b"x", fin=False))
        peer.write(masked(CONTINUATION, b"", fin=False) * 100_000)
        peer.write(masked(CONTINUATION, b"x", fin=False) * 65_536)
        rest = await peer.rest()
    assert int.from_bytes(rest[2:4], "big") == 1009


async def test_noise(victim: Victim) -> None:
    """Random bytes in place of frames, or of a request, end the connection."""
    for _ in range(50):
        async with victim.upgraded() as peer:
            peer.write(os.urandom(4096) + b"\xff" * 14)
            await peer.rest()
        async with victim.tcp(os.urandom(4096) + b"\r\n\r\n") as peer:
            assert (await peer.rest())[:12] in (b"HTTP/1.1 400", b"")


async def test_connections_that_vanish(victim: Victim) -> None:
    """A connection lost in a handshake, frame or message leaves nothing behind."""
    for begun in (b"", masked(TEXT, b"x")[:3], masked(TEXT, b"x", fin=False), masked(TEXT, b"x")):
        for _ in range(20):
            async with victim.upgraded() as peer:
                peer.write(begun)
    for _ in range(50):
        async with victim.tcp(b"GET /ws HT"):
            pass
