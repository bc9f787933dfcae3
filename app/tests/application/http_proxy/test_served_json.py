"""Requests and answers from the other side: what one side writes, the other reads."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet.application.http_proxy import answers, served_json
from wsfleet.application.http_proxy.requests import Bodies, CompleteBodies
from wsfleet.application.port import (
    Client,
    ConnectCall,
    Connected,
    Disconnect,
    DisconnectedCall,
    Error,
    PublishCall,
    Published,
    Renewed,
    RpcCall,
    Subscribed,
)
from wsfleet.auth.tokens import Grant
from wsfleet.config.proxy import Proxy
from wsfleet.protocol import strict_json

TEXT = st.text(max_size=9)
JSON = st.sampled_from([b"{}", b'{"a": 1}', b"0", b'"x"', b"[null]"])
BYTES = JSON | st.sampled_from([b"\xff\0", b"null", b"{", b"not json"])
SECONDS = st.integers(0, 2**53)
FLAGS = st.sampled_from(
    ["presence", "join_leave", "force_push_join_leave", "force_positioning", "force_recovery"]
)
GRANTS = st.builds(
    Grant, st.none() | BYTES, st.none() | BYTES, st.dictionaries(FLAGS, st.booleans())
)
CONNECTED = st.builds(
    Connected,
    user=TEXT,
    expire_at=SECONDS,
    info=st.just(b"") | BYTES,
    meta=st.just(b"") | JSON,
    data=st.just(b"") | BYTES,
    subs=st.dictionaries(TEXT, GRANTS, max_size=3),
)
RENEWED = st.just(Renewed(expired=True)) | st.builds(
    Renewed, expire_at=SECONDS, info=st.none() | BYTES, meta=st.none() | JSON
)
PUBLISHED = st.builds(
    Published,
    data=BYTES,
    skip_history=st.booleans(),
    tags=st.dictionaries(TEXT, TEXT, max_size=3),
    idempotency_key=TEXT,
    version=st.integers(0, 2**64 - 1),
    version_epoch=TEXT,
)


@given(CONNECTED | st.none())
def test_a_connect_comes_back_as_it_was(result: Connected | None) -> None:
    """Or none."""
    assert answers.connected(served_json.answer(result)) == result


@given(RENEWED, st.builds(Subscribed, GRANTS, SECONDS), PUBLISHED, st.just(b"") | BYTES)
def test_other_answers_come_back_as_they_were(
    renewed: Renewed, subscribed: Subscribed, published: Published, data: bytes
) -> None:
    """Renewals, subscriptions, publications and results of calls."""
    assert answers.renewed(served_json.answer(renewed)) == renewed
    assert answers.subscribed(served_json.answer(subscribed)) == subscribed
    assert answers.published(served_json.answer(published), b"original") == published
    assert answers.rpc_data(served_json.answer(data)) == data


@given(st.integers(400, 1999), TEXT, st.booleans(), st.integers(4000, 4999))
def test_refusals_come_back_as_they_were(
    code: int, message: str, temporary: bool, close_code: int
) -> None:
    """Errors and disconnects."""
    with pytest.raises(Error) as error:
        answers.rpc_data(served_json.refusal(Error(code, message, temporary=temporary)))
    found = error.value
    assert (found.code, found.message, found.temporary) == (code, message, temporary)
    with pytest.raises(Disconnect) as disconnect:
        answers.rpc_data(served_json.refusal(Disconnect(close_code, "reason")))
    assert (disconnect.value.code, disconnect.value.reason) == (close_code, "reason")


@given(
    st.builds(
        Client,
        TEXT,
        user=TEXT,
        meta=st.just(b"") | JSON,
        transport=st.sampled_from(["websocket", "sse"]),
        encoding=st.sampled_from(["json", "protobuf"]),
    ),
    st.just(b"") | JSON,
    st.booleans(),
    st.lists(TEXT, max_size=3),
)
def test_calls_come_back_as_they_were(
    client: Client, data: bytes, binary: bool, channels: list[str]
) -> None:
    """The requests of a proxy are those calls again."""
    options: dict[str, Any] = {"binary_encoding": binary, "include_connection_meta": True}
    bodies = Bodies(Proxy.model_validate(options))

    def same(found: Client, *, meta: bytes) -> bool:
        return (found.id, found.transport, found.encoding, found.meta) == (
            client.id, client.transport, client.encoding, meta,
        )  # fmt: skip

    call = ConnectCall(client, data, "n", "v", tuple(channels))
    request = served_json.read(bodies.connect(call))
    found = request.connect(request.known_client({"cookie": "a=1"}), request.payload())
    assert same(found.client, meta=b"")
    assert found.client.cookies == {"a": "1"}
    assert (found.data, found.name, found.version, found.channels) == (
        data, "n", "v", tuple(channels),
    )  # fmt: skip
    request = served_json.read(bodies.rpc(RpcCall(client, "m", data)))
    assert same(request.known_client({}), meta=client.meta)
    assert request.known_client({}).user == client.user
    assert (request.method, request.payload()) == ("m", data)
    request = served_json.read(bodies.disconnect(DisconnectedCall(client, 3001, "r")))
    ended = request.disconnected(request.known_client({}))
    assert (ended.code, ended.reason) == (3001, "r")


@given(
    st.builds(
        Client,
        TEXT,
        user=TEXT,
        info=st.just(b"") | BYTES,
        meta=st.just(b"") | JSON,
        encoding=st.sampled_from(["json", "protobuf"]),
        address=TEXT,
        headers=st.dictionaries(TEXT, TEXT, max_size=2),
        emulated_headers=st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    st.just(b"") | BYTES,
)
def test_the_nodes_own_application_is_told_everything(client: Client, data: bytes) -> None:
    """Its requests have the whole client, and any payload; the request's header fields are none."""
    bodies = CompleteBodies(Proxy(include_connection_meta=True))
    request = served_json.read(bodies.publish(PublishCall(client, "a:b", "b", data)))
    found = request.known_client({"host": "localhost"})
    for name in ("id", "user", "info", "meta", "encoding", "address", "headers"):
        assert getattr(found, name) == getattr(client, name)
    assert found.emulated_headers == client.emulated_headers
    assert (request.channel, request.payload()) == ("a:b", data)
    request = served_json.read(bodies.connect(ConnectCall(client, data)))
    assert request.known_client({}).headers == client.headers
    assert request.payload() == data


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"client":1}', b'{"client":"\\ud800"}'])
def test_what_is_not_a_request_is_refused(body: bytes) -> None:
    """`client` is the one field of all requests."""
    with pytest.raises((msgspec.DecodeError, strict_json.InvalidJSONError)):
        served_json.read(body)


@given(st.binary() | st.dictionaries(TEXT, TEXT).map(lambda each: json.dumps(each).encode()))
def test_any_bytes_are_a_request_or_refused(body: bytes) -> None:
    """Nothing else comes out."""
    with contextlib.suppress(ValueError, RecursionError):
        served_json.read(body)
