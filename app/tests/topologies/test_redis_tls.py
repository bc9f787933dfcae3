"""Redis with TLS only: nodes and command line use it, and verify its certificate."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.waiting import settled
from tests.support.certificates import make_certificate
from tests.support.command import wsfleet
from tests.support.nodes import StartNode
from tests.support.redis import RedisServer
from tests.support.topologies import SentinelTopology, started
from wsfleet.redis.primary import UnavailableError


@pytest.fixture
def tls(processes: None, tmp_path: Path) -> Path:
    """Return the folder of a certificate, its key and its CA."""
    folder = tmp_path / "tls"
    folder.mkdir()
    make_certificate(folder / "ca.pem", folder / "host.pem")
    return folder


@pytest.fixture
def server(tmp_path: Path, tls: Path) -> Iterator[RedisServer]:
    """Return a Redis with this certificate."""
    server = RedisServer(tmp_path / "tls-redis", tls=tls)
    server.start()
    yield server
    server.stop()


async def test_nodes_share_it(server: RedisServer, start_node: StartNode) -> None:
    """Messages up to the limit pass, and nodes reconnect after a restart of Redis."""
    one = await start_node(redis_url=server.url_of("node"))
    two = await start_node(redis_url=server.url_of("node"))
    text = "x" * 65_000
    async with one.connect() as sender, two.connect() as other:
        for _ in range(2):
            await sender.send(text)
            assert json.loads(await sender.recv())["type"] == "ack"
            assert json.loads(await other.recv())["data"] == text
            await asyncio.to_thread(server.stop)
            await settled(lambda: not one.node.store.connected, "it is missed")
            await asyncio.to_thread(server.start)
            await one.wait_ready()
            await two.wait_ready()


def test_the_command_reads_it(server: RedisServer) -> None:
    """The command line reads the same URL."""
    outcome = wsfleet("check", "state", "--redis", server.url_of("cli"), "--json")
    assert outcome.code == 0, outcome


async def test_sentinels_and_replicas_speak_it(
    tmp_path: Path, tls: Path, start_node: StartNode
) -> None:
    """Nodes use the Sentinels' primary, and after its death the promoted replica."""
    with started(SentinelTopology(tmp_path, tls)) as topology:
        node, old = await start_node(redis_url=topology.url), topology.primary
        (primary,) = node.node.store.primaries
        assert str(primary) == f"127.0.0.1:{old.port}"
        await primary.call("SET", "state:x", "1", replicated=True)
        old.kill()
        await asyncio.to_thread(topology.wait_for_failover, old)

        async def kept() -> bool:
            with contextlib.suppress(UnavailableError):  # it may be lost once more on the way
                return bool(await node.node.store.call("GET", "state:x") == b"1")
            return False

        await settled(kept, "the other one is found, and has what the first one had")
        assert str(node.node.store.primaries[0]) == f"127.0.0.1:{topology.primary.port}"


@pytest.mark.parametrize("stranger", ["another CA", "another name"])
async def test_a_stranger_is_not_believed(
    server: RedisServer, tmp_path: Path, start_node: StartNode, stranger: str
) -> None:
    """A node sends nothing to a server without a valid certificate for its address."""
    make_certificate(tmp_path / "other.pem", tmp_path / "key.pem")
    url = {
        "another CA": server.url.replace("tls/ca.pem", "other.pem"),
        "another name": server.url.replace("127.0.0.1", "localhost"),
    }[stranger]
    outcome = await asyncio.to_thread(wsfleet, "check", "state", "--redis", url)
    assert outcome.code == 2
    assert outcome.stderr.count("\n") == 1
    assert "CERTIFICATE_VERIFY_FAILED" in outcome.stderr
    node = await start_node(redis_url=url, wait=False)
    await settled(lambda: node.server.started, "it is there")
    assert node.node.not_ready_reason() is not None
