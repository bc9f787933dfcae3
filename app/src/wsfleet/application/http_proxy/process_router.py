"""The router to an application's handlers in processes of their own, those of `wsfleet app`."""

from collections.abc import Collection
from urllib.parse import quote

from wsfleet.application.http_proxy.backend import HTTPProxy
from wsfleet.application.http_proxy.requests import CompleteBodies
from wsfleet.application.port import Backend, Router
from wsfleet.config.proxy import Proxy

MARGIN = 1.0
"""Seconds that a call may take beyond a handler's time-out, so that the handler's is the first."""


class ProcessRouter:
    """A router to the processes that run the handlers of another router, behind one Unix socket.

    It asks them for each event that the other router has a handler for. Each call has a connection
    of its own: a process that accepts it is free, neither blocked nor dead.

    `socket` is the path, `timeout` the seconds of a handler.
    """

    def __init__(self, handlers: Router, socket: str, timeout: float) -> None:
        self._handlers = handlers
        self._endpoint = f"http+unix://{quote(socket, safe='')}"
        self._timeout = timeout + MARGIN
        self._connect = self._proxy("connect")
        self._refresh = self._proxy("refresh")
        self._disconnected = self._proxy("disconnect")
        self._subscribe = self._proxy("subscribe")
        self._sub_refresh = self._proxy("sub_refresh")
        self._publish = self._proxy("publish")
        self._rpc = self._proxy("rpc")

    @property
    def connect(self) -> Backend | None:
        """The backend for connect."""
        return self._handlers.connect and self._connect

    @property
    def refresh(self) -> Backend | None:
        """The backend for refresh."""
        return self._handlers.refresh and self._refresh

    @property
    def disconnected(self) -> Backend | None:
        """The backend that is told of disconnects."""
        return self._handlers.disconnected and self._disconnected

    @property
    def methods(self) -> Collection[str]:
        """The methods that have a handler."""
        return self._handlers.methods

    def subscribe(self, namespace: str) -> Backend | None:
        """Return the backend for subscribe."""
        return self._handlers.subscribe(namespace) and self._subscribe

    def sub_refresh(self, namespace: str) -> Backend | None:
        """Return the backend for sub_refresh."""
        return self._handlers.sub_refresh(namespace) and self._sub_refresh

    def publish(self, namespace: str) -> Backend | None:
        """Return the backend for publish."""
        return self._handlers.publish(namespace) and self._publish

    def rpc(self, method: str) -> Backend:
        """Return the backend for a method.

        Raises:
            UnknownMethodError: it has no handler.
        """
        self._handlers.rpc(method)
        return self._rpc

    def _proxy(self, event: str) -> HTTPProxy:
        options = Proxy(endpoint=f"{self._endpoint}/{event}", include_connection_meta=True)
        timed = options.model_copy(update={"timeout": self._timeout})
        return HTTPProxy(timed, "", bodies=CompleteBodies, max_idle=0)
