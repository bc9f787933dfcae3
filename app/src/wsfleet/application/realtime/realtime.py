"""`Realtime`: what an application decides for Centrifuge clients, and asks of its node."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from wsfleet.api.methods import Api
from wsfleet.application.realtime.backend import HandlerRouter
from wsfleet.application.realtime.calls import Calls, Publication, call_errors
from wsfleet.application.realtime.events import (
    Connect,
    Disconnected,
    Publish,
    Refresh,
    Rpc,
    SubRefresh,
    Subscribe,
)
from wsfleet.application.realtime.feeds import Feeds, connection_of, native, relayed
from wsfleet.application.realtime.handlers import Handlers, check_key
from wsfleet.application.realtime.leases import Lease, Leases
from wsfleet.application.realtime.listening import Listeners, to_publication
from wsfleet.application.realtime.results import Accept, Allow, Renew
from wsfleet.application.realtime.runner import Runner
from wsfleet.channels.stream import Position
from wsfleet.node.node import Node

OnConnect = TypeVar(
    "OnConnect", bound=Callable[[Connect[Any]], Awaitable[Accept | None] | Accept | None]
)
OnRefresh = TypeVar("OnRefresh", bound=Callable[[Refresh], Awaitable[Renew | None] | Renew | None])
OnSubscribe = TypeVar(
    "OnSubscribe", bound=Callable[[Subscribe[Any]], Awaitable[Allow | None] | Allow | None]
)
OnSubRefresh = TypeVar(
    "OnSubRefresh", bound=Callable[[SubRefresh], Awaitable[Renew | None] | Renew | None]
)
OnPublish = TypeVar("OnPublish", bound=Callable[[Publish[Any]], object])
OnRpc = TypeVar("OnRpc", bound=Callable[[Rpc[Any]], object])
OnDisconnect = TypeVar("OnDisconnect", bound=Callable[[Disconnected], Awaitable[None] | None])
OnDrain = TypeVar("OnDrain", bound=Callable[[], Awaitable[None] | None])
R = TypeVar("R")

TIMEOUT = 5.0
"""Seconds for a handler: below the 8 s in which a client must answer a ping."""
THREADS = 40
"""Threads for handlers: as many as Starlette has for routes."""


class Serving:
    """A node that serves the application."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.loop = asyncio.get_running_loop()
        self.api = Api(node)
        self.feeds = Feeds(node)
        self.listeners = Listeners(node, node.settings.outbox_limit)
        self.leases = Leases(node.store)


