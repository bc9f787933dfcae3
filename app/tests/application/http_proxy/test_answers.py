"""The answers of backends: Centrifugo's documented ones, invalid ones, and any others."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.application.http_proxy import answers
from wsfleet.application.port import (
    BackendError,
    Connected,
    Disconnect,
    Error,
    Published,
    Renewed,
    Subscribed,
)
from wsfleet.auth.tokens import Grant

READERS: dict[str, Callable[[bytes], Any]] = {
    "connect": answers.connected,
    "refresh": answers.renewed,
    "subscribe": answers.subscribed,
    "publish": lambda body: answers.published(body, b"original"),
    "rpc": answers.rpc_data,
}
EVERY = pytest.mark.parametrize("event", READERS)


def read(event: str, answer: Any) -> Any:
    """Return what an answer to an event is read as."""
    return READERS[event](json.dumps(answer).encode())


@pytest.mark.parametrize(
    ("event", "answer", "wanted"),
    [
        ("connect", {"result": {"user": "56"}}, Connected(user="56")),
        ("refresh", {"result": {"expire_at": 1565436268}}, Renewed(expire_at=1565436268)),
        ("subscribe", {"result": {}}, Subscribed()),
        ("publish", {"result": {}}, Published(b"original")),
        ("rpc", {"result": {"data": {"answer": "2019"}}}, b'{"answer": "2019"}'),
    ],
)
def test_documented_answers(event: str, answer: Any, wanted: Any) -> None:
    """The examples of https://centrifugal.dev/docs/server/proxy."""
    assert read(event, answer) == wanted


def test_every_field_of_a_connect() -> None:
    """All fields of ConnectResult and SubscribeOptions; `subs` goes before `channels`."""
    result = {
        "user": "7",
        "expire_at": 9,
        "info": {"name": "Ada"},
        "data": [1],
        "meta": {"key": "value"},
        "channels": ["a", "b"],
        "subs": {
            "b": {"info": 1, "data": 2, "override": {"presence": {"value": True}}},
            "c": {"b64info": "/w==", "b64data": "AA==", "cache_recover": True},
        },
        "caps": [],
        "labels": {},
    }
    assert read("connect", {"result": result}) == Connected(
        user="7",
        expire_at=9,
        info=b'{"name": "Ada"}',
        data=b"[1]",
        meta=b'{"key": "value"}',
        subs={
            "a": Grant(),
            "b": Grant(b"1", b"2", {"presence": True}),
            "c": Grant(b"\xff", b"\0"),
        },
    )


def test_every_field_of_the_others() -> None:
    """All fields of SubscribeResult, PublishResult, RefreshResult and RPCResult."""
    override = {"force_recovery": {"value": False}, "join_leave": {}, "presence": None}
    assert read(
        "subscribe",
        {"result": {"info": 1, "b64data": "AQ==", "expire_at": 5, "override": override}},
    ) == Subscribed(Grant(b"1", b"\x01", {"force_recovery": False, "join_leave": False}), 5)
    published = {
        "data": {"a": 1},
        "skip_history": True,
        "tags": {"k": "v"},
        "idempotency_key": "i",
        "delta": True,
        "version": 2**64 - 1,
        "version_epoch": "e",
    }
    assert read("publish", {"result": published}) == Published(
        b'{"a": 1}', True, {"k": "v"}, "i", 2**64 - 1, "e"
    )
    assert read("publish", {"result": {"b64data": "/w=="}}) == Published(b"\xff")
    assert read("refresh", {"result": {"b64info": "/w==", "meta": {}}}) == Renewed(
        info=b"\xff", meta=b"{}"
    )
    assert read("rpc", {"result": {"b64data": "/w=="}}) == b"\xff"


@EVERY
def test_null_counts_as_absent(event: str) -> None:
    """A backend with typed answers may send all fields that it knows."""
    fields = "user expire_at info b64info data b64data meta channels subs override expired tags"
    nothing = dict.fromkeys([*fields.split(), "version", "skip_history"])
    assert read(event, {"result": nothing, "error": None, "disconnect": None}) == read(
        event, {"result": {}}
    )


