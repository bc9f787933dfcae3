"""The backends that run an application's handlers, and the router that finds them."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from pydantic import ValidationError

from wsfleet.api.requests import PublicationRequest
from wsfleet.application import port
from wsfleet.application.port import BackendError, Error, UnknownMethodError
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
from wsfleet.application.realtime.handlers import EventHandler, Handlers
from wsfleet.application.realtime.results import Accept, Allow, Renew, encode
from wsfleet.application.realtime.runner import Runner
from wsfleet.protocol import strict_json

INVALID_DATA = 422
"""The code of the error for data that is not valid, as in HTTP (RFC 9110, section 15.5.21)."""
MAX_MESSAGE = 250
"""Characters of that error's message: it may name keys that the client has chosen."""

R = TypeVar("R")
T = TypeVar("T")


class HandlerBackend:
    """A `port.Backend` that runs one handler: of its methods, that of the handler's event works.

    Data that is not valid is refused with error 422, and does not reach the handler.
    """

    def __init__(self, handler: EventHandler[Any], runner: Runner) -> None:
        self._handler = handler
        self._runner = runner

    async def connect(self, call: port.ConnectCall) -> port.Connected | None:
        """Identify a client; return None if the handler does."""
        event = Connect(
            client=call.client,
            data=self._data(call.client, call.data),
            name=call.name,
            version=call.version,
            channels=call.channels,
        )
        result = await self._run(event, Accept)
        if result is None:
            return None
        return self._encoded(lambda: result.answer(opaque=_takes_opaque(call.client)))

    async def refresh(self, call: port.RefreshCall) -> port.Renewed:
        """Extend a connection; let it expire if the handler returns None."""
        return await self._renew(Refresh(client=call.client))

    async def subscribe(self, call: port.SubscribeCall) -> port.Subscribed:
        """Let a client subscribe."""
        event = Subscribe(
            client=call.client,
            channel=call.channel,
            name=call.name,
            data=self._data(call.client, call.data),
        )
        result = await self._run(event, Allow)
        if result is None:
            return port.Subscribed()
        return self._encoded(lambda: result.answer(opaque=_takes_opaque(call.client)))

    async def sub_refresh(self, call: port.SubRefreshCall) -> port.Renewed:
        """Extend a subscription; let it expire if the handler returns None."""
        return await self._renew(
            SubRefresh(client=call.client, channel=call.channel, name=call.name)
        )

    async def publish(self, call: port.PublishCall) -> port.Published:
        """Let a client publish what the handler returns; what came, if that is None."""
        event = Publish(
            client=call.client,
            channel=call.channel,
            name=call.name,
            data=self._data(call.client, call.data),
        )
        result = await self._runner.run(self._handler, event)
        if result is None:
            return port.Published(call.data)
        if not isinstance(result, port.Published):
            return port.Published(self._encoded(lambda: _data(result)))
        return self._encoded(lambda: _published(result))

    async def rpc(self, call: port.RpcCall) -> bytes:
        """Answer a call."""
        event = Rpc(client=call.client, method=call.method, data=self._data(call.client, call.data))
        result = await self._runner.run(self._handler, event)
        return self._encoded(lambda: encode(result, opaque=_takes_opaque(call.client)))

    async def disconnected(self, call: port.DisconnectedCall) -> None:
        """Call the handler."""
        await self._runner.run(
            self._handler, Disconnected(client=call.client, code=call.code, reason=call.reason)
        )

    async def _renew(self, event: Event) -> port.Renewed:
        result = await self._run(event, Renew)
        return port.Renewed(expired=True) if result is None else self._encoded(result.answer)

    async def _run(self, event: Event, kind: type[R]) -> R | None:
        result = await self._runner.run(self._handler, event)
        if result is not None and not isinstance(result, kind):
            raise self._invalid(
                f"returned {result!r:.200}, which is neither {kind.__name__} nor None"
            )
        return result

    def _data(self, client: port.Client, data: bytes) -> Any:
        """Return the event's data; data that is missing is null."""
        adapter = self._handler.data
        if adapter is None:
            return data
        if data and _takes_opaque(client) and not strict_json.is_json(data):  # pydantic takes NaN
            raise Error(INVALID_DATA, "Invalid JSON")
        try:
            return adapter.validate_json(data or b"null")
        except ValidationError as error:
            raise Error(INVALID_DATA, first_message(error)) from None

    def _encoded(self, encoded: Callable[[], T]) -> T:
        """Return the answer that a result is; one that is none is a failure of the handler."""
        try:
            return encoded()
        except Exception as error:  # pydantic's, and those of a model's own serializers
            raise self._invalid(f"returned what is not valid: {error}") from error

    def _invalid(self, what: str) -> BackendError:
        return BackendError(f"{self._handler.name} {what}", reason="invalid")


