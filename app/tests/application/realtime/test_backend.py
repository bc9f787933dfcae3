"""The backends of handlers: events in, answers out, invalid data refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from starlette.requests import Request

from wsfleet import (
    Accept,
    Allow,
    Connect,
    Disconnect,
    Disconnected,
    Error,
    Publish,
    Published,
    Realtime,
    Refresh,
    Renew,
    Rpc,
    SubRefresh,
    Subscribe,
)
from wsfleet.application import port
from wsfleet.application.port import BackendError, UnknownMethodError
from wsfleet.application.realtime.backend import MAX_MESSAGE, HandlerRouter

CLIENT = port.Client(
    "1",
    headers={"cookie": "session=abc", "host": "x"},
    emulated_headers={"x-token": "t"},
    address="10.0.0.7",
)


class Message(BaseModel):
    """Data of a publication."""

    text: str = Field(min_length=1, max_length=20)
    tags: dict[str, int] = {}

    @field_validator("text")
    @classmethod
    def _no_shouting(cls, text: str) -> str:
        if text.isupper():
            raise ValueError("do not shout")
        return text


def of_publish(realtime: Realtime, namespace: str = "room") -> port.Backend:
    """Return the backend of a namespace."""
    backend = realtime.router.publish(namespace)
    assert backend is not None
    return backend


def call(data: bytes) -> port.PublishCall:
    """Return a publish with this data."""
    return port.PublishCall(CLIENT, "room:7", "7", data)


async def test_events_have_what_the_call_has() -> None:
    """Each event has the client, its handshake, and the fields of its command."""
    realtime = Realtime()
    events: list[Any] = []

    @realtime.on_connect
    async def connect(event: Connect[dict[str, int]]) -> Accept:
        events.append(event)
        return Accept("7", info={"name": "Anna"})

    @realtime.on_subscribe("room")
    async def subscribe(event: Subscribe) -> Allow | None:
        events.append(event)
        return None if event.data is None else Allow(info=event.data)

    @realtime.on_publish("room")
    async def publish(event: Publish[Message]) -> None:
        events.append(event)

    @realtime.on_rpc("add")
    def add(event: Rpc[list[int]]) -> int:
        events.append(event)
        return sum(event.data)

    @realtime.on_disconnect
    async def disconnect(event: Disconnected) -> None:
        events.append(event)

    router = realtime.router
    assert router.connect
    assert router.disconnected
    subscriber = router.subscribe("room")
    assert subscriber
    connected = await router.connect.connect(
        port.ConnectCall(CLIENT, b'{"a":1}', "js", "1.0", ("room:7",))
    )
    assert connected == port.Connected(user="7", info=b'{"name":"Anna"}')
    assert (
        await subscriber.subscribe(port.SubscribeCall(CLIENT, "room:7", "7")) == port.Subscribed()
    )
    granted = await subscriber.subscribe(port.SubscribeCall(CLIENT, "room:7", "7", b"[1]"))
    assert granted.grant.info == b"[1]"
    assert await of_publish(realtime).publish(call(b'{"text": "hi"}')) == port.Published(
        b'{"text": "hi"}'
    )
    assert await router.rpc("add").rpc(port.RpcCall(CLIENT, "add", b"[1,2]")) == b"3"
    await router.disconnected.disconnected(port.DisconnectedCall(CLIENT, 3000, "bye"))
    connect_event, first, _, published, called, disconnected = events
    assert connect_event.data == {"a": 1}
    assert (connect_event.name, connect_event.version) == ("js", "1.0")
    assert connect_event.channels == ("room:7",)
    assert connect_event.cookies == {"session": "abc"}
    assert connect_event.headers["host"] == "x"
    assert connect_event.emulated_headers == {"x-token": "t"}
    assert connect_event.address == "10.0.0.7"
    assert (first.channel, first.name, first.data) == ("room:7", "7", None)
    assert published.data == Message(text="hi")
    assert called.method == "add"
    assert (disconnected.code, disconnected.reason) == (3000, "bye")
    assert all(event.client is CLIENT for event in events)


@pytest.mark.parametrize(
    "odd", ['consent={"ads": true}', "name=Zoë", "flag", "my cart=1", "list[0]=a", "path=/"]
)
def test_an_odd_cookie_hides_no_other(odd: str) -> None:
    """Any script of the domain sets cookies; a route reads the others all the same."""
    header = f"{odd}; session=abc"
    cookies = port.Client("1", headers={"cookie": header}).cookies
    assert cookies["session"] == "abc"
    scope = {"type": "http", "headers": [(b"cookie", header.encode("latin-1"))]}
    assert cookies == Request(scope).cookies
    assert port.Client("1").cookies == {}


async def test_the_result_of_publish_is_published() -> None:
    """A value, a value with options, or what came."""
    realtime = Realtime()
    results: list[Any] = [
        {"text": "changed"},
        Published(Message(text="x"), tags={"a": "b"}, version=3),
        None,
        b'{"raw": 1}',
    ]

    @realtime.on_publish("room")
    async def publish(event: Publish[Message]) -> Any:
        return results.pop(0)

    backend = of_publish(realtime)
    data = b'{"text": "hi"}'
    assert await backend.publish(call(data)) == port.Published(b'{"text":"changed"}')
    assert await backend.publish(call(data)) == port.Published(
        b'{"text":"x","tags":{}}', tags={"a": "b"}, version=3
    )
    assert await backend.publish(call(data)) == port.Published(data)
    assert await backend.publish(call(data)) == port.Published(b'{"raw": 1}')


@pytest.mark.parametrize("result", [b"", Published(b"")])
async def test_nothing_cannot_be_published(result: Any) -> None:
    """It is a failure of the handler, in the node's process as in one of its own."""
    realtime = Realtime()

    @realtime.on_publish("room")
    async def publish(event: Publish) -> Any:
        return result

    with pytest.raises(BackendError, match="data is missing") as error:
        await of_publish(realtime).publish(call(b"1"))
    assert error.value.reason == "invalid"


