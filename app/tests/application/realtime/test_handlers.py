"""The check of handlers where they are defined: annotations, duplicates, namespaces."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from wsfleet import Connect, Disconnected, Publish, Realtime, Refresh, Rpc, SubRefresh, Subscribe
from wsfleet.application.realtime.handlers import (
    DuplicateHandlerError,
    Handlers,
    HandlerTypeError,
    checked,
)


class Message(BaseModel):
    """Data of a publication."""

    text: str


async def publish(event: Publish[Message]) -> None:
    """Handle a publish."""


def rpc(event: "Rpc[Message]") -> None:
    """Handle a call."""


class Bot:
    """Handlers that are no plain functions."""

    async def __call__(self, event: Subscribe) -> None:
        """Handle a subscribe."""

    def connect(self, event: Connect) -> None:
        """Handle a connect."""


async def with_default(event: Publish[Message], database: str = "main") -> None:
    """Handle a publish, with a parameter that has a default."""


async def of_two(one: Publish[Message], two: int) -> None:
    """Take two arguments."""


async def without_annotation(event) -> None:  # type: ignore[no-untyped-def]
    """Take anything."""


async def unknown_name(event: "Publish[Missing]") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Name a type that is missing."""


class Opaque:
    """A class that pydantic knows nothing of."""


async def opaque(event: Publish[Opaque]) -> None:
    """Take a type that pydantic cannot validate."""


async def by_name(*, event: Publish[Message]) -> None:
    """Take the event by name."""


async def several(*event: Publish[Message]) -> None:
    """Take any number of events."""


async def drain_with_argument(event: int) -> None:
    """Take an argument."""


def test_data_has_the_type_of_the_annotation() -> None:
    """The annotation, also as text, is what validates the data; without one, any JSON is valid."""
    for event, function in (("publish", publish), ("rpc", rpc), ("publish", with_default)):
        adapter = checked(event, function, "").data
        assert adapter is not None
        assert adapter.validate_json('{"text": "x"}') == Message(text="x")
    adapter = checked("subscribe", Bot(), "").data
    assert adapter is not None
    assert adapter.validate_json("[1]") == [1]

    async def raw(event: Publish[bytes]) -> None: ...
    async def null(event: Publish[None]) -> None: ...

    assert checked("publish", raw, "").data is None
    adapter = checked("publish", null, "").data
    assert adapter is not None
    assert adapter.validate_json("null") is None


def test_only_plain_functions_run_in_a_thread() -> None:
    """Coroutine functions are found behind methods, objects, partials and wrappers."""

    @functools.wraps(publish)
    async def wrapped(event: Publish[Message]) -> None:
        await publish(event)

    for event, function in (
        ("publish", publish),
        ("publish", wrapped),
        ("subscribe", Bot()),
        ("publish", functools.partial(with_default, database="other")),
    ):
        assert not checked(event, function, "").blocking, function
    assert checked("rpc", rpc, "").blocking
    assert checked("connect", Bot().connect, "").blocking


WRONG: list[tuple[str, Callable[..., Any], str, str]] = [
    ("publish", of_two, "of_two", "has one parameter, the event: write (event: Publish[Message])"),
    ("publish", without_annotation, "without_annotation", "write (event: Publish[Message])"),
    ("publish", rpc, "rpc", "write (event: Publish[Message]) instead of"),
    ("refresh", publish, "publish", "write (event: Refresh) instead of"),
    ("publish", unknown_name, "unknown_name", "name 'Missing' is not defined"),
    ("publish", opaque, "opaque", "pydantic cannot validate"),
    ("publish", by_name, "by_name", "write (event: Publish[Message]) instead of (*, event: "),
    ("publish", several, "several", "write (event: Publish[Message]) instead of (*event: "),
    ("drain", drain_with_argument, "drain_with_argument", "has no parameters"),
]


@pytest.mark.parametrize(("event", "function", "name", "message"), WRONG)
def test_a_wrong_annotation_is_an_error(
    event: str, function: Callable[..., Any], name: str, message: str
) -> None:
    """The error names the file, the line, the function, and what to write."""
    with pytest.raises(HandlerTypeError) as error:
        checked(event, function, f"on_{event}")
    line = function.__code__.co_firstlineno
    assert str(error.value).startswith(f"{__file__}:{line} {__name__}.{name}: ")
    assert message in str(error.value)


