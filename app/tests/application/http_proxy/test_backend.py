"""A backend behind an endpoint: each event over a real connection, and what statuses become."""

from typing import Any

import pytest

from tests.support.http_backend import HTTPBackend, always, answer, by_path, running_backend
from wsfleet.application.http_proxy.backend import HTTPProxy
from wsfleet.application.port import (
    Backend,
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
from wsfleet.config.proxy import Proxy

CLIENT = Client("id", user="7", meta=b"{}", headers={"cookie": "a=1"})


def proxy(backend: HTTPBackend, path: str = "/x", **options: Any) -> HTTPProxy:
    """Return a proxy of a backend."""
    return HTTPProxy(Proxy.model_validate({"endpoint": backend.url + path} | options), "rpc.proxy")


async def refusal(backend: HTTPProxy) -> BaseException:
    """Return what a call raises."""
    with pytest.raises((Error, Disconnect, BackendError)) as caught:
        await backend.rpc(RpcCall(CLIENT, "m"))
    return caught.value


async def test_every_event() -> None:
    """The call goes out as its request, and the answer comes back as the port's."""
    result = {
        "user": "7", "info": {"i": 1}, "data": {"d": 1}, "expire_at": 9, "meta": {"m": 1},
        "channels": ["a"],
    }  # fmt: skip
    async with running_backend(by_path({"/x": {"result": result}})) as backend:
        ours = proxy(backend, http_headers=["Cookie"], include_connection_meta=True)
        served: Backend = ours
        info, data = b'{"i": 1}', b'{"d": 1}'
        assert await served.connect(ConnectCall(CLIENT)) == Connected(
            "7", 9, info, b'{"m": 1}', data, {"a": Grant()}
        )
        assert await served.refresh(RefreshCall(CLIENT)) == Renewed(False, 9, info, b'{"m": 1}')
        assert await served.subscribe(SubscribeCall(CLIENT, "n:c", "c")) == Subscribed(
            Grant(info, data), 9
        )
        renewed = await served.sub_refresh(SubRefreshCall(CLIENT, "n:c", "c"))
        assert (renewed.expire_at, renewed.info) == (9, info)
        published = await served.publish(PublishCall(CLIENT, "n:c", "c", b"1"))
        assert published == Published(data)
        assert await served.rpc(RpcCall(CLIENT, "m", b"2")) == data
        await served.disconnected(DisconnectedCall(CLIENT, 3001, "shutdown"))
        ours.close()
    sent = [request.json for request in backend.requests]
    assert [each.get("channel") for each in sent] == [None, None, "n:c", "n:c", "n:c", None, None]
    assert [each.get("data") for each in sent] == [None, None, None, None, 1, 2, None]
    assert ["meta" in each for each in sent] == [False] + [True] * 6
    assert {request.all("cookie")[0] for request in backend.requests} == {"a=1"}
    assert {request.all("content-type")[0] for request in backend.requests} == {"application/json"}
    assert backend.accepted == 1


async def test_a_refused_renewal_is_an_end() -> None:
    """As in Centrifugo: an error or a disconnect lets the connection or subscription expire."""
    for refused in (
        answer({"error": {"code": 403, "message": "no"}}),
        answer({"disconnect": {"code": 4500, "reason": "no"}}),
        answer("", 403),
    ):
        async with running_backend(always(refused)) as backend:
            transforms = [{"status_code": 403, "to_error": {"code": 403}}]
            ours = proxy(backend, http={"status_to_code_transforms": transforms})
            assert (await ours.refresh(RefreshCall(CLIENT))).expired
            assert (await ours.sub_refresh(SubRefreshCall(CLIENT, "c", "c"))).expired
            ours.close()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        *((status, "invalid") for status in (201, 204, 301, 400, 404, 502)),
        *((500, "exception"), (503, "unavailable"), (504, "timeout")),
    ],
)
async def test_a_status_other_than_200_is_a_failure(status: int, reason: str) -> None:
    """Even with a result in the body; the metrics count it by what the status says."""
    async with running_backend(always(answer({"result": {}}, status))) as backend:
        failure = await refusal(proxy(backend))
    assert str(failure) == f"the answer has status {status}"
    assert isinstance(failure, BackendError)
    assert failure.reason == reason


async def test_status_transforms() -> None:
    """The first one for a status counts; a status without one is a failure."""
    transforms = [
        {"status_code": 404, "to_error": {"code": 404, "message": "not found", "temporary": True}},
        {"status_code": 403, "to_disconnect": {"code": 4903, "reason": "permission denied"}},
        {"status_code": 404, "to_error": {"code": 1000}},
    ]
    for status, wanted in ((404, "404: not found"), (403, "4903: permission denied")):
        async with running_backend(always(answer("<html>", status))) as backend:
            ours = proxy(backend, http={"status_to_code_transforms": transforms})
            assert str(await refusal(ours)) == wanted
    async with running_backend(always(answer("<html>", 500))) as backend:
        ours = proxy(backend, http={"status_to_code_transforms": transforms})
        assert isinstance(await refusal(ours), BackendError)
