"""Backends as endpoints: an ASGI application that a node asks by its HTTP proxies."""

from collections.abc import Mapping
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from wsfleet.application.http_proxy import served_json
from wsfleet.application.http_proxy.served_json import ServedRequest
from wsfleet.application.measured import log_failure
from wsfleet.application.port import (
    Backend,
    BackendError,
    Client,
    Disconnect,
    Error,
    MethodDisabledError,
    PublishCall,
    RefreshCall,
    Router,
    RpcCall,
    SubRefreshCall,
    SubscribeCall,
    UnknownMethodError,
)
from wsfleet.channels.permissions import ChannelError, Channels

MAX_REQUEST = 8_388_608
"""Bytes of a request."""
NO_METHOD = 404
"""The code of the error for a method without a handler: 104 is the node's own."""

log = structlog.get_logger(__name__)


class RefusedRequestError(Exception):
    """A request without an answer; `status` is that of the response, the text its body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ProxyEndpoints:
    """An ASGI application with an endpoint for each event: `/connect`, `/publish` and so on.

    The lifespan is that of `app`. A failure of a backend is a response with status 500, or 504 if
    it took too long.
    """

    def __init__(self, router: Router, channels: Channels, app: ASGIApp) -> None:
        self._router = router
        self._channels = channels
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"a node sends no {scope['type']}")
        try:
            _check_method(scope["method"])
            headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
            body = await self._answer(scope["path"], headers, await _body(receive))
        except RefusedRequestError as error:
            await _respond(send, error.status, b"text/plain; charset=utf-8", str(error).encode())
        else:
            await _respond(send, 200, b"application/json", body)

    async def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        event = path.removeprefix("/")
        try:
            request = served_json.read(body)
            client = request.known_client(headers)
            data = request.payload()
        except (ValueError, RecursionError) as error:
            raise RefusedRequestError(400, f"the request is not valid: {error}") from None
        try:
            return served_json.answer(await self._ask(event, request, client, data))
        except (Error, Disconnect) as refused:
            return served_json.refusal(refused)
        except BackendError as failure:
            log_failure(failure, event, "")
            status = 504 if failure.reason == "timeout" else 500
            raise RefusedRequestError(status, "the handler failed") from None
        except RefusedRequestError:
            raise
        except Exception:
            log.exception("backend_raised", backend_event=event)
            raise RefusedRequestError(500, "the handler failed") from None

    async def _ask(self, event: str, request: ServedRequest, client: Client, data: bytes) -> Any:
        router = self._router
        match event:
            case "connect":
                return await _present(router.connect, event).connect(request.connect(client, data))
            case "refresh":
                return await _present(router.refresh, event).refresh(RefreshCall(client))
            case "disconnect":
                ended = request.disconnected(client)
                return await _present(router.disconnected, event).disconnected(ended)
            case "rpc":
                return await self._method(request).rpc(RpcCall(client, request.method, data))
            case "subscribe" | "sub_refresh" | "publish":
                return await self._ask_channel(event, request, client, data)
        raise RefusedRequestError(404, f"no event {event!r}")

    async def _ask_channel(
        self, event: str, request: ServedRequest, client: Client, data: bytes
    ) -> Any:
        try:
            channel = self._channels.find(request.channel)
        except ChannelError as error:
            raise RefusedRequestError(404, f"{error}: is the configuration the node's?") from None
        router, namespace = self._router, channel.namespace
        name = channel.name, self._channels.short_name(channel)
        if event == "subscribe":
            call = SubscribeCall(client, *name, data)
            return await _present(router.subscribe(namespace), event).subscribe(call)
        if event == "sub_refresh":
            backend = _present(router.sub_refresh(namespace), event)
            return await backend.sub_refresh(SubRefreshCall(client, *name))
        backend = _present(router.publish(namespace), event)
        return await backend.publish(PublishCall(client, *name, data))

    def _method(self, request: ServedRequest) -> Backend:
        try:
            return self._router.rpc(request.method)
        except (UnknownMethodError, MethodDisabledError):
            raise Error(NO_METHOD, "method not found") from None


def _present(backend: Backend | None, event: str) -> Backend:
    if backend is None:
        raise RefusedRequestError(404, f"no handler for {event}")
    return backend


def _check_method(method: str) -> None:
    if method != "POST":
        raise RefusedRequestError(405, "POST is the one method")


async def _respond(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise RefusedRequestError(400, "the request was cut off")
        body += message.get("body", b"")
        if len(body) > MAX_REQUEST:
            raise RefusedRequestError(413, f"the request is larger than {MAX_REQUEST} bytes")
        if not message.get("more_body"):
            return bytes(body)
