"""The plain protocol's codec, without I/O."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.frames import text_frame
from wsfleet.protocol import plain


@given(st.text())
def test_any_text_is_a_message_or_a_clear_error(text: str) -> None:
    """No text crashes the codec, and what the others get is JSON."""
    try:
        message = plain.parse(text)
    except plain.ProtocolError:
        return
    sent = plain.broadcast(message, client_id="a", hostname="n", timestamp="t")
    data = json.loads(sent)["data"]
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
    sent = plain.broadcast(message, client_id="a", hostname="n", timestamp="t")
    assert json.loads(sent)["data"] == {"payload": value}


def test_binary_is_an_error() -> None:
    """None stands for a binary message."""
    with pytest.raises(plain.ProtocolError, match="send text"):
        plain.parse(None)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_frame_lengths(size: int) -> None:
    """The three length forms of RFC 6455, section 5.2, as another implementation reads them."""
    from websockets.frames import Frame, Opcode
    from websockets.streams import StreamReader

    reader = StreamReader()
    reader.feed_data(text_frame(b"x" * size))
    parser = Frame.parse(reader.read_exact, mask=False, max_size=None)
    with pytest.raises(StopIteration) as parsed:
        next(parser)
    frame = parsed.value.value
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.TEXT, True, b"x" * size)
