"""The console, `/console`: a page that shows the cluster, and the JSON that it requests.

The page's files need no key and contain no data. The JSON and the actions need a key of the server
API.
"""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from msgspec import Struct
from redis.exceptions import RedisError
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from wsfleet import __version__
from wsfleet.api.key_check import KeyCheck
from wsfleet.api.requests import Reader, RequestError
from wsfleet.cluster.node_state import DRAIN, SERVE
from wsfleet.console.samples import Recorder
from wsfleet.console.snapshot import Cluster, LastReadyNodeError
from wsfleet.node.node import Node
from wsfleet.redis.store import UnavailableError

HEADERS = {
    "Cache-Control": "no-cache",  # checked on each use: page and node are of one release
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class DrainRequest(Struct):
    """The body of a request to drain or undrain a node; `force` drains the last ready one, too."""

    node: str
    force: bool = False


class Pages(StaticFiles):
    """A server of the page's files."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the response for a file, with the security headers."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def create_console(node: Node) -> FastAPI:
    """Return the application below `/console`."""
    cluster = Cluster(node)
    node.background.append(Recorder(node).run)
    keys_of_api, requests = KeyCheck(node.config.http_api.accepted), Reader(DrainRequest)

    async def check_key(request: Request) -> None:
        query = request.scope["query_string"]
        if (refusal := keys_of_api.refusal(request.headers.raw, query)) is not None:
            raise HTTPException(*refusal)

    api = APIRouter(prefix="/api", dependencies=[Depends(check_key)])

    @api.get("/cluster")
    async def look(
        response: Response,
        x_sticky_cookie: Annotated[str | None, Header()] = None,
        x_forwarded_for: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        """Return the cluster's state, and the node and cookie of this browser."""
        response.headers["Cache-Control"] = "no-store"
        return {
            "you": {
                "node": node.settings.name,
                "version": __version__,
                "balanced": x_forwarded_for is not None,
                "cookie": x_sticky_cookie,
            },
            **await cluster.look(),
        }

    async def read(request: Request) -> DrainRequest:
        try:
            drain_request: DrainRequest = requests.read(await request.body())
        except RequestError as error:
            raise HTTPException(error.status, str(error)) from None
        return drain_request

    @api.post("/drain", status_code=204)
    async def drain(request: Request) -> None:
        """Set a node's desired state to drained, as `wsfleet drain` does."""
        await _set_desired_state(cluster, await read(request), DRAIN)

    @api.post("/undrain", status_code=204)
    async def undrain(request: Request) -> None:
        """Set a node's desired state to serving, as `wsfleet undrain` does."""
        await _set_desired_state(cluster, await read(request), SERVE)

    console = FastAPI(openapi_url=None)
    console.include_router(api)
    console.mount("/", Pages(directory=Path(__file__).parent / "static", html=True))
    return console


async def _set_desired_state(cluster: Cluster, request: DrainRequest, state: str) -> None:
    try:
        await cluster.want(request.node, state, force=request.force)
    except KeyError:
        raise HTTPException(404, f"there is no node {request.node}") from None
    except LastReadyNodeError:
        raise HTTPException(
            409, "No other node is ready, so its clients could go nowhere."
        ) from None
    except (UnavailableError, RedisError) as error:
        raise HTTPException(503, str(error)) from None