async def test_without_a_result_nothing_is_renewed() -> None:
    """None ends a connection or a subscription; `Renew` extends it."""
    realtime = Realtime()
    results: list[Renew | None] = [None, Renew(7), None, Renew(8, info=1)]

    @realtime.on_refresh
    async def refresh(event: Refresh) -> Renew | None:
        return results.pop(0)

    @realtime.on_sub_refresh("room")
    async def sub_refresh(event: SubRefresh) -> Renew | None:
        return results.pop(0)

    backend, of_room = realtime.router.refresh, realtime.router.sub_refresh("room")
    assert backend
    assert of_room
    assert await backend.refresh(port.RefreshCall(CLIENT)) == port.Renewed(expired=True)
    assert await backend.refresh(port.RefreshCall(CLIENT)) == port.Renewed(expire_at=7)
    sub_refresh_call = port.SubRefreshCall(CLIENT, "room:7", "7")
    assert (await of_room.sub_refresh(sub_refresh_call)).expired
    assert (await of_room.sub_refresh(sub_refresh_call)).info == b"1"


@given(
    st.one_of(
        st.binary(max_size=50),
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("text"), inner),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
async def test_data_that_is_not_valid_never_reaches_the_handler(data: bytes) -> None:
    """It is answered with 422 and a message of limited length; valid data reaches the handler."""
    realtime = Realtime()
    reached: list[Message] = []

    @realtime.on_publish("room")
    async def publish(event: Publish[Message]) -> None:
        reached.append(event.data)

    try:
        Message.model_validate_json(data or b"null")
        valid = True
    except ValueError:
        valid = False
    publishing = of_publish(realtime).publish(call(data))
    if valid:
        assert (await publishing).data == data
    else:
        with pytest.raises(Error) as error:
            await publishing
        assert error.value.code == 422
        assert 0 < len(error.value.message) <= MAX_MESSAGE
    assert len(reached) == valid


async def test_a_word_that_is_a_number_to_pydantic_is_not_valid() -> None:
    """A client with Protobuf may send any bytes; `NaN` is not JSON."""
    realtime = Realtime()

    @realtime.on_rpc("sqrt")
    async def sqrt(event: Rpc[float]) -> float:
        return math.sqrt(event.data)

    backend = realtime.router.rpc("sqrt")
    client = port.Client("1", encoding="protobuf")
    assert await backend.rpc(port.RpcCall(client, "sqrt", b"4")) == b"2.0"
    with pytest.raises(Error, match="422: Invalid JSON"):
        await backend.rpc(port.RpcCall(client, "sqrt", b"NaN"))


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
async def test_bytes_reach_only_clients_that_can_take_them(encoding: str) -> None:
    """What is not JSON would end the connection of a JSON client; nothing, and JSON, are fine."""
    realtime = Realtime()
    results: list[Any] = [b"\x01", b"", b"[1]"]
    accepted: list[Any] = [Accept(data=b"\x01"), Accept(channels={"a": Allow(data=b"\x01")})]

    @realtime.on_rpc("next")
    async def answer(event: Rpc) -> Any:
        return results.pop(0)

    @realtime.on_connect
    async def connect(event: Connect) -> Any:
        return accepted.pop(0)

    @realtime.on_subscribe("room")
    async def subscribe(event: Subscribe) -> Allow:
        return Allow(data=b"\x01")

    router, client = realtime.router, port.Client("1", encoding=encoding)
    subscriber = router.subscribe("room")
    assert router.connect
    assert subscriber
    for answering in (
        router.rpc("next").rpc(port.RpcCall(client, "next")),
        router.connect.connect(port.ConnectCall(client)),
        router.connect.connect(port.ConnectCall(client)),
        subscriber.subscribe(port.SubscribeCall(client, "room:7", "7")),
    ):
        if encoding == "protobuf":
            assert await answering
        else:
            with pytest.raises(BackendError, match="returned what is not valid"):
                await answering
    assert await router.rpc("next").rpc(port.RpcCall(client, "next")) == b""
    assert await router.rpc("next").rpc(port.RpcCall(client, "next")) == b"[1]"


@pytest.mark.parametrize(
    ("refusal", "code", "text", "wrong"),
    [
        (Error, 403, None, TypeError),
        (Error, 403, {"reason": "no"}, TypeError),
        (Error, 403, "\ud800", ValueError),
        (Error, 403.0, "no", ValueError),
        (Error, 399, "no", ValueError),
        (Disconnect, 4501, 7, TypeError),
        (Disconnect, 3501, "no", ValueError),
    ],
)
def test_a_refusal_has_a_code_and_a_text(
    refusal: Any, code: Any, text: Any, wrong: type[Exception]
) -> None:
    """SDKs fail at a reply with another type, so it is an error where it is raised."""
    with pytest.raises(wrong, match=r"is a string|code is \d|surrogates"):
        refusal(code, text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"text": ""}', "text: String should have at least 1 character"),
        (b'{"text": "HEY"}', "text: Value error, do not shout"),
        (b"{}", "text: Field required"),
        (b"", "Input should be an object"),
        (b'{"text": "a", "tags": {"%s": "x"}}' % (b"k" * 1000), "tags.kkk"),
    ],
)
async def test_the_error_is_pydantics_first_message(data: bytes, message: str) -> None:
    """The path of the value comes before it; a long one is cut."""
    realtime = Realtime()

    @realtime.on_publish("room")
    async def publish(event: Publish[Message]) -> None: ...

    with pytest.raises(Error) as error:
        await of_publish(realtime).publish(call(data))
    assert error.value.message.startswith(message)
    assert not error.value.temporary


