"""The router of the HTTP proxies in the configuration."""

from collections.abc import Iterator
from typing import cast

from wsfleet.application.http_proxy.backend import HTTPProxy
from wsfleet.application.port import (
    Backend,
    MethodDisabledError,
    RpcCall,
    UnknownMethodError,
)
from wsfleet.config.proxy import EventProxy, Proxy
from wsfleet.config.schema import ChannelEvent, Config


class ProxyRouter:
    """A router to the backends of the configuration: `client.proxy`, `channel.proxy` and `rpc`.

    Events that have the same proxy share its connections.

    Raises:
        ConfigError: a certificate or key of a proxy is missing or invalid.
    """

    def __init__(self, config: Config) -> None:
        self._places = {id(proxy): place for place, proxy in _places(config)}
        self._backends: dict[int, HTTPProxy] = {}
        self._config = config
        events = config.client.proxy
        self.connect = self._of_client(events.connect)
        self.refresh = self._of_client(events.refresh)
        self.disconnected = self._of_client(events.disconnect)
        self._subscribe = self._of_channels("subscribe")
        self._sub_refresh = self._of_channels("sub_refresh")
        self._publish = self._of_channels("publish")
        self._rpc = {
            "": self._backend(config.rpc_proxy(config.rpc.without_namespace)),
            **{each.name: self._backend(config.rpc_proxy(each)) for each in config.rpc.namespaces},
        }
        boundary = config.rpc.namespace_boundary
        self.methods = frozenset(
            f"{name}{boundary}" if name else ""
            for name, backend in self._rpc.items()
            if backend is not None
        )
        if config.rpc.ping.enabled:
            self.methods |= {config.rpc.ping.method}

    def subscribe(self, namespace: str) -> Backend | None:
        """Return the backend for subscribe."""
        return self._subscribe.get(namespace)

    def sub_refresh(self, namespace: str) -> Backend | None:
        """Return the backend for sub_refresh."""
        return self._sub_refresh.get(namespace)

    def publish(self, namespace: str) -> Backend | None:
        """Return the backend for publish."""
        return self._publish.get(namespace)

    def rpc(self, method: str) -> Backend:
        """Return the backend for a method.

        Raises:
            UnknownMethodError: its namespace is not configured, or none has a proxy.
            MethodDisabledError: its namespace has no proxy, and others have.
        """
        rpc = self._config.rpc
        if rpc.ping.enabled and method == rpc.ping.method:
            return _PING
        boundary = rpc.namespace_boundary
        namespace = method.partition(boundary)[0] if boundary and boundary in method else ""
        if namespace not in self._rpc or not any(self._rpc.values()):
            raise UnknownMethodError
        backend = self._rpc[namespace]
        if backend is None:
            raise MethodDisabledError
        return backend

    async def close(self) -> None:
        """Close the connections to all backends, each after its call."""
        for backend in self._backends.values():
            backend.close()

    def _of_client(self, proxy: EventProxy) -> HTTPProxy | None:
        return self._backend(proxy if proxy.enabled else None)

    def _of_channels(self, event: ChannelEvent) -> dict[str, HTTPProxy | None]:
        config = self._config
        return {
            name: self._backend(config.channel_proxy(event, options))
            for name, options in config.channel.options()
        }

    def _backend(self, proxy: Proxy | None) -> HTTPProxy | None:
        if proxy is None:
            return None
        if id(proxy) not in self._backends:
            self._backends[id(proxy)] = HTTPProxy(proxy, self._places[id(proxy)])
        return self._backends[id(proxy)]


class _Ping:
    """The node's own answer to `rpc.ping`."""

    async def rpc(self, call: RpcCall) -> bytes:
        return b""


_PING = cast(Backend, _Ping())  # of a method's backend, only `rpc` is called


def _places(config: Config) -> Iterator[tuple[str, Proxy]]:
    """Yield the place in the configuration of each proxy, and the proxy."""
    for event in ("connect", "refresh", "disconnect"):
        yield f"client.proxy.{event}", getattr(config.client.proxy, event)
    for event in ("subscribe", "publish", "sub_refresh"):
        yield f"channel.proxy.{event}", getattr(config.channel.proxy, event)
    yield "rpc.proxy", config.rpc.proxy
    for i, proxy in enumerate(config.proxies):
        yield f"proxies[{i}]", proxy
