"""One router for all backends of a node: the handlers of `Realtime`, and the HTTP proxies."""

from collections.abc import Iterable, Iterator, Sequence

from wsfleet.application.measured import prepare
from wsfleet.application.port import (
    Backend,
    MethodDisabledError,
    Router,
    UnknownMethodError,
)
from wsfleet.telemetry.metrics import Metrics


class RoutingError(Exception):
    """Two backends claim the same events; the text has a line for each event."""


class MergedRouter:
    """A router over others, which claim different events: see `merge`."""

    def __init__(self, routers: Sequence[Router], namespaces: Sequence[str]) -> None:
        self._routers = routers
        self.methods = frozenset(name for each in routers for name in each.methods)
        self.connect = _first(each.connect for each in routers)
        self.refresh = _first(each.refresh for each in routers)
        self.disconnected = _first(each.disconnected for each in routers)
        self._subscribe = {
            name: _first(each.subscribe(name) for each in routers) for name in namespaces
        }
        self._sub_refresh = {
            name: _first(each.sub_refresh(name) for each in routers) for name in namespaces
        }
        self._publish = {
            name: _first(each.publish(name) for each in routers) for name in namespaces
        }

    def subscribe(self, namespace: str) -> Backend | None:
        """Return the backend for subscribe."""
        return self._subscribe[namespace]

    def sub_refresh(self, namespace: str) -> Backend | None:
        """Return the backend for sub_refresh."""
        return self._sub_refresh[namespace]

    def publish(self, namespace: str) -> Backend | None:
        """Return the backend for publish."""
        return self._publish[namespace]

    def rpc(self, method: str) -> Backend:
        """Return the backend for a method.

        Raises:
            MethodDisabledError: a router knows the method's namespace, and no router has a backend.
            UnknownMethodError: no router knows the method.
        """
        refusal: Exception = UnknownMethodError()
        for router in self._routers:
            try:
                return router.rpc(method)
            except UnknownMethodError:
                pass
            except MethodDisabledError as disabled:
                refusal = disabled
        raise refusal


def merge(routers: Sequence[Router], namespaces: Iterable[str]) -> Router | None:
    """Return one router for all; None if none of them has a backend.

    `namespaces` are those of the configuration; "", the channels without one, is added.

    Raises:
        RoutingError: two routers have a backend for the same event.
    """
    names = list(dict.fromkeys(["", *namespaces]))
    if not any(router.methods or _claims(router, names) for router in routers):
        return None
    if twice := sorted(_claimed_twice(routers, names)):
        raise RoutingError(
            "\n".join(
                f"{event} has two backends: remove its handler, or its proxy in the configuration"
                for event in twice
            )
        )
    return routers[0] if len(routers) == 1 else MergedRouter(routers, names)


def _first(found: Iterable[Backend | None]) -> Backend | None:
    return next((each for each in found if each is not None), None)


def _claimed_twice(routers: Sequence[Router], namespaces: Sequence[str]) -> set[str]:
    claims = [claim for router in routers for claim in _claims(router, namespaces)]
    twice = {claim for claim in claims if claims.count(claim) > 1}
    for method in {name for router in routers for name in router.methods}:
        if sum(_has(router, method) for router in routers) > 1:
            twice.add(f"rpc {method!r}")
    return twice


def _claims(router: Router, namespaces: Sequence[str]) -> list[str]:
    """Return the events that a router has a backend for, apart from its methods, as text."""
    return [
        event
        if namespace is None
        else f"{event} in the namespace {namespace!r}"
        if namespace
        else f"{event} in channels without a namespace"
        for event, namespace in _events(router, namespaces)
    ]


def _events(router: Router, namespaces: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the events that a router has a backend for, apart from its methods.

    An event has its namespace with it, and None if it is not in a channel.
    """
    for event in ("connect", "refresh", "disconnected"):
        if getattr(router, event) is not None:
            yield event, None
    names = list(namespaces)
    for event in ("subscribe", "sub_refresh", "publish"):
        for name in names:
            if getattr(router, event)(name) is not None:
                yield event, name


def _has(router: Router, method: str) -> bool:
    try:
        router.rpc(method)
    except (UnknownMethodError, MethodDisabledError):
        return False
    return True


def method_label(methods: Iterable[str], method: str) -> str:
    """Return the label of a method in the metrics: one of `methods`, as `Router.methods` has them.

    A method of a namespace without its own entry has the namespace's.
    """
    if method in methods:
        return method
    namespaces = (name for name in methods if name and not name[-1].isalnum())
    return next((name for name in namespaces if method.startswith(name)), "")


def count_from_start(metrics: Metrics, router: Router, namespaces: Iterable[str]) -> None:
    """Begin the counts of all events that have a backend at 0."""
    for event, namespace in _events(router, namespaces):
        prepare(metrics, event, namespace or "")
    for method in router.methods:
        prepare(metrics, "rpc", method)
