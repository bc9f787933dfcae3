"""The FastAPI applications of a node: one for its clients, one for its operators."""

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

from wsfleet import __version__
from wsfleet.api import openapi
from wsfleet.api.endpoint import PREFIX, Endpoint
from wsfleet.api.methods import Api
from wsfleet.console.router import create_console
from wsfleet.node.node import Node

RESERVED = ("/connection/", "/emulation/")
"""Paths of the node's own transports."""


class HeadAsGet:
    """ASGI middleware that turns HEAD into GET (RFC 9110, section 9.3.2).

    The server knows the request's own method, and leaves the body out.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, with GET in place of HEAD."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class InternalApp(FastAPI):
    """A FastAPI application with the server API beside it, which needs no middleware."""

    def __init__(self, node: Node, **options: Any) -> None:
        super().__init__(**options)
        self._api = Api(node)
        self._endpoint = Endpoint(node, self._api)
        self.body_limit = self._endpoint.body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{PREFIX}/"):
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of all routes."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.merged(super().openapi(), openapi.described(self._api))
        return self.openapi_schema


def create_internal_app(node: Node) -> InternalApp:
    """Return the routes for balancers, monitoring and operators."""
    app = InternalApp(node, title="wsfleet", version=__version__)
    app.add_middleware(HeadAsGet)
    app.mount("/console", create_console(node))
    _add_health(app, node)

    @app.get("/ready", responses={503: {"description": "New clients should go elsewhere."}})
    async def ready() -> JSONResponse:
        """Return whether the balancer should send new clients."""
        reason = node.not_ready_reason()
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "reason": reason}, status_code=503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(node.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return app


def create_public_app(node: Node) -> FastAPI:
    """Return the application that serves clients if no other one is configured."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(HeadAsGet)
    _add_health(app, node)
    return app


def is_reserved(path: str) -> bool:
    """Return whether a path belongs to the node, not to the application that it serves."""
    return f"{path}/".startswith(RESERVED)


class Guest:
    """A user's application on all paths except the reserved ones; its exceptions are counted."""

    def __init__(self, node: Node, app: ASGIApp) -> None:
        self._node = node
        self._app = app
        self._reserved = FastAPI(openapi_url=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and is_reserved(scope["path"]):
            await self._reserved(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception:
            if scope["type"] == "http":
                self._node.metrics.handler_failed("http")
            raise


def _add_health(app: FastAPI, node: Node) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return the node's health, always with status 200."""
        return node.health()