@EVERY
@pytest.mark.parametrize("answer", [{}, {"result": None}, {"detail": "no such page"}])
def test_an_answer_without_a_result_grants_nothing(event: str, answer: Any) -> None:
    """No credentials, an end, or a failure."""
    if event == "connect":
        assert read(event, answer) is None
    elif event == "refresh":
        assert read(event, answer) == Renewed(expired=True)
    else:
        with pytest.raises(BackendError, match="none of result, error and disconnect"):
            read(event, answer)


def test_an_end_is_an_end() -> None:
    """Whatever else the answer to a refresh has."""
    result = {"expired": True, "expire_at": 9, "info": 1}
    assert read("refresh", {"result": result}) == Renewed(expired=True)


@EVERY
def test_errors_and_disconnects(event: str) -> None:
    """They go before a result, and a disconnect goes before an error."""
    refusal = {"result": {}, "error": {"code": 1000, "message": "custom error", "temporary": True}}
    with pytest.raises(Error) as error:
        read(event, refusal)
    assert (error.value.code, error.value.message) == (1000, "custom error")
    assert error.value.temporary
    refusal["disconnect"] = {"code": 4500, "reason": "disconnect reason"}
    with pytest.raises(Disconnect) as disconnect:
        read(event, refusal)
    assert (disconnect.value.code, disconnect.value.reason) == (4500, "disconnect reason")


@EVERY
@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": 103, "message": "the node's own"}},
        {"error": {}},
        {"disconnect": {"code": 3000}},
        {"disconnect": {"code": 4500, "reason": "x" * 33}},
        {"error": {"code": "400"}},
        {"error": []},
        {"result": []},
        {"result": "ok"},
        [],
        None,
        "ok",
    ],
)
def test_answers_of_another_shape_are_failures(event: str, answer: Any) -> None:
    """Codes outside of the application's ranges, and other types."""
    with pytest.raises(BackendError) as caught:
        read(event, answer)
    assert caught.value.reason == "invalid"


@EVERY
@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"result":{"info":"\\ud800"}}', b"{}{}", b"[" * 5000, b"<html>"]
)
def test_what_is_not_json_is_a_failure(event: str, body: bytes) -> None:
    """Neither is JSON that parsers read differently."""
    with pytest.raises(BackendError, match="the answer is not valid: "):
        READERS[event](body)


@pytest.mark.parametrize("event", ["connect", "subscribe", "publish", "rpc"])
def test_invalid_base64_is_a_failure(event: str) -> None:
    """Whatever else the answer has."""
    with pytest.raises(BackendError):
        read(event, {"result": {"b64data": "!"}})


def test_a_version_has_64_bits() -> None:
    """It is compared in Redis."""
    with pytest.raises(BackendError, match="version"):
        read("publish", {"result": {"version": 2**64}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(
    [
        "user",
        "expire_at",
        "info",
        "b64info",
        "data",
        "b64data",
        "meta",
        "channels",
        "subs",
        "override",
        "expired",
        "tags",
        "version",
        "version_epoch",
        "skip_history",
        "idempotency_key",
        "code",
        "message",
        "temporary",
        "reason",
        "presence",
        "value",
    ]
)
RESULTS = st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=6)
ANSWERS = st.fixed_dictionaries(
    {}, optional={"result": RESULTS | JSON, "error": RESULTS | JSON, "disconnect": RESULTS | JSON}
)


@given(st.sampled_from(sorted(READERS)), ANSWERS | JSON)
def test_any_json_is_a_result_a_refusal_or_a_failure(event: str, answer: Any) -> None:
    """Nothing else comes out, so that no answer can stop a client or a node."""
    kinds: dict[str, Any] = {
        "connect": (Connected, type(None)),
        "refresh": Renewed,
        "subscribe": Subscribed,
        "publish": Published,
        "rpc": bytes,
    }
    try:
        result = read(event, answer)
    except (BackendError, Error, Disconnect):
        return
    assert isinstance(result, kinds[event])


@given(st.sampled_from(sorted(READERS)), st.binary())
def test_any_bytes_are_a_failure_at_worst(event: str, body: bytes) -> None:
    """Bytes that are an answer by chance are one."""
    with contextlib.suppress(BackendError, Error, Disconnect):
        READERS[event](body)
