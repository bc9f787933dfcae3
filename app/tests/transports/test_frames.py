"""Frames: what clients may send, cut in any way, and what fails the connection."""

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tests.support.tcp import masked
from wsfleet.transports.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    FrameReader,
    ReceivedMessage,
    ViolationError,
    close_frame,
    frame,
    parse_close,
)

LIMIT = 70_000


def read(data: bytes | Sequence[bytes], limit: int = LIMIT) -> list[ReceivedMessage]:
    """Return the messages that a reader makes of bytes in these pieces."""
    reader = FrameReader(limit)
    pieces = [data] if isinstance(data, bytes) else data
    return [message for piece in pieces for message in reader.feed(piece)]


payloads = st.binary(max_size=300) | st.sampled_from(
    [b"x" * size for size in (125, 126, 127, 65_535, 65_536)]
)
controls = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
messages = st.tuples(
    st.sampled_from([TEXT, BINARY]),
    st.lists(st.text(max_size=40).map(str.encode) | st.just(b""), min_size=1, max_size=4),
    controls | st.none(),
)


@given(st.lists(messages, max_size=5), st.data())
def test_messages_arrive_whole_however_they_are_cut(
    sent: list[tuple[int, list[bytes], tuple[int, bytes] | None]], data: st.DataObject
) -> None:
    """Fragments, control frames between them, and any cut of the byte stream change nothing."""
    stream, expected = b"", []
    for opcode, fragments, control in sent:
        for number, fragment in enumerate(fragments):
            kind = opcode if number == 0 else CONTINUATION
            stream += masked(kind, fragment, fin=number == len(fragments) - 1)
            if control is not None:
                stream += masked(*control)
        whole = b"".join(fragments)
        between = [] if control is None else [ReceivedMessage(*control)] * len(fragments)
        message = ReceivedMessage(opcode, whole.decode() if opcode == TEXT else whole)
        expected += [*between[:-1], message, *between[-1:]]
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(pieces) == expected


@given(st.sampled_from([TEXT, BINARY]), payloads)
def test_frames_are_those_of_a_library(opcode: int, payload: bytes) -> None:
    """The same bytes as `websockets` makes."""
    theirs = Frame(Opcode(opcode), payload).serialize(mask=False)
    assert frame(opcode, payload) == theirs


@given(st.binary(max_size=200))
def test_noise_never_crashes(noise: bytes) -> None:
    """Any bytes are messages, are incomplete, or are a violation."""
    with contextlib.suppress(ViolationError):
        read(noise)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, b"x"), 1002, id="not masked"),
        *(pytest.param(masked(TEXT, b"", rsv=rsv), 1002, id=f"rsv {rsv}") for rsv in (16, 32, 64)),
        *(pytest.param(masked(op, b""), 1002, id=f"opcode {op}") for op in [*range(3, 8), 11, 15]),
        pytest.param(masked(PING, b"", fin=False), 1002, id="fragmented ping"),
        pytest.param(masked(CLOSE, b"", fin=False), 1002, id="fragmented close"),
        pytest.param(masked(PING, b"x" * 126), 1002, id="long ping"),
        pytest.param(masked(CONTINUATION, b""), 1002, id="continuation of nothing"),
        pytest.param(
            masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002, id="text within a message"
        ),
        pytest.param(masked(TEXT, b"\xff"), 1007, id="not UTF-8"),
        pytest.param(masked(TEXT, b"\xed\xa0\x80"), 1007, id="a surrogate"),
        pytest.param(
            masked(TEXT, b"\xc3", fin=False) + masked(CONTINUATION, b"("),
            1007,
            id="not UTF-8 over fragments",
        ),
        pytest.param(masked(TEXT, b"x" * (LIMIT + 1)), 1009, id="over the limit"),
        pytest.param(masked(TEXT, b"", length=b"\x7f" + b"\x80" + 7 * b"\0"), 1009, id="2^63"),
        pytest.param(masked(TEXT, b"", length=b"\x7f" + 8 * b"\xff"), 1009, id="2^64 - 1"),
        pytest.param(
            masked(BINARY, b"x" * LIMIT, fin=False) + masked(CONTINUATION, b"x"),
            1009,
            id="over the limit in fragments",
        ),
    ],
)
def test_protocol_errors_fail_the_connection(data: bytes, code: int) -> None:
    """RFC 6455, section 5, with the close code of section 7.4.1; what came before still arrives."""
    before = masked(TEXT, b"before")
    messages = FrameReader(LIMIT).feed(before + data)
    assert next(messages) == ReceivedMessage(TEXT, "before")
    with pytest.raises(ViolationError) as caught:
        list(messages)
    assert caught.value.code == code


