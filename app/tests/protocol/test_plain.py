"""The plain protocol's codec, without I/O."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.protocol import plain


def broadcast(*, data: bytes, opaque: bool = False) -> bytes:
    """The payload of one message from client "a" on node "n"."""
    return plain.broadcast(client_id="a", hostname="n", time=0, data=data, opaque=opaque)


def heard(message: plain.PlainMessage) -> Any:
    """Return the message for the other clients."""
    return json.loads(broadcast(data=message.json))


@given(st.text())
def test_any_text_is_a_message_or_a_clear_error(text: str) -> None:
    """No text crashes the codec, and what the others get is JSON."""
    try:
        message = plain.parse(text)
    except plain.InvalidMessageError:
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


@pytest.mark.parametrize(
    "text",
    [r'{"client_id":"a","x":"\ud83d"}', '{"client_id":"a","x":1e400}', '{"client_id":"a","x":NaN}',
     '{"client_id":"a",}', ' {"client_id":"a"', '\ufeff{"client_id":"a"}', "{}{}", "{'a':1}",
     '{"a":"\x01"}', "[1e400]", "[-Infinity]", r'"\udc00"', "-1e999", r'["\ud83d\ud83d\ude00"]'],
)  # fmt: skip
def test_json_that_parsers_read_differently_is_an_error(text: str) -> None:
    """As text, its `client_id` and `idempotency_key` would be ignored; the frame says why."""
    with pytest.raises(
        plain.InvalidMessageError, match=r"the JSON is invalid: .+ at character"
    ) as caught:
        plain.parse(text)
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    "text", ["", " ", "hello", "[alice] hi", "[12:00", "NaN", "1.", '"hi" she said', "say {}", "\0"]
)
def test_plain_text_stays_text(text: str) -> None:
    """Text that no parser takes for JSON passes as a string."""
    assert heard(plain.parse(text))["data"] == text


@given(
    st.from_regex(r'[ \[\]{}",:0-9eE+\-\\udDnat.]{0,24}', fullmatch=True)
    | st.builds(
        '{{"client_id":"a","x":{}}}'.format,
        st.sampled_from([r'"\ud8', r'"\ude', "1e", "-", "[", "Na", '"']).flatmap(
            lambda start: st.text('0123456789ef\\"}]N', max_size=8).map(start.__add__)
        ),
    )
)
def test_an_object_is_never_text(text: str) -> None:
    """Any object either has all of its fields counted, or gets an error frame."""
    try:
        message = plain.parse(text)
    except plain.InvalidMessageError:
        return
    if text.strip().startswith("{"):
        assert json.loads(message.json) == json.loads(text)
        assert message.client_id == json.loads(text).get("client_id")
    assert json.loads(broadcast(data=message.json))


def test_binary_is_an_error() -> None:
    """None stands for a binary message."""
    with pytest.raises(plain.InvalidMessageError, match="send text"):
        plain.parse(None)


def test_data_of_another_protocol_that_is_no_json_becomes_a_string() -> None:
    """The plain protocol's messages are JSON, whatever was published."""
    message = json.loads(broadcast(data=b"\xffno json", opaque=True))
    assert message["data"] == "\ufffdno json"
