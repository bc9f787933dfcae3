"""Bodies of API requests, without a node: what is read, and what is refused, with the reason."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.api import requests
from wsfleet.api.key_check import KeyCheck
from wsfleet.api.requests import Reader, RequestError
from wsfleet.channels.permissions import ChannelError

PUBLISH = Reader(requests.Publish)
KINDS: list[Any] = [
    requests.Publish,
    requests.Broadcast,
    requests.Subscribe,
    requests.Unsubscribe,
    requests.Disconnect,
    requests.Refresh,
    requests.BlockUser,
    requests.UnblockUser,
    requests.RevokeToken,
    requests.Channel,
    requests.History,
    requests.Channels,
    requests.Nothing,
    requests.OldCommand,
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**308), 10**308)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
spaces = st.text(" \t\r\n", max_size=2)


@given(values, spaces, st.booleans(), st.booleans())
def test_data_is_kept_byte_for_byte(
    value: object, space: str, ascii_only: bool, twice: bool
) -> None:
    """Byte for byte, whitespace within it, escapes, digits and keys that come twice as well."""
    data = json.dumps(value, ensure_ascii=ascii_only, indent=1 if space else None).encode()
    if twice:
        data = b'{"a":%b,%b"a" : 1.10000000000000000000001}' % (data, space.encode())
    body = b'{"channel":"c", "data":%b%b%b}' % (space.encode(), data, space.encode())
    assert PUBLISH.read(body).payload() == data


@pytest.mark.parametrize(
    "data",
    ["18446744073709551616", "-9223372036854775809", "1.10", "1E+2", "-0.0", "0.1e-400",
     '"\\u00e9"', '{"b":1,"a":2,"b":3}', "12345678901234567890123456789",
     '"\\ud83d\\ude00"', "null", "[ 1 ]"],
)  # fmt: skip
def test_numbers_and_keys_stay(data: str) -> None:
    """Numbers and keys pass unchanged, also those that Python's own types would change."""
    assert PUBLISH.read(f'{{"data":{data}}}'.encode()).payload() == data.encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty document"),
        (b"hello", "at character 0"),
        (b"{", "at character 1"),
        (b'{"channel":"a","data":1}x', "after document"),
        (b'{"data":1e400}', "infinity"),
        (b'{"data":NaN}', "at character 8"),
        (b'{"data":' + b"1" * 400 + b"}", "infinity"),
        (rb'{"user":"\ud83d"}', "surrogate"),
        (rb'{"tags":{"\udc00":"x"}}', "surrogate"),
        (b'{"user":"\xff"}', "not valid UTF-8"),
        (b'{"user":"\xed\xa0\xbd"}', "not valid UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 5000 + b"]" * 5000, "depth"),
    ],
)
def test_invalid_json_is_400(body: bytes, reason: str) -> None:
    """With a sentence that says where."""
    for kind in KINDS:
        with pytest.raises(RequestError, match=f"the body is not JSON: .*{reason}") as caught:
            Reader(kind).read(body)
        assert caught.value.status == 400


@given(
    st.sampled_from(KINDS),
    st.dictionaries(
        st.sampled_from(
            [*sorted({n for kind in KINDS for n in kind.__struct_fields__}), "Disconnect", "x"]
        ),
        values,
    )
    | values,
)
def test_any_json_is_a_request_or_422(kind: Any, value: object) -> None:
    """Nothing else is raised, neither when it is read nor when it is used."""
    try:
        request = Reader(kind).read(json.dumps(value).encode())
    except RequestError:
        return
    for use in ("payload", "target", "reason"):
        if callable(method := getattr(request, use, None)):
            try:
                method()
            except ChannelError:
                continue


@pytest.mark.parametrize("kind", KINDS)
def test_null_and_unknown_fields_are_absent(kind: Any) -> None:
    """A request of nulls is that of an empty object, and so is one of unknown names."""
    names = [field for field in kind.__struct_fields__ if field not in ("data", "info", "params")]
    nulls = dict.fromkeys(names) | {"something": {"new": [1.5]}, "Channel": 1}
    read, empty = Reader(kind).read(json.dumps(nulls).encode()), Reader(kind).read(b"{}")
    assert [getattr(read, name) or 0 for name in names] == [
        getattr(empty, name) or 0 for name in names
    ]


def test_b64data_goes_before_data() -> None:
    """Any bytes but JSON that parsers read differently; what is not Base64 is told."""

    def payload(encoded: str) -> bytes:
        data: bytes = PUBLISH.read(json.dumps({"data": 1, "b64data": encoded}).encode()).payload()
        return data

    assert payload(base64.b64encode(b"\x00\xff{").decode()) == b"\x00\xff{"
    assert payload("") == b"1"
    with pytest.raises(ChannelError, match="b64data: "):
        payload("!")
    with pytest.raises(ChannelError, match="surrogate"):
        payload(base64.b64encode(rb'["\ud83d"]').decode())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "data is missing"),
        ({"data": 1, "delta": True}, "delta compression is not supported"),
        ({"data": 1, "idempotency_key": "x" * 129}, "longer than 128"),
        ({"data": 1, "version": 2**64}, "version"),
        ({"data": 1, "version": 1, "skip_history": True}, "skip_history"),
    ],
)
def test_unsupported_fields_are_refused(fields: dict[str, Any], reason: str) -> None:
    """At its default every field is fine."""
    default = {"delta": False, "idempotency_key": "", "version": 0, "version_epoch": ""}
    request = {"data": 1, "skip_history": False} | default
    assert PUBLISH.read(json.dumps(request).encode()).payload() == b"1"
    with pytest.raises(ChannelError, match=reason):
        PUBLISH.read(json.dumps(fields).encode()).payload()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (3503, "force disconnect")),
        ({"disconnect": {"code": 0, "reason": ""}}, (3503, "force disconnect")),
        ({"disconnect": {"code": 4000, "reason": "x"}}, (4000, "x")),
        ({"disconnect": None, "Disconnect": {"code": 4001, "reason": "y"}}, (4001, "y")),
    ],
)
def test_the_reason_of_a_disconnect(given: dict[str, Any], expected: tuple[int, str]) -> None:
    """Code 0 is the default; gocent writes the field with a capital."""
    assert Reader(requests.Disconnect).read(json.dumps(given).encode()).reason() == expected


@pytest.mark.parametrize(
    ("headers", "query", "allowed"),
    [
        ({"x-api-key": "kéy"}, "", True),
        ({"authorization": "apikey kéy"}, "", True),
        ({"authorization": "ApiKey  kéy "}, "", True),
        ({}, "a=b&api_key=k%C3%A9y", True),
        ({"x-api-key": "wrong"}, "api_key=second", True),
        ({"x-api-key": "ké"}, "", False),
        ({"authorization": "Bearer kéy"}, "", False),
        ({"authorization": "kéy"}, "", False),
        ({"x-api-key": ""}, "", False),
        ({}, "", False),
        ({}, "api_key=%ff", False),
    ],
)
def test_where_a_key_is_shown(headers: dict[str, str], query: str, allowed: bool) -> None:
    """In either header, or in the query."""
    shown = [(name.encode(), value.encode()) for name, value in headers.items()], query.encode()
    refusal = KeyCheck(["kéy", "second"]).refusal(*shown)
    assert refusal is None if allowed else refusal is not None and refusal[0] == 401
    closed = KeyCheck([]).refusal(*shown)
    assert closed is not None
    assert closed[0] == 403