async def test_a_wrong_result_is_a_failure_of_the_handler() -> None:
    """A result of another type, or without a JSON form, is a temporary error."""
    realtime = Realtime()

    @realtime.on_connect
    async def connect(event: Connect) -> Any:
        return {"user": "7"}

    @realtime.on_rpc("object")
    async def rpc(event: Rpc) -> Any:
        return object()

    @realtime.on_subscribe("room")
    async def subscribe(event: Subscribe) -> Any:
        return Allow(info=object())

    router: HandlerRouter = realtime.router
    subscriber = router.subscribe("room")
    assert router.connect
    assert subscriber
    for answer, message in (
        (router.connect.connect(port.ConnectCall(CLIENT)), "neither Accept nor None"),
        (router.rpc("object").rpc(port.RpcCall(CLIENT, "object")), "returned what is not valid"),
        (
            subscriber.subscribe(port.SubscribeCall(CLIENT, "room:7", "7")),
            "returned what is not valid",
        ),
    ):
        with pytest.raises(BackendError, match=message) as error:
            await answer
        assert error.value.reason == "invalid"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": {"a": 1}}, "Expected `str`, got `int`"),
        ({"version": -1}, "Expected `int` >= 0"),
        ({"version": 2**64}, "version is above"),
        ({"version": 1, "skip_history": True}, "leave out skip_history"),
        ({"idempotency_key": "k" * 129}, "longer than 128"),
        ({"tags": {"a": "\ud800"}}, "surrogates not allowed"),
    ],
)
async def test_wrong_options_of_a_publication_reach_no_other_node(
    options: dict[str, Any], message: str
) -> None:
    """They are checked as those of the server API."""
    realtime = Realtime()

    @realtime.on_publish("room")
    async def publish(event: Publish) -> Published[Any]:
        return Published(event.data, **options)

    with pytest.raises(BackendError, match=message) as error:
        await of_publish(realtime).publish(call(b"1"))
    assert error.value.reason == "invalid"


def test_the_router_has_a_backend_for_what_has_a_handler() -> None:
    """All others are left to the node's own rules; an unknown method is an error."""
    realtime = Realtime()

    @realtime.on_rpc("room.rename")
    async def rename(event: Rpc) -> None: ...

    @realtime.on_publish("room")
    async def publish(event: Publish) -> None: ...

    router = realtime.router
    assert set(router.methods) == {"room.rename"}
    for backend in (router.connect, router.refresh, router.disconnected):
        assert backend is None
    assert router.publish("other") is None
    assert router.subscribe("room") is None
    assert router.sub_refresh("room") is None
    with pytest.raises(UnknownMethodError):
        router.rpc("room")
