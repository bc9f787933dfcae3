"""The plain protocol's codec, without I/O."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from wsfleet.frames import TEXT, frame
from wsfleet.protocol import plain
from wsfleet.records import Member, Record


def payload_of(data: bytes) -> bytes:
    """What a frame carries, as another implementation reads it."""
    reader = StreamReader()
    reader.feed_data(data)
    parser = Frame.parse(reader.read_exact, mask=False, max_size=None)
    with pytest.raises(StopIteration) as parsed:
        next(parser)
    parsed_frame: Frame = parsed.value.value
    assert parsed_frame.opcode is Opcode.TEXT
    assert parsed_frame.fin
    return bytes(parsed_frame.data)


def heard(message: plain.Message) -> Any:
    """What the other clients get."""
    record = Record(message.json, 0, Member(client="a"), node="n", number=1)
    return json.loads(payload_of(plain.broadcast(record)))


@given(st.text())
def test_any_text_is_a_message_or_a_clear_error(text: str) -> None:
    """No text crashes the codec, and what the others get is JSON."""
    try:
        message = plain.parse(text)
    except plain.ProtocolError:
        return
    data = heard(message)["data"]
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        assert data == text
    else:
        assert data == json.loads(text)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_goes_through_unchanged(value: object) -> None:
    """A JSON message reaches the others byte for byte."""
    text = json.dumps({"payload": value}, ensure_ascii=False)
    try:
        message = plain.parse(text)
    except UnicodeEncodeError:
        pytest.skip("a lone surrogate cannot arrive in UTF-8")
    assert heard(message)["data"] == {"payload": value}


def test_binary_is_an_error() -> None:
    """None stands for a binary message."""
    with pytest.raises(plain.ProtocolError, match="send text"):
        plain.parse(None)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_frame_lengths(size: int) -> None:
    """The three length forms of RFC 6455, section 5.2, as another implementation reads them."""
    assert payload_of(frame(TEXT, b"x" * size)) == b"x" * size


def test_data_of_another_protocol_that_is_no_json_becomes_a_string() -> None:
    """The plain protocol's messages are JSON, whatever was published."""
    record = Record(b"\xffno json", 0, Member("user", "client"), node="n")
    message = json.loads(payload_of(plain.broadcast(record)))
    assert (message["data"], message["client_id"]) == ("\ufffdno json", "client")
