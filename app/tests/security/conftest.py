"""A node for all tests of this folder, and HAProxy in front of it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from lab.haproxy import HAPROXY_PROGRAM, haproxy_config
from lab.ports import free_port
from lab.processes import process
from lab.waiting import settled
from tests.support.paths import APP
from tests.support.redis import RedisServer
from tests.support.victim import CONFIG, MEMORY, Victim


@pytest.fixture(scope="package")
def redis(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Return the Redis server that the nodes share."""
    server = RedisServer(tmp_path_factory.mktemp("victims"))
    server.start()
    yield server
    server.stop()


SETTINGS: dict[str, object] = {
    "max_connections": 400,
    "message_rate": 50,
    "outbox_limit": 200_000,
    # Those who do not read are to end by what waits for them, on a busy machine as well.
    "ping_timeout": 120,
    "compression": True,  # for those who offer it
    "body_timeout": 3,  # a body that stalls is refused after twice this time at most
}


@pytest.fixture(scope="package")
def running(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Return the node; its exit status shows that no attack harmed it."""
    folder = tmp_path_factory.mktemp("victim")
    node = Victim(folder, redis, SETTINGS | {"config": folder / "config.yml"})
    node.configure(CONFIG)
    node.start()
    yield node
    node.stop()


@pytest.fixture(scope="package")
def serving(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Return a node that serves an application, a route of which is attacked."""
    folder = tmp_path_factory.mktemp("serving")
    application = {"app": "tests.support.guest:app", "app_dir": APP, "plain_path": "/ws"}
    settings = SETTINGS | application | {"config": folder / "config.yml"}
    node = Victim(folder, redis, settings, paths=("/echo",))
    node.configure(CONFIG)
    node.start()
    yield node
    node.stop()


@pytest.fixture(scope="package")
def drained(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Return another node, which takes no clients."""
    node = Victim(tmp_path_factory.mktemp("drained"), redis, {"standby": True})
    node.start()
    yield node
    node.stop()


@pytest.fixture(scope="package")
def balancer(
    running: Victim, drained: Victim, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Return the port of a HAProxy in front of both nodes, with the role's configuration."""
    folder = tmp_path_factory.mktemp("balancer")
    port = free_port()
    config = folder / "haproxy.cfg"
    nodes = {"node": running.url, "drained": drained.url}
    ports = {"node": running.internal_port, "drained": drained.internal_port}
    text = haproxy_config(
        nodes, port, free_port(), internal_ports=ports, haproxy_timeout_http_request=5
    )
    config.write_text(text)
    with process([HAPROXY_PROGRAM, "-db", "-f", str(config)], folder / "log") as haproxy:
        yield port
        assert haproxy.poll() is None, (folder / "log").read_text()[-2000:]


@pytest.fixture
async def victim(processes: None, request: pytest.FixtureRequest) -> AsyncIterator[Victim]:
    """Return the node; check after each attack that it serves and has freed its memory."""
    way = getattr(request, "param", "direct")
    running: Victim = request.getfixturevalue("serving" if way == "application" else "running")
    running.entry = request.getfixturevalue("balancer") if way == "haproxy" else running.port
    await running.ready()
    before = await running.resident()
    yield running
    assert running.process is not None
    assert running.process.poll() is None, running.log.read_text()[-2000:]
    await running.serves()

    async def alone() -> bool:
        health = (await running.get("/health")).json()
        return bool(health["connections"] == 0 and health["status"] == "healthy")

    await settled(alone, "all connections are gone")
    assert await running.resident() - before < MEMORY
    assert b"Traceback" not in running.log.read_bytes()
