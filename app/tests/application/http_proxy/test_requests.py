"""The requests to backends: Centrifugo's documented bodies, and the header fields."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfleet import __version__
from wsfleet.application.http_proxy.requests import Bodies, HeaderFields
from wsfleet.application.port import (
    BackendError,
    Client,
    ConnectCall,
    DisconnectedCall,
    PublishCall,
    RefreshCall,
    RpcCall,
    SubRefreshCall,
    SubscribeCall,
)
from wsfleet.config.proxy import Proxy

ID = "9336a229-2400-4ebc-8c50-0a643d22e8a0"
CONNECTION = {"client": ID, "transport": "websocket", "protocol": "json", "encoding": "json"}
USER = CONNECTION | {"user": "56"}
CLIENT = Client(ID, user="56", meta=b'{"key": "value"}')


def bodies(**options: Any) -> Bodies:
    """Return the bodies of a proxy with these options."""
    return Bodies(Proxy.model_validate(options))


def fields(options: dict[str, Any], transport: Any = (), emulated: Any = ()) -> dict[str, str]:
    """Return the header fields of a request; each is there once."""
    encoded = HeaderFields(Proxy.model_validate(options)).encode(dict(transport), dict(emulated))
    lines = encoded.decode().removesuffix("\r\n").split("\r\n")
    found = dict(line.split(": ", 1) for line in lines)
    assert len(found) == len(lines)
    assert found.pop("content-type") == "application/json"
    return found


def test_documented_requests() -> None:
    """The examples of https://centrifugal.dev/docs/server/proxy."""
    every = bodies()
    channel = "chat:index"
    documented = [
        (every.connect(ConnectCall(Client(ID))), CONNECTION),
        (every.refresh(RefreshCall(CLIENT)), USER),
        (every.subscribe(SubscribeCall(CLIENT, channel, "index")), USER | {"channel": channel}),
        (
            every.publish(PublishCall(CLIENT, channel, "index", b'{"input":"hello"}')),
            USER | {"channel": channel, "data": {"input": "hello"}},
        ),
        (every.sub_refresh(SubRefreshCall(CLIENT, channel, "index")), USER | {"channel": channel}),
        (
            every.rpc(RpcCall(CLIENT, "getCurrentPrice", b'{"params": {"object_id": 12}}')),
            USER | {"method": "getCurrentPrice", "data": {"params": {"object_id": 12}}},
        ),
    ]  # fmt: skip
    for body, wanted in documented:
        assert json.loads(body) == wanted


def test_what_a_client_gives_is_sent_along() -> None:
    """Name, version, channels and data; a client without a user has an empty one."""
    call = ConnectCall(Client(ID), b"[1]", name="js", version="5", channels=("a", "b"))
    assert json.loads(bodies().connect(call)) == CONNECTION | {
        "name": "js", "version": "5", "channels": ["a", "b"], "data": [1],
    }  # fmt: skip
    subscribe = SubscribeCall(Client(ID), "a", "a", b'{"x":1}')
    assert json.loads(bodies().subscribe(subscribe)) == CONNECTION | {
        "user": "", "channel": "a", "data": {"x": 1},
    }  # fmt: skip
    ended = DisconnectedCall(CLIENT, 3001, "shutdown")
    assert json.loads(bodies().disconnect(ended)) == USER | {"code": 3001, "reason": "shutdown"}


def test_meta_is_sent_if_asked_for() -> None:
    """`include_connection_meta`; never to connect, which makes it."""
    every = bodies(include_connection_meta=True)
    assert json.loads(every.refresh(RefreshCall(CLIENT)))["meta"] == {"key": "value"}
    assert "meta" not in json.loads(every.refresh(RefreshCall(Client(ID))))
    assert "meta" not in json.loads(every.connect(ConnectCall(CLIENT)))
    assert "meta" not in json.loads(bodies().refresh(RefreshCall(CLIENT)))


def test_binary_encoding_sends_base64() -> None:
    """Any bytes then reach the backend."""
    binary = Client(ID, user="56", encoding="protobuf")
    body = json.loads(bodies(binary_encoding=True).rpc(RpcCall(binary, "m", b"\xff\0")))
    assert body["b64data"] == base64.b64encode(b"\xff\0").decode()
    assert (body["encoding"], body["protocol"]) == ("binary", "protobuf")
    assert "data" not in body


def test_a_payload_that_is_not_json_is_a_failure_without_it() -> None:
    """A Protobuf client may send any bytes."""
    binary = Client(ID, encoding="protobuf")
    assert json.loads(bodies().rpc(RpcCall(binary, "m", b"{}")))["data"] == {}
    with pytest.raises(BackendError, match="binary_encoding"):
        bodies().rpc(RpcCall(binary, "m", b"\xff"))


# Header fields


def test_no_field_of_a_client_is_forwarded_by_default() -> None:
    """Only the client's program is named: this node."""
    agent = {"user-agent": f"wsfleet/{__version__}"}
    assert fields({}, {"cookie": "a=1"}, {"Authorization": "b"}) == agent


def test_precedence_of_header_fields() -> None:
    """Static, below emulated, below the handshake; names in any case."""
    options = {
        "http": {"static_headers": {"X-One": "static", "X-Two": "static", "X-Three": "static"}},
        "emulated_headers": ["X-Two", "x-three", "Content-Type"],
        "http_headers": ["X-THREE", "Cookie", "User-Agent", "content-type"],
    }
    transport = {"x-three": "handshake", "cookie": "a=1; b=2", "x-one": "not listed",
                 "user-agent": "browser", "content-type": "text/plain"}  # fmt: skip
    emulated = {"x-TWO": "emulated", "X-Three": "emulated", "Cookie": "forged", "X-One": "forged",
                "Content-Type": "text/plain"}  # fmt: skip
    assert fields(options, transport, emulated) == {
        "x-one": "static",
        "x-two": "emulated",
        "x-three": "handshake",
        "cookie": "a=1; b=2",
        "user-agent": "browser",
    }
    assert fields(options, {}, emulated)["x-three"] == "emulated"
    assert "cookie" not in fields(options, {}, emulated)


@given(st.text())
def test_no_value_adds_a_header_field(value: str) -> None:
    """Emulated fields are any text that a client writes."""
    found = fields({"emulated_headers": ["X-A"]}, {}, {"X-A": value})
    if "x-a" in found:
        assert found["x-a"] == value
    assert found.keys() <= {"x-a", "user-agent"}


@pytest.mark.parametrize("value", ["a\r\nX-Admin: 1", "a\nb", "a\0", "\x7f"])
def test_a_value_with_control_characters_is_left_out(value: str) -> None:
    """The backend sees no value, as if the client had not sent it."""
    options = {"emulated_headers": ["X-A"], "http_headers": ["X-B"]}
    assert fields(options, {"x-b": value}, {"X-A": value}).keys() == {"user-agent"}
