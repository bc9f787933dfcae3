"""Fixtures of the command line's tests: fleets, an empty database, and servers of their own."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.asyncio.server import ServerConnection, serve

from tests.cli.rig import Rig, running_fleet

Handler = Callable[[ServerConnection], Awaitable[None]]
Serve = Callable[..., Awaitable[str]]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that all tests share: leave it as it was."""
    with running_fleet(tmp_path_factory.mktemp("fleet")) as rig:
        yield rig


@pytest.fixture
def own_fleet(tmp_path: Path) -> Iterator[Rig]:
    """A fleet for one test, which may break it."""
    with running_fleet(tmp_path) as rig:
        yield rig


@pytest.fixture
def database(redis_server: str) -> Iterator[Any]:
    """A client of an empty Redis."""
    with redis.Redis.from_url(redis_server, decode_responses=True) as client:
        yield client


@pytest.fixture
async def serve_websocket() -> AsyncIterator[Serve]:
    """Serve WebSockets by a handler of the test's own, and return the URL."""
    async with AsyncExitStack() as stack:

        async def start(handler: Handler, **options: Any) -> str:
            server = await stack.enter_async_context(serve(handler, "127.0.0.1", 0, **options))
            port: int = next(iter(server.sockets)).getsockname()[1]
            return f"http://127.0.0.1:{port}"

        yield start
