"""The FastAPI application: HTTP routes, and the addresses of the WebSocket endpoints."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

from wsfleet import __version__
from wsfleet.api import openapi
from wsfleet.api.endpoint import PREFIX, Endpoint
from wsfleet.api.methods import Api
from wsfleet.clients.centrifuge.endpoint import Centrifuge
from wsfleet.clients.plain import Plain
from wsfleet.console.router import create_console
from wsfleet.node.node import Node
from wsfleet.transports.websocket import BODY_LIMIT, ON_REFUSED, ROUTES


class HeadAsGet:
    """ASGI middleware that has HEAD answered as GET (RFC 9110, section 9.3.2).

    The server, which has the request's own method, leaves the body out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class App(FastAPI):
    """FastAPI, and beside it the server API, which needs none of its middleware."""

    def __init__(self, api: Api, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(**options)
        self._api = api
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{PREFIX}/"):
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document of all routes."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.merged(super().openapi(), openapi.described(self._api))
        return self.openapi_schema


def create_app(node: Node) -> FastAPI:
    """Routes of one node process; the node starts and stops with the application."""
    plain, centrifuge = Plain(node), Centrifuge(node)
    api = Api(node)
    endpoint = Endpoint(node, api)
    websockets = {"/ws": plain.endpoint, "/connection/websocket": centrifuge.endpoint}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await node.start()
        yield {
            ROUTES: websockets,
            ON_REFUSED: node.metrics.refused,
            BODY_LIMIT: endpoint.body_limit,
        }
        await node.stop()

    app = App(api, endpoint, title="wsfleet", version=__version__, lifespan=lifespan)

    app.add_middleware(HeadAsGet)
    app.mount("/console", create_console(node))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """How this node is; always answers 200 while the process lives."""
        return node.health()

    @app.get("/ready", responses={503: {"description": "New clients should go elsewhere."}})
    async def ready() -> JSONResponse:
        """Whether new clients should come: what the balancer asks."""
        reason = node.not_ready_reason()
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": reason}, status_code=503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus's text format."""
        return Response(node.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return app
