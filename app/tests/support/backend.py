"""A backend of the application, and its router, as a test wants them."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from lab.waiting import settled
from tests.support.nodes import RunningNode
from tests.support.tokens import API_KEY, SECRET
from wsfleet.application.port import (
    Backend,
    BackendError,
    ConnectCall,
    Connected,
    DisconnectedCall,
    MethodDisabledError,
    PublishCall,
    Published,
    RefreshCall,
    Renewed,
    RpcCall,
    SubRefreshCall,
    SubscribeCall,
    Subscribed,
    UnknownMethodError,
)

CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  user_connection_limit: 2
http_api: {{key: "{API_KEY}"}}
channel:
  without_namespace: {{allow_subscribe_for_client: true, allow_publish_for_client: true}}
  namespaces:
    - name: room
      presence: true
      history_size: 10
      history_ttl: 300s
      allow_user_limited_channels: true
    - name: open
      allow_subscribe_for_client: true
      allow_publish_for_client: true
"""
"""A configuration with channels of several kinds."""


class FakeBackend:
    """A backend that a test scripts; `router` has it for each event in `answers`.

    An event is `connect`, `refresh` or `disconnected`; `subscribe NAMESPACE` and so on, with "" for
    channels without one; `rpc METHOD`. Its answer is a value, an exception to raise, or a function
    of the call. `calls` are those that began, by event. `disabled` are namespaces of methods.
    """

    def __init__(self, answers: dict[str, Any], *, disabled: Collection[str] = ()) -> None:
        self.answers = answers
        self.calls: dict[str, list[Any]] = {}
        self.running = 0
        self.most_running = 0
        self._held: dict[str, asyncio.Event] = {}
        self.disabled = disabled
        self.router = FakeRouter(self)

    # What a test does.

    def hold(self, event: str) -> None:
        """Let calls of an event wait."""
        self._held[event] = asyncio.Event()

    def release(self, event: str) -> None:
        """Let calls of an event go on."""
        self._held.pop(event).set()

    async def called(self, event: str, count: int = 1) -> Any:
        """Wait until an event was called so often; return the last call."""
        await settled(lambda: len(self.calls.get(event, [])) >= count, f"{count} calls of {event}")
        return self.calls[event][-1]

    async def answer(self, event: str, call: Any) -> Any:
        """Note a call, wait while its event is held, and give its answer."""
        self.calls.setdefault(event, []).append(call)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if (held := self._held.get(event)) is not None:
                await held.wait()
            answer = self.answers[event]
            answer = answer(call) if callable(answer) else answer
            answer = await answer if isinstance(answer, Awaitable) else answer
        finally:
            self.running -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeRouter:
    """The router of a `FakeBackend`."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self.calls = _Calls(backend)

    def _of(self, event: str) -> Backend | None:
        return self.calls if event in self._backend.answers else None

    @property
    def connect(self) -> Backend | None:
        """The backend for connect."""
        return self._of("connect")

    @property
    def refresh(self) -> Backend | None:
        """The backend for refresh."""
        return self._of("refresh")

    @property
    def disconnected(self) -> Backend | None:
        """The backend for disconnected."""
        return self._of("disconnected")

    @property
    def methods(self) -> Collection[str]:
        """The methods that have an answer."""
        names = (event for event in self._backend.answers if event.startswith("rpc "))
        return [name.removeprefix("rpc ") for name in names]

    def subscribe(self, namespace: str) -> Backend | None:
        """Return the backend for subscribe."""
        return self._of(f"subscribe {namespace}")

    def sub_refresh(self, namespace: str) -> Backend | None:
        """Return the backend for sub_refresh."""
        return self._of(f"sub_refresh {namespace}")

    def publish(self, namespace: str) -> Backend | None:
        """Return the backend for publish."""
        return self._of(f"publish {namespace}")

    def rpc(self, method: str) -> Backend:
        """Return the backend for a method."""
        if (backend := self._of(f"rpc {method}")) is not None:
            return backend
        if method.partition(":")[0] in self._backend.disabled:
            raise MethodDisabledError
        raise UnknownMethodError


class _Calls:
    """The methods of a backend; the answers are those of a `FakeBackend`."""

    def __init__(self, backend: FakeBackend) -> None:
        self._answer = backend.answer

    async def connect(self, call: ConnectCall) -> Connected | None:
        answer: Connected | None = await self._answer("connect", call)
        return answer

    async def refresh(self, call: RefreshCall) -> Renewed:
        answer: Renewed = await self._answer("refresh", call)
        return answer

    async def subscribe(self, call: SubscribeCall) -> Subscribed:
        answer: Subscribed = await self._answer(f"subscribe {_namespace(call.channel)}", call)
        return answer

    async def sub_refresh(self, call: SubRefreshCall) -> Renewed:
        answer: Renewed = await self._answer(f"sub_refresh {_namespace(call.channel)}", call)
        return answer

    async def publish(self, call: PublishCall) -> Published:
        answer: Published = await self._answer(f"publish {_namespace(call.channel)}", call)
        return answer

    async def rpc(self, call: RpcCall) -> bytes:
        answer: bytes = await self._answer(f"rpc {call.method}", call)
        return answer

    async def disconnected(self, call: DisconnectedCall) -> None:
        await self._answer("disconnected", call)


def _namespace(channel: str) -> str:
    namespace, boundary, _ = channel.partition(":")
    return namespace if boundary else ""


FAILED = BackendError("the test wants it to fail")

StartBackend = Callable[..., Awaitable[tuple[RunningNode, FakeBackend]]]
"""Starts a node with a backend: its answers, replacements in `CONFIG`, and settings."""
