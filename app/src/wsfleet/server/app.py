"""The FastAPI applications of a node: what its clients ask for, and what its operators do."""

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
"""Where the node's own transports are."""


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


class InternalApp(FastAPI):
    """FastAPI, and beside it the server API, which needs none of its middleware."""

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
        """The document of all routes."""
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


def create_public_app(node: Node) -> FastAPI:
    """Return the built-in application for clients: what a node without another one answers."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(HeadAsGet)
    _add_health(app, node)
    return app


def is_reserved(path: str) -> bool:
    """Whether a path is the node's own, whatever application it serves."""
    return f"{path}/".startswith(RESERVED)


class Guest:
    """An application that has all paths but the reserved ones; its exceptions are counted."""

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
        """How this node is; always answers 200 while the process lives."""
        return node.health()
