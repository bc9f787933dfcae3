"""Fixtures for all tests."""

import fcntl
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import redis
from websockets.asyncio.server import serve

from lab.ports import free_port
from tests.support import backend as backend_support
from tests.support.backend import FakeBackend, StartBackend
from tests.support.fleet import Rig, running_fleet
from tests.support.memory import MemoryServer
from tests.support.nodes import RunningNode, StartNode
from tests.support.paths import JAVASCRIPT
from tests.support.quick import forbid_processes
from tests.support.redis import RedisServer
from tests.support.tokens import API_KEY, CONFIG
from tests.support.topologies import SentinelTopology, started
from tests.support.websocket_server import Handler, Serve
from wsfleet.application.port import Router
from wsfleet.config.settings import Settings
from wsfleet.server.server import create_server


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--quick`, and the options of `fleet/test_faults.py`."""
    parser.addoption("--quick", action="store_true", help="only tests that start no process")
    parser.addoption("--full", action="store_true", help="run the faults in full, for minutes")
    parser.addoption("--seed", type=int, default=1, help="order, targets and pauses of the faults")


def pytest_configure(config: pytest.Config) -> None:
    """Let no test fail because the machine is slow; `--quick` tries few examples of each."""
    slow = [hypothesis.HealthCheck.too_slow]
    examples = 10 if config.getoption("--quick") else 100
    hypothesis.settings.register_profile(
        "tests", max_examples=examples, deadline=None, suppress_health_check=slow
    )
    hypothesis.settings.load_profile("tests")
    config.addinivalue_line(
        "markers",
        "backends(*names): what nodes share in this test, `redis` (the default) or `memory`",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once with each of its backends; one that handles a Redis itself has no other."""
    marker = metafunc.definition.get_closest_marker("backends")
    if marker is None or "backend" not in metafunc.fixturenames:
        return
    names = ("redis",) if "redis_process" in metafunc.fixturenames else marker.args
    metafunc.parametrize("backend", names, indirect=True)


def starts_processes(item: pytest.Item) -> bool:
    """Whether a test starts processes; nodes do not, where memory is what they share."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (
        "processes" in getattr(item, "fixturenames", ()) and parameters.get("backend") != "memory"
    )


@pytest.fixture(scope="session")
def processes() -> None:
    """Be requested by every fixture and test that starts a process; `--quick` leaves those out."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--quick`, leave out tests that start processes, and forbid the rest to start one."""
    if not config.getoption("--quick"):
        return
    slow = [item for item in items if starts_processes(item)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
    forbid_processes()


@pytest.fixture(scope="session")
def modules(processes: None) -> None:
    """Install the packages of package-lock.json, once for all workers of pytest-xdist."""
    npm = shutil.which("npm")
    assert npm, "npm is not installed; scripts/test installs it"
    installed = JAVASCRIPT / "node_modules/.package-lock.json"
    wanted = JAVASCRIPT / "package-lock.json"
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            subprocess.run([npm, "ci", "--silent"], cwd=JAVASCRIPT, check=True, timeout=120)


@pytest.fixture
def redis_process(processes: None, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may stop and start."""
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> str:
    """The URL of an empty Redis."""
    return redis_process.url


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, processes: None
) -> Iterator[RedisServer | MemoryServer]:
    """Return the state that nodes share: that Redis, or memory, see the marker `backends`."""
    if getattr(request, "param", "redis") == "redis":
        yield request.getfixturevalue("redis_process")
    else:
        with MemoryServer() as server:
            yield server


@pytest.fixture
async def store(backend: RedisServer | MemoryServer) -> AsyncIterator[Any]:
    """A client of what the nodes share, answers decoded."""
    async with backend.client() as client:
        yield client


@pytest.fixture
async def start_node(
    backend: RedisServer | MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartNode]:
    """Start a node; keywords are settings. Heartbeats are quick, so that tests are.

    Redis has as long to answer as on a busy machine: a test whose Redis hangs sets a shorter time.
    So have the probes of pub/sub, whose loss costs clients of the plain protocol messages.
    """
    monkeypatch.setattr("wsfleet.broker.pubsub.PROBES_MISSED", 25)
    running: list[RunningNode] = []

    async def start(
        *, wait: bool = True, router: Router | None = None, **overrides: Any
    ) -> RunningNode:
        port = free_port()
        defaults: dict[str, Any] = {
            "port": port,
            "node_name": f"node{len(running) + 1}",
            "redis_url": backend.url_of("node"),
            "redis_timeout": 10.0,
            "heartbeat_interval": 0.2,
            "node_dead_after": 2.0,
            "drain_delay": 0.0,
            "drain_timeout": 5.0,
        }
        settings = Settings(**(defaults | overrides))
        node = RunningNode(create_server(settings, routers=[router] if router else []), settings)
        running.append(node)
        if wait:
            await node.wait_ready()
        return node

    yield start
    for node in running:
        if not node.task.done():
            await node.stop()


@pytest.fixture
def start_backend(start_node: StartNode, tmp_path: Path) -> StartBackend:
    """Start a node with a backend that has these answers; `replace` changes its configuration."""
    path = tmp_path / "config.yml"

    async def start(
        answers: dict[str, Any], replace: dict[str, str] | None = None, **settings: Any
    ) -> tuple[RunningNode, FakeBackend]:
        text = backend_support.CONFIG
        for old, new in (replace or {}).items():
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text)
        backend = FakeBackend(answers, disabled=["closed"])
        return await start_node(config=path, router=backend.router, **settings), backend

    return start


@pytest.fixture
async def server_api() -> AsyncIterator[httpx.AsyncClient]:
    """A client of any node's server API."""
    async with httpx.AsyncClient(headers={"X-API-Key": API_KEY}, trust_env=False) as client:
        yield client


@pytest.fixture
def sentinel(processes: None, tmp_path: Path) -> Iterator[SentinelTopology]:
    """A primary, two replicas, three Sentinels."""
    with started(SentinelTopology(tmp_path)) as topology:
        yield topology


@pytest.fixture(scope="session")
def fleet(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A fleet that all tests share: leave it as it was."""
    with running_fleet(tmp_path_factory.mktemp("fleet")) as rig:
        yield rig


@pytest.fixture
def own_fleet(processes: None, tmp_path: Path) -> Iterator[Rig]:
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


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file that lets nobody in without a token."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return path