def _takes_opaque(client: port.Client) -> bool:
    """Whether a client takes data that are not JSON."""
    return client.encoding != "json"


def _data(result: object) -> bytes:
    """Return what is published.

    Raises:
        ValueError: the result has no JSON form, or is empty.
    """
    if not (data := encode(result)):
        raise ValueError("data is missing: return None to publish what came")
    return data


def _published(result: port.Published[Any]) -> port.Published[bytes]:
    """Return a result with its data as JSON; its options are those of the server API's publish.

    Raises:
        ValueError, ChannelError: the data have no JSON form, or an option is invalid.
    """
    options: dict[str, Any] = {
        "skip_history": result.skip_history,
        "tags": dict(result.tags),
        "idempotency_key": result.idempotency_key,
        "version": result.version,
        "version_epoch": result.version_epoch,
    }
    data = _data(result.data)
    msgspec.convert({"data": Raw(data), **options}, PublicationRequest).payload()
    msgspec.msgpack.encode(options)  # raises for text without UTF-8, which `convert` takes
    return port.Published(data, **options)


def first_message(error: ValidationError) -> str:
    """Return pydantic's first message, after the path of the value that is not valid."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    text = f"{where}: {first['msg']}" if where else first["msg"]
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


class HandlerRouter:
    """The router of an application's handlers; its methods are those of `port.Router`."""

    def __init__(self, handlers: Handlers, runner: Runner) -> None:
        self._handlers = handlers
        self._runner = runner

    @property
    def connect(self) -> HandlerBackend | None:
        """The backend for connect."""
        return self._backend(self._handlers.connect)

    @property
    def refresh(self) -> HandlerBackend | None:
        """The backend for refresh."""
        return self._backend(self._handlers.refresh)

    @property
    def disconnected(self) -> HandlerBackend | None:
        """The backend that is told of disconnects."""
        return self._backend(self._handlers.disconnect)

    @property
    def methods(self) -> Collection[str]:
        """The methods that have a handler."""
        return self._handlers.rpc.keys()

    def subscribe(self, namespace: str) -> HandlerBackend | None:
        """Return the backend for subscribe."""
        return self._backend(self._handlers.subscribe.get(namespace))

    def sub_refresh(self, namespace: str) -> HandlerBackend | None:
        """Return the backend for sub_refresh."""
        return self._backend(self._handlers.sub_refresh.get(namespace))

    def publish(self, namespace: str) -> HandlerBackend | None:
        """Return the backend for publish."""
        return self._backend(self._handlers.publish.get(namespace))

    def rpc(self, method: str) -> HandlerBackend:
        """Return the backend for a method.

        Raises:
            UnknownMethodError: it has no handler.
        """
        handler = self._handlers.rpc.get(method)
        if handler is None:
            raise UnknownMethodError
        return HandlerBackend(handler, self._runner)

    def _backend(self, handler: EventHandler[Any] | None) -> HandlerBackend | None:
        return None if handler is None else HandlerBackend(handler, self._runner)
