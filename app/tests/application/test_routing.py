"""Several routers as one: every event has at most one backend."""

from collections.abc import Collection
from typing import Any, cast

import pytest

from wsfleet.application.port import (
    Backend,
    MethodDisabledError,
    Router,
    UnknownMethodError,
)
from wsfleet.application.routing import RoutingError, merge

ONE, OTHER = cast(Backend, "one"), cast(Backend, "other")


class Table:
    """A router of a test: the events that it claims by name, each with one backend."""

    def __init__(
        self,
        backend: Backend,
        claims: Collection[str] = (),
        *,
        methods: Collection[str] = (),
        disabled: Collection[str] = (),
    ) -> None:
        self._backend = backend
        self._claims = claims
        self._disabled = disabled
        self.methods = methods
        self.connect = self._of("connect")
        self.refresh = self._of("refresh")
        self.disconnected = self._of("disconnected")

    def _of(self, claim: str) -> Backend | None:
        return self._backend if claim in self._claims else None

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
        """Return the backend for a method, or for its namespace."""
        namespace, boundary, _ = method.partition(":")
        whole = namespace + boundary if boundary else ""
        if method in self.methods or whole in self.methods:
            return self._backend
        if namespace in self._disabled:
            raise MethodDisabledError
        raise UnknownMethodError


def test_without_backends_there_is_no_router() -> None:
    """The node decides alone, and asks nothing of an object that knows nothing."""
    assert merge([], ["room"]) is None
    assert merge([Table(ONE), Table(OTHER, ["publish unknown"])], ["room"]) is None


def test_one_router_is_used_as_it_is() -> None:
    """Nothing is between a node and the only router."""
    router = Table(ONE, ["connect"])
    assert merge([router], []) is router


def test_each_event_goes_to_the_router_that_claims_it() -> None:
    """Also by namespace and by method; what nobody claims has no backend."""
    merged = cast(
        Router,
        merge(
            [
                Table(ONE, ["connect", "publish room", "subscribe "], methods=["room.rename"]),
                Table(OTHER, ["refresh", "publish chat", "sub_refresh room"], methods=["shop:"]),
            ],
            ["room", "chat"],
        ),
    )
    assert (merged.connect, merged.refresh, merged.disconnected) == (ONE, OTHER, None)
    assert [merged.publish(name) for name in ("", "room", "chat")] == [None, ONE, OTHER]
    assert [merged.subscribe(name) for name in ("", "room", "chat")] == [ONE, None, None]
    assert [merged.sub_refresh(name) for name in ("", "room", "chat")] == [None, OTHER, None]
    assert (merged.rpc("room.rename"), merged.rpc("shop:buy")) == (ONE, OTHER)
    assert set(merged.methods) == {"room.rename", "shop:"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_method_without_backend_is_disabled_if_one_router_knows_its_namespace(order: int) -> None:
    """Whichever router is asked first."""
    routers = [Table(ONE, methods=["ping"]), Table(OTHER, disabled=["shop"])][::order]
    merged = merge(routers, [])
    assert merged is not None
    with pytest.raises(MethodDisabledError):
        merged.rpc("shop:buy")
    with pytest.raises(UnknownMethodError):
        merged.rpc("unknown")


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"claims": ["connect"]}, "connect has two backends"),
        ({"claims": ["disconnected"]}, "disconnected has two backends"),
        ({"claims": ["publish room"]}, "publish in the namespace 'room' has two backends"),
        ({"claims": ["subscribe "]}, "subscribe in channels without a namespace has two backends"),
        ({"methods": ["room.rename"]}, "rpc 'room.rename' has two backends"),
        ({"methods": [""]}, "rpc 'room.rename' has two backends"),
    ],
)
def test_an_event_with_two_backends_is_an_error(claims: dict[str, Any], message: str) -> None:
    """The error names the event; a method is also claimed by its whole namespace."""
    first = Table(
        ONE,
        ["connect", "disconnected", "publish room", "subscribe "],
        methods=["room.rename"],
    )
    with pytest.raises(RoutingError, match=message):
        merge([first, Table(OTHER, **claims)], ["room"])