INVALID = [
    (b"\xce\xba\xe1\xbd\xb9", b"\xf4\x90"),  # beyond Unicode
    (b"a", b"\xff"),
    (b"", b"\xc0"),
    (b"a", b"\xe0\x80"),
    (b"a", b"\xed\xa0"),  # a surrogate
    (b"", b"\xf0\x80"),
    (b"\xe2\x82\xac", b"\xe2("),
    (b"\xf0\x9f\x98", b"("),
    (b"", b"\x80"),
]


@pytest.mark.parametrize(("good", "bad"), INVALID)
def test_text_that_is_not_utf_8_fails_at_its_first_wrong_byte(good: bytes, bad: bytes) -> None:
    """In a frame that is not complete, and in a message that is not; nothing more is waited for."""
    text = good + bad + b"x" * 200
    halves = masked(TEXT, good, fin=False) + masked(CONTINUATION, bad + b"x" * 200, fin=False)
    bytewise = b"".join(
        masked(CONTINUATION if at else TEXT, text[at : at + 1], fin=False)
        for at in range(len(text))
    )
    size = len(good + bad)
    for stream, wrong in (
        (masked(TEXT, text), 8 + size),
        (masked(TEXT, text, fin=False), 8 + size),
        (halves, 6 + len(good) + 8 + len(bad)),
        (bytewise, 7 * size),
    ):
        reader = FrameReader(LIMIT)
        for at in range(wrong - 1):
            assert list(reader.feed(stream[at : at + 1])) == []
        with pytest.raises(ViolationError) as caught:
            list(reader.feed(stream[wrong - 1 : wrong]))
        assert caught.value.code == 1007


def test_text_that_ends_in_a_character_is_not_utf_8() -> None:
    """A character may continue in the next frame, but not after the end of the message."""
    for half in (b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"):
        reader = FrameReader(LIMIT)
        assert list(reader.feed(masked(TEXT, half, fin=False))) == []
        with pytest.raises(ViolationError):
            list(reader.feed(masked(CONTINUATION, b"")))


def test_the_limit_is_checked_before_the_payload_comes() -> None:
    """A header alone is enough to refuse: nothing that large is ever kept."""
    with pytest.raises(ViolationError):
        read(masked(TEXT, b"x" * (LIMIT + 1))[:14])


def test_empty_fragments_take_no_memory() -> None:
    """A message that never ends keeps no object a fragment."""
    reader = FrameReader(LIMIT)
    stream = masked(TEXT, b"", fin=False) + masked(CONTINUATION, b"", fin=False) * 10_000
    assert list(reader.feed(stream)) == []
    assert reader._parts == bytearray()


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    """Their payload is read as it was written."""
    payload = close_frame(code, "why")[2:]
    assert parse_close(payload) == (code, "why")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x03", 1002),
        *((number.to_bytes(2, "big"), 1002) for number in (0, 999, 1004, 1005, 1006, 1015, 1016)),
        *((number.to_bytes(2, "big"), 1002) for number in (2999, 5000, 65_535)),
        (b"\x03\xe8\xff", 1007),
    ],
)
def test_close_codes_that_may_not(payload: bytes, code: int) -> None:
    """RFC 6455, section 7.4: reserved codes, half of one, a reason that is not UTF-8."""
    with pytest.raises(ViolationError) as caught:
        parse_close(payload)
    assert caught.value.code == code


def test_a_close_frame_is_always_a_legal_one() -> None:
    """Without a code the frame is empty, and a long reason is cut between characters."""
    assert close_frame(1005, "") == frame(CLOSE, b"")
    long = close_frame(1008, "é" * 100)
    assert len(long) <= 127
    assert parse_close(long[2:]).reason == "é" * 61
