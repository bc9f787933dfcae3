"""The handlers of an application: checked when they are added, found by event."""

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from wsfleet.application.realtime.events import (
    Connect,
    Disconnected,
    Event,
    Publish,
    Refresh,
    Rpc,
    SubRefresh,
    Subscribe,
)

E = TypeVar("E", bound=Event)

EVENTS: dict[str, type[Event]] = {
    "connect": Connect,
    "refresh": Refresh,
    "subscribe": Subscribe,
    "sub_refresh": SubRefresh,
    "publish": Publish,
    "rpc": Rpc,
    "disconnect": Disconnected,
}
"""The event of each decorator `on_...`."""
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class EventHandler(Generic[E]):
    """A function that handles one event.

    `name` is its full name. `blocking` functions run in a thread. `data` validates the event's
    data; None if it is given as bytes.
    """

    function: Callable[[E], Any]
    name: str
    blocking: bool
    data: TypeAdapter[Any] | None


class HandlerTypeError(TypeError):
    """A function that cannot handle the event: the text has its place, and the correction."""


class DuplicateHandlerError(ValueError):
    """Two functions handle one event: the text has the places of both."""


@dataclass(slots=True)
class Handlers:
    """The handlers by event.

    Those of channels are found by namespace ("" is that of channels without one), and those of
    `rpc` by method.
    """

    connect: EventHandler[Connect[Any]] | None = None
    refresh: EventHandler[Refresh] | None = None
    disconnect: EventHandler[Disconnected] | None = None
    subscribe: dict[str, EventHandler[Subscribe[Any]]] = field(default_factory=dict)
    sub_refresh: dict[str, EventHandler[SubRefresh]] = field(default_factory=dict)
    publish: dict[str, EventHandler[Publish[Any]]] = field(default_factory=dict)
    rpc: dict[str, EventHandler[Rpc[Any]]] = field(default_factory=dict)
    drain: EventHandler[Any] | None = None

    def add(self, event: str, function: Callable[..., Any], key: str | None = None) -> None:
        """Add the handler of an event: of a namespace or a method, if the event has keys.

        Raises:
            HandlerTypeError: the function cannot handle the event.
            DuplicateHandlerError: the event has a handler already.
        """
        decorator = f"on_{event}" if key is None else f"on_{event}({key!r})"
        handler = checked(event, function, decorator)
        known = getattr(self, event)
        first = known if key is None else known.get(key)
        if first is not None:
            raise DuplicateHandlerError(
                f"{place(function)}: {decorator} has a handler already, {place(first.function)}: "
                "remove one of them"
            )
        if key is None:
            setattr(self, event, handler)
        else:
            known[key] = handler

    def mistakes(self, namespaces: Iterable[str]) -> list[str]:
        """Return a line for each handler of an unknown namespace, or of data without a type."""
        return [*self._unknown_namespaces(set(namespaces)), *self._undefined_types()]

    def _unknown_namespaces(self, names: set[str]) -> list[str]:
        return [
            f"{place(handler.function)}: on_{event}({namespace!r}): the configuration has no "
            f"namespace {namespace!r}: add it to channel.namespaces, or correct the name"
            for event in ("subscribe", "sub_refresh", "publish")
            for namespace, handler in getattr(self, event).items()
            if namespace not in names
        ]

    def _undefined_types(self) -> list[str]:
        """Define the types that were defined after their handlers; return a line for each other."""
        channels_and_methods = (self.subscribe, self.publish, self.rpc)
        handlers: list[EventHandler[Any] | None] = [
            self.connect,
            *(handler for each in channels_and_methods for handler in each.values()),
        ]
        lines = []
        for handler in handlers:
            if handler is None or handler.data is None:
                continue
            module = sys.modules.get(_inner(handler.function).__module__)
            try:
                handler.data.rebuild(_types_namespace=vars(module) if module else None)
            except (PydanticUndefinedAnnotation, PydanticUserError) as error:
                lines.append(
                    f"{place(handler.function)}: pydantic cannot validate: {error.message}"
                )
        return lines


def check_key(event: str, key: object) -> None:
    """Check the namespace or the method in a decorator: without one, it gets the function.

    Raises:
        HandlerTypeError: it is not a string.
    """
    if not isinstance(key, str):
        where = f"{place(key)}: " if callable(key) else ""
        raise HandlerTypeError(f"{where}@on_{event} needs a name: @realtime.on_{event}('room')")


def checked(event: str, function: Callable[..., Any], decorator: str) -> EventHandler[Any]:
    """Return the handler that a function is.

    Raises:
        HandlerTypeError: it has not one parameter, annotated with the event's class.
    """
    if not callable(function):
        raise HandlerTypeError(f"{decorator}: {function!r} is not a function")
    where = place(function)
    data = None
    if event in EVENTS:
        data = _data_adapter(EVENTS[event], function, where, decorator)
    elif _parameters(_signature(function, where)):
        raise HandlerTypeError(f"{where}: a handler of {decorator} has no parameters")
    return EventHandler(function, where.rpartition(" ")[2], not _is_async(function), data)


def place(function: Callable[..., Any]) -> str:
    """Return file, line and full name of a function, as an editor finds it."""
    inner = _inner(function)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    name = f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    return f"{code.co_filename}:{code.co_firstlineno} {name}" if code else name


def _inner(function: Callable[..., Any]) -> Any:
    """Return the function behind wrappers and partials."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    return inner


def _data_adapter(
    kind: type[Event], function: Callable[..., Any], where: str, decorator: str
) -> TypeAdapter[Any] | None:
    """Return what validates the event's data, by the annotation; None if nothing does."""
    signature = _signature(function, where)
    parameters = _parameters(signature)
    has_data = "data" in kind.__dataclass_fields__
    wanted = f"event: {kind.__name__}" + ("[Message]" if has_data else "")
    if len(parameters) != 1 or parameters[0].kind not in _BY_POSITION:
        raise HandlerTypeError(
            f"{where}: a handler of {decorator} has one parameter, the event: "
            f"write ({wanted}) instead of {signature}"
        )
    (parameter,) = parameters
    annotation = parameter.annotation
    if (typing.get_origin(annotation) or annotation) is not kind:
        found = "no annotation" if annotation is inspect.Parameter.empty else f"{annotation!r}"
        raise HandlerTypeError(
            f"{where}: the parameter of a handler of {decorator} is annotated with its event: "
            f"write ({wanted}) instead of {found}"
        )
    (data,) = typing.get_args(annotation) or (Any,)
    if not has_data or data is bytes:
        return None
    try:
        return TypeAdapter(data)
    except PydanticUserError as error:
        raise HandlerTypeError(
            f"{where}: pydantic cannot validate {data!r}: {error.message}"
        ) from None


def _signature(function: Callable[..., Any], where: str) -> inspect.Signature:
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception as error:
        raise HandlerTypeError(
            f"{where}: its annotations cannot be read: {type(error).__name__}: {error}; import "
            "their names in the module, outside of `if TYPE_CHECKING`"
        ) from None
    return signature.replace(return_annotation=signature.empty)


def _parameters(signature: inspect.Signature) -> list[inspect.Parameter]:
    """Return the parameters that need an argument."""
    return [each for each in signature.parameters.values() if each.default is each.empty]


def _is_async(function: Callable[..., Any]) -> bool:
    call = function if inspect.isfunction(function) else type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
