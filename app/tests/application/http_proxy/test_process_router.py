"""The router to handlers in processes of their own: the events are those of the handlers."""

import pytest

from tests.support.backend import FakeBackend
from wsfleet.application.http_proxy.process_router import ProcessRouter
from wsfleet.application.port import Router, UnknownMethodError
from wsfleet.application.routing import merge


def router(*events: str) -> ProcessRouter:
    """Return the router to processes with handlers for these events."""
    return ProcessRouter(FakeBackend(dict.fromkeys(events)).router, "/run/app.sock", 5.0)


def test_each_event_with_a_handler_has_a_backend() -> None:
    """Events without one are the node's; a namespace, and a method, have their own."""
    ours: Router = router(
        "connect",
        "refresh",
        "disconnected",
        "subscribe ab",
        "sub_refresh ab",
        "publish cd",
        "rpc m",
    )
    assert None not in (ours.connect, ours.refresh, ours.disconnected)
    assert None not in (ours.subscribe("ab"), ours.sub_refresh("ab"), ours.publish("cd"))
    assert ours.subscribe("cd") is ours.sub_refresh("cd") is ours.publish("ab") is None
    assert (list(ours.methods), ours.rpc("m") is not None) == (["m"], True)
    with pytest.raises(UnknownMethodError):
        ours.rpc("other")
    other: Router = router("publish ab")
    assert other.connect is other.refresh is other.disconnected is None


def test_without_handlers_there_is_nothing_to_ask() -> None:
    """The node then has no application."""
    assert merge([router()], ["ab"]) is None