class Realtime(Calls):
    """An ASGI application around another one, with handlers and calls for Centrifuge clients.

    All requests and WebSockets go to `app`; without one, they are answered with 404. A handler is
    a function with one argument, the event; `async def` runs in the event loop, `def` in one of
    `threads` threads. A handler has `timeout` seconds. A wrong annotation, or a second handler for
    an event, raises TypeError or ValueError where the handler is defined.

    Raises:
        ValueError: `timeout` or `threads` is not above 0.
    """

    def __init__(
        self, app: ASGIApp | None = None, *, timeout: float = TIMEOUT, threads: int = THREADS
    ) -> None:
        if not timeout > 0 or not threads > 0:
            raise ValueError(
                f"timeout and threads are above 0: timeout={timeout}, threads={threads} are not"
            )
        self.app: ASGIApp = app or Starlette()
        self.timeout = timeout
        self._handlers = Handlers()
        self._runner = Runner(timeout, threads)
        self._servings: list[Serving] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application."""
        await self.app(scope, receive, send)

    # Handlers.

    def on_connect(self, handler: OnConnect) -> OnConnect:
        """Identify each client that connects without a token.

        The handler returns `Accept`; None means that the client shows no credentials.
        """
        self._handlers.add("connect", handler)
        return handler

    def on_refresh(self, handler: OnRefresh) -> OnRefresh:
        """Extend a connection that expires; without a result, it ends."""
        self._handlers.add("refresh", handler)
        return handler

    def on_subscribe(self, namespace: str) -> Callable[[OnSubscribe], OnSubscribe]:
        """Decide which client may subscribe to a channel of a namespace; "" is without one."""
        return self._adder("subscribe", namespace)

    def on_sub_refresh(self, namespace: str) -> Callable[[OnSubRefresh], OnSubRefresh]:
        """Extend a subscription that expires; without a result, it ends."""
        return self._adder("sub_refresh", namespace)

    def on_publish(self, namespace: str) -> Callable[[OnPublish], OnPublish]:
        """Decide what a client publishes in a channel of a namespace; "" is without one.

        The result is published: a value, or `Published` with a value and options. None publishes
        the data as it came.
        """
        return self._adder("publish", namespace)

    def on_rpc(self, method: str) -> Callable[[OnRpc], OnRpc]:
        """Answer calls of a method with the result."""
        return self._adder("rpc", method)

    def on_disconnect(self, handler: OnDisconnect) -> OnDisconnect:
        """Take note of connections that have ended: of each at least once, while Redis lives."""
        self._handlers.add("disconnect", handler)
        return handler

    def on_drain(self, handler: OnDrain) -> OnDrain:
        """Prepare for a drain of this process: the handler runs before clients are sent away.

        It has no argument, and half of the node's `drain_timeout`.
        """
        self._handlers.add("drain", handler)
        return handler

    def _adder(self, event: str, key: str) -> Callable[[R], R]:
        check_key(event, key)

        def add(handler: R) -> R:
            self._handlers.add(event, handler, key)  # type: ignore[arg-type]  # checked there
            return handler

        return add

    # For WebSockets and tasks of the application.

    @contextlib.asynccontextmanager
    async def feed(self, websocket: WebSocket, *channels: str) -> AsyncIterator[None]:
        """Send the data of all publications in channels to a WebSocket, inside of the block.

        They are text messages; data that is not text is a binary message. The node writes them,
        and does not repeat what it missed while Redis was unavailable.

        Raises:
            CallError: a channel does not exist, or Redis is unavailable.
            RuntimeError: the WebSocket is not accepted.
        """
        own = native(websocket)
        serving = self._serving_of(own.node if own is not None else None)
        async with contextlib.AsyncExitStack() as stack:
            with call_errors():
                await stack.enter_async_context(
                    relayed(serving.listeners, websocket, channels)
                    if own is None
                    else serving.feeds.feed(connection_of(own), channels)
                )
            yield

    async def listen(
        self, channel: str, *, since: Position | None = None
    ) -> AsyncGenerator[Publication, None]:
        """Yield the publications of a channel, in order: those after `since`, then new ones.

        What is published while Redis is unavailable is yielded afterwards, if the channel has a
        history.

        Raises:
            GapError: publications are lost.
            CallError: the channel does not exist, or has no history for `since`, or Redis is
                unavailable.
        """
        async with self._serving_of(None).listeners.open(channel, since) as listener:
            while True:
                yield to_publication(*await listener.next())

    @contextlib.asynccontextmanager
    async def lease(self, name: str, ttl: float = 10.0) -> AsyncIterator[Lease]:
        """Hold a lease inside of the block, as the only one in the cluster; wait for it before.

        It is renewed in the background. If the process dies, it expires after `ttl` seconds.

        Raises:
            ValueError: `ttl` is not above 0.
        """
        async with self._serving_of(None).leases.hold(name, ttl) as lease:
            yield lease

    @contextlib.asynccontextmanager
    async def hold(self, websocket: WebSocket) -> AsyncIterator[None]:
        """Let a drain wait for this WebSocket until the block ends, or `drain_timeout` is over.

        Raises:
            RuntimeError: the WebSocket is not accepted.
        """
        own = native(websocket)
        if own is None:
            yield
            return
        connection = connection_of(own)
        connection.holds += 1
        try:
            yield
        finally:
            connection.holds -= 1

    def from_thread(self, call: Coroutine[Any, Any, R]) -> R:
        """Run a call in the node's event loop, and wait for its result, in another thread.

        Raises:
            RuntimeError: this is the thread of an event loop: await the call.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loop = self._serving_of(None).loop
            return asyncio.run_coroutine_threadsafe(call, loop).result()
        call.close()
        raise RuntimeError("from_thread is for threads: await the call")

    # For the node.

    @property
    def router(self) -> HandlerRouter:
        """The handlers, as the node asks for them."""
        return HandlerRouter(self._handlers, self._runner)

    def mistakes(self, namespaces: Iterable[str]) -> list[str]:
        """Return a line for each handler of a namespace that the configuration does not have.

        And for each one whose data have an undefined type.
        """
        return self._handlers.mistakes(namespaces)

    def attach(self, node: Node) -> None:
        """Serve from now on by a node, which begins to run."""
        serving = Serving(node)
        self._servings.append(serving)
        node.dispatcher.add(serving.feeds)
        node.dispatcher.add(serving.listeners)
        if (handler := self._handlers.drain) is not None:
            node.drain.before.append(lambda: self._runner.call(handler))

    async def finish(self) -> None:
        """Wait for handlers in threads, at most for `timeout`: the process is about to exit."""
        await self._runner.finish()

    def detach(self, node: Node) -> None:
        """End: the node has stopped."""
        self._servings = [serving for serving in self._servings if serving.node is not node]

    def _calls(self) -> Api:
        return self._serving_of(None).api

    def _serving_of(self, node: Node | None) -> Serving:
        for serving in reversed(self._servings):
            if node in (None, serving.node):
                return serving
        raise RuntimeError(
            "no node serves this Realtime: run `wsfleet serve MODULE:NAME` with the name of the "
            "Realtime, and call it after the application's start-up has begun; in tests, use "
            "wsfleet.testing"
        )
