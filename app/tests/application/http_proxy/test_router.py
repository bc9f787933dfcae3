"""Which proxy answers for which event, as the configuration has it."""

from typing import Any

import pytest
import yaml

from lab.waiting import settled
from tests.support.http_backend import by_path, running_backend
from wsfleet.application.http_proxy.router import ProxyRouter
from wsfleet.application.port import (
    Client,
    MethodDisabledError,
    Router,
    RpcCall,
    UnknownMethodError,
)
from wsfleet.application.routing import merge
from wsfleet.config.file import parse


def router(**config: Any) -> ProxyRouter:
    """Return the router of a configuration."""
    return ProxyRouter(parse(yaml.safe_dump(config)))


ONE = {"endpoint": "http://app/one"}
NAMED = [{"name": "named", "endpoint": "http://app/two"}]


def test_without_proxies_the_node_decides() -> None:
    """Of a method, it only says that it has none."""
    ours = router(channel={"namespaces": [{"name": "ab"}]})
    assert ours.connect is None
    assert ours.refresh is None
    assert ours.disconnected is None
    assert ours.subscribe("") is ours.publish("ab") is ours.sub_refresh("ab") is None
    assert not ours.methods
    assert merge([ours], ["ab"]) is None


def test_events_of_clients() -> None:
    """Each is switched on by itself."""
    ours = router(client={"proxy": {"connect": ONE | {"enabled": True}, "refresh": ONE}})
    assert ours.connect is not None
    assert ours.refresh is None
    ended = router(client={"proxy": {"disconnect": ONE | {"enabled": True}}})
    assert ended.disconnected is not None


def test_namespaces_of_channels() -> None:
    """Namespaces that name the same proxy share its connections."""
    on = {"subscribe_proxy_enabled": True, "publish_proxy_enabled": True}
    namespaces = [
        {"name": "ab", **on, "publish_proxy_name": "named"},
        {"name": "cd", **on, "publish_proxy_name": "named"},
        {"name": "ef", "sub_refresh_proxy_enabled": True},
    ]
    proxy = {"subscribe": ONE, "publish": ONE, "sub_refresh": ONE}
    ours = router(channel={"proxy": proxy, "namespaces": namespaces}, proxies=NAMED)
    assert ours.subscribe("") is None
    assert ours.subscribe("unknown") is None
    assert ours.subscribe("ab") is ours.subscribe("cd") is not None
    assert ours.publish("ab") is ours.publish("cd") is not None
    assert ours.publish("ab") is not ours.subscribe("ab")
    assert ours.subscribe("ef") is None
    assert ours.sub_refresh("ef") is not None
    assert merge([ours], ["ab", "cd", "ef"]) is ours


def test_methods() -> None:
    """Known namespaces without a proxy are disabled, others are unknown."""
    ours = router(
        rpc={
            "proxy": ONE,
            "namespaces": [
                {"name": "ab", "proxy_enabled": True},
                {"name": "cd", "proxy_enabled": True, "proxy_name": "named"},
                {"name": "ef"},
            ],
        },
        proxies=NAMED,
    )
    checked: Router = ours
    assert checked.rpc("ab:x") is ours.rpc("ab:y:z")
    assert ours.rpc("cd:x") is not ours.rpc("ab:x")
    assert ours.methods == {"ab:", "cd:"}
    for method in ("x", "", ":x", "ef:x"):
        with pytest.raises(MethodDisabledError):
            ours.rpc(method)
    with pytest.raises(UnknownMethodError):
        ours.rpc("xy:x")


def test_methods_without_a_boundary() -> None:
    """All methods are then without a namespace; another boundary works as `:` does."""
    none = router(rpc={"proxy": ONE, "without_namespace": {"proxy_enabled": True},
                       "namespace_boundary": ""})  # fmt: skip
    assert none.rpc("a:b") is none.rpc("")
    assert none.methods == {""}
    ab = {"name": "ab", "proxy_enabled": True}
    dots = router(rpc={"proxy": ONE, "namespaces": [ab], "namespace_boundary": "."})
    assert dots.rpc("ab.x") is not None
    with pytest.raises(MethodDisabledError):
        dots.rpc("ab:x")


def test_without_a_proxy_no_method_is_known() -> None:
    """So that a handler's unknown method is not called disabled."""
    ours = router(rpc={"namespaces": [{"name": "ab"}]})
    for method in ("x", "ab:x"):
        with pytest.raises(UnknownMethodError):
            ours.rpc(method)


async def test_ping() -> None:
    """The node itself answers, with nothing."""
    ours = router(rpc={"ping": {"enabled": True}})
    assert await ours.rpc("ping").rpc(RpcCall(Client("id"), "ping")) == b""
    assert ours.methods == {"ping"}
    assert merge([ours], []) is ours
    other = router(rpc={"ping": {"enabled": True, "method": "are:you"}})
    assert await other.rpc("are:you").rpc(RpcCall(Client("id"), "are:you")) == b""
    with pytest.raises(UnknownMethodError):
        other.rpc("ping")


async def test_closing_closes_the_connections() -> None:
    """Of every backend."""
    async with running_backend(by_path({"/one": {"result": {}}})) as backend:
        ours = router(
            rpc={"proxy": {"endpoint": f"{backend.url}/one"},
                 "without_namespace": {"proxy_enabled": True}},
        )  # fmt: skip
        await ours.rpc("m").rpc(RpcCall(Client("id"), "m"))
        await ours.close()
        await settled(lambda: backend.open == 0, "the connection is closed")