def test_what_is_no_function_is_an_error() -> None:
    """A decorator with a name needs the name, and the function after it."""
    realtime: Any = Realtime()
    with pytest.raises(HandlerTypeError, match="'room' is not a function"):
        realtime.on_connect("room")
    for decorator, name in (
        (realtime.on_subscribe, "subscribe"),
        (realtime.on_sub_refresh, "sub_refresh"),
        (realtime.on_publish, "publish"),
        (realtime.on_rpc, "rpc"),
    ):
        correction = rf"test_handlers.publish: @on_{name} needs a name: @realtime.on_{name}\("
        with pytest.raises(HandlerTypeError, match=correction):
            decorator(publish)  # without a second call, nothing else would notice it
    with pytest.raises(HandlerTypeError, match="@on_rpc needs a name"):
        realtime.on_rpc(7)


def test_two_handlers_for_one_event_are_an_error() -> None:
    """The error names both; other namespaces and other events are independent."""
    handlers = Handlers()
    handlers.add("publish", publish, "room")
    handlers.add("publish", with_default, "other")
    handlers.add("rpc", rpc, "room")
    with pytest.raises(DuplicateHandlerError) as error:
        handlers.add("publish", with_default, "room")
    for function in (publish, with_default):
        assert f"{function.__code__.co_firstlineno} {__name__}.{function.__name__}" in str(
            error.value
        )
    assert "on_publish('room')" in str(error.value)

    async def first(event: Refresh) -> None: ...

    handlers.add("refresh", first)
    with pytest.raises(DuplicateHandlerError, match=r"on_refresh has a handler already"):
        handlers.add("refresh", first)


def test_namespaces_must_be_configured() -> None:
    """There is a line for each handler of an unknown namespace; "" is always known."""
    realtime = Realtime()
    for namespace in ("", "room", "typo"):
        realtime.on_publish(namespace)(publish)

    @realtime.on_sub_refresh("other")
    async def renew(event: SubRefresh) -> None: ...

    lines = realtime.mistakes(["", "room"])
    assert len(lines) == 2
    assert "on_publish('typo'): the configuration has no namespace 'typo'" in lines[1]
    assert "add it to channel.namespaces" in lines[0]


async def of_later(event: Publish["Later"]) -> None:
    """Handle data of a class that is defined later."""


async def of_never(event: "Publish[list['Never']]") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Handle data of a class that is not defined."""


class Later(BaseModel):
    """Data of a class that is defined after its handler."""

    next: "Later | None" = None


def test_types_of_data_must_be_defined_at_start() -> None:
    """A type may be defined after its handler; there is a line for each that is not."""
    realtime = Realtime()
    realtime.on_publish("")(of_later)
    assert realtime.mistakes([""]) == []
    adapter = realtime._handlers.publish[""].data
    assert adapter is not None
    assert adapter.validate_json('{"next": {}}') == Later(next=Later())
    realtime.on_publish("room")(of_never)
    (line,) = realtime.mistakes(["", "room"])
    assert f"{of_never.__code__.co_firstlineno} {__name__}.of_never: " in line
    assert "name 'Never' is not defined" in line


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"threads": 0}]
)
def test_no_handler_could_run_without_time_or_threads(wrong: dict[str, Any]) -> None:
    """Such a number is an error, rather than a time-out of each call."""
    with pytest.raises(ValueError, match="timeout and threads are above 0"):
        Realtime(**wrong)


def test_every_decorator_returns_the_function() -> None:
    """A handler can be called, and tested, as the function that it is."""
    realtime = Realtime()

    async def connect(event: Connect) -> None: ...
    async def refresh(event: Refresh) -> None: ...
    async def subscribe(event: Subscribe) -> None: ...
    async def sub_refresh(event: SubRefresh) -> None: ...
    async def disconnect(event: Disconnected) -> None: ...
    async def drain() -> None: ...

    assert realtime.on_connect(connect) is connect
    assert realtime.on_refresh(refresh) is refresh
    assert realtime.on_subscribe("a")(subscribe) is subscribe
    assert realtime.on_sub_refresh("a")(sub_refresh) is sub_refresh
    assert realtime.on_publish("a")(publish) is publish
    assert realtime.on_rpc("a")(rpc) is rpc
    assert realtime.on_disconnect(disconnect) is disconnect
    assert realtime.on_drain(drain) is drain
