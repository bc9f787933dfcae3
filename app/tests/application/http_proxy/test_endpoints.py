"""Backends served as endpoints: a proxy on one side, a router on the other."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs

from lab.waiting import settled
from tests.support.backend import FakeBackend
from wsfleet.application.http_proxy.backend import HTTPProxy
from wsfleet.application.http_proxy.endpoints import MAX_REQUEST, ProxyEndpoints
from wsfleet.application.port import (
    BackendError,
    Client,
    ConnectCall,
    Connected,
    Disconnect,
    DisconnectedCall,
    Error,
    PublishCall,
    Published,
    RefreshCall,
    Renewed,
    RpcCall,
    SubRefreshCall,
    SubscribeCall,
    Subscribed,
)
from wsfleet.auth.tokens import Grant
from wsfleet.channels.permissions import Channels
from wsfleet.config.proxy import Proxy
from wsfleet.config.schema import ChannelConfig

CHANNELS = Channels(ChannelConfig.model_validate({"namespaces": [{"name": "room"}]}))
CLIENT = Client("id", user="7", meta=b'{"a": 1}', headers={"cookie": "session=1"})
Served = Callable[[str], HTTPProxy]


@pytest.fixture
def fake() -> FakeBackend:
    """A backend; a test gives the answers."""
    return FakeBackend({})


async def no_lifespan(scope: Any, receive: Any, send: Any) -> None:
    """Support nothing."""
    raise RuntimeError


@pytest.fixture
async def served(fake: FakeBackend, tmp_path: Path) -> AsyncIterator[Served]:
    """Return a proxy of an event, asked of the backend over a unix socket."""
    path = str(tmp_path / "app.sock")
    app: Any = ProxyEndpoints(fake.router, CHANNELS, no_lifespan)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_config=None))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        task = asyncio.create_task(server._serve(sockets=[listening]))
        await settled(lambda: server.started, "the server has started")
        proxies: list[HTTPProxy] = []

        def proxy(event: str) -> HTTPProxy:
            options = {
                "endpoint": f"http+unix://{path.replace('/', '%2F')}/{event}",
                "http_headers": ["Cookie"],
                "include_connection_meta": True,
                "timeout": "5s",
            }
            proxies.append(HTTPProxy(Proxy.model_validate(options), "proxy"))
            return proxies[-1]

        yield proxy
        for each in proxies:
            each.close()
        server.should_exit = True
        await task


async def test_every_event_arrives_as_it_was(fake: FakeBackend, served: Served) -> None:
    """The call that the backend gets is the node's, and the node gets the backend's answer."""
    connected = Connected(
        "7", 9, b"1", b"{}", b"2", {"room:1": Grant(b"3", None, {"presence": True})}
    )
    answers: dict[str, Any] = {
        "connect": connected,
        "refresh": Renewed(expire_at=9),
        "subscribe room": Subscribed(Grant(b"1"), 5),
        "sub_refresh room": Renewed(expired=True),
        "publish room": Published(b'"other"', tags={"k": "v"}),
        "rpc m": b"\xff",
        "disconnected": None,
    }  # fmt: skip
    fake.answers.update(answers)
    connect = ConnectCall(CLIENT, b"{}", "n", "v", ("a",))
    assert await served("connect").connect(connect) == connected
    assert await served("refresh").refresh(RefreshCall(CLIENT)) == answers["refresh"]
    subscribe = SubscribeCall(CLIENT, "room:1", "1", b"0")
    assert await served("subscribe").subscribe(subscribe) == answers["subscribe room"]
    renew = SubRefreshCall(CLIENT, "room:1", "1")
    assert await served("sub_refresh").sub_refresh(renew) == answers["sub_refresh room"]
    publish = PublishCall(CLIENT, "room:1", "1", b"{}")
    assert await served("publish").publish(publish) == answers["publish room"]
    assert await served("rpc").rpc(RpcCall(CLIENT, "m", b"1")) == b"\xff"
    await served("disconnect").disconnected(DisconnectedCall(CLIENT, 3001, "shutdown"))

    (call,) = fake.calls["connect"]
    assert (call.data, call.name, call.version, call.channels) == (b"{}", "n", "v", ("a",))
    assert call.client.cookies == {"session": "1"}
    (call,) = fake.calls["publish room"]
    assert (call.channel, call.name, call.data) == ("room:1", "1", b"{}")
    assert (call.client.id, call.client.user, call.client.meta) == ("id", "7", b'{"a": 1}')
    (call,) = fake.calls["disconnected"]
    assert (call.code, call.reason) == (3001, "shutdown")


async def test_refusals_and_failures(fake: FakeBackend, served: Served) -> None:
    """Refusals arrive; any other exception is a failure, whose text stays in the process."""
    rpc = served("rpc").rpc
    fake.answers.update(
        {
            "rpc error": Error(422, "no", temporary=True),
            "rpc disconnect": Disconnect(4501, "sign in"),
            "rpc failure": BackendError("secret"),
            "rpc bug": ZeroDivisionError("secret"),
        }
    )
    with pytest.raises(Error, match="422: no") as error:
        await rpc(RpcCall(CLIENT, "error"))
    assert error.value.temporary
    with pytest.raises(Disconnect, match="4501: sign in"):
        await rpc(RpcCall(CLIENT, "disconnect"))
    for method in ("failure", "bug"):
        with pytest.raises(BackendError, match="status 500") as failure:
            await rpc(RpcCall(CLIENT, method))
        assert "secret" not in str(failure.value)
    with pytest.raises(Error, match="404: method not found"):
        await rpc(RpcCall(CLIENT, "unknown"))


async def test_a_session_is_a_failure(fake: FakeBackend, served: Served) -> None:
    """The proxy's JSON has none, so the log says where it works; a handler sees an empty one."""
    fake.answers |= {
        "connect": Connected("7", session="tab"),
        "rpc m": lambda call: call.client.session.save(),
    }
    with capture_logs() as lines, pytest.raises(BackendError, match="status 500"):
        await served("connect").connect(ConnectCall(CLIENT))
    assert "in the node's own process" in lines[0]["error"]
    with capture_logs() as lines, pytest.raises(BackendError, match="status 500"):
        await served("rpc").rpc(RpcCall(CLIENT, "m"))
    assert lines[0]["event"] == "backend_raised"


async def test_an_event_without_a_handler_is_a_failure(served: Served) -> None:
    """The node's configuration names an endpoint that does not exist."""
    for call in (
        served("connect").connect(ConnectCall(CLIENT)),
        served("publish").publish(PublishCall(CLIENT, "room:1", "1", b"1")),
        served("publish").publish(PublishCall(CLIENT, "other:1", "1", b"1")),
        served("nothing").rpc(RpcCall(CLIENT, "m")),
    ):
        with pytest.raises(BackendError, match="status 404"):
            await call


async def test_other_requests_are_refused(served: Served, tmp_path: Path) -> None:
    """With a status and a line for whoever sent them."""
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "app.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        assert (await client.get("/rpc")).status_code == 405
        for body in (b"", b"{}", b"[]", b'{"client":"a","b64data":"!"}'):
            answer = await client.post("/rpc", content=body)
            assert answer.status_code == 400
            assert answer.text.startswith("the request is not valid: ")
        large = await client.post("/rpc", content=b" " * (MAX_REQUEST + 1))
        assert large.status_code == 413
