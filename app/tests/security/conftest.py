"""One node and one Redis for the whole suite: it takes one attack after the other."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.harness import RedisServer, settled
from tests.security.victim import Victim
from tests.test_admission import SECRET
from tests.test_auth import RSA_KEY, pem

MEMORY = 64 * 2**20
"""Bytes that the node may have more after an attack than before it."""
CONFIG = f"""
client:
  token: {{hmac_secret_key: "{SECRET}", rsa_public_key: {json.dumps(pem(RSA_KEY))}}}
  allow_anonymous_connect_without_token: true
  allowed_origins: ["https://example.com"]
  channel_limit: 100
channel:
  without_namespace:
    allow_subscribe_for_client: true
    allow_subscribe_for_anonymous: true
    allow_publish_for_client: true
    allow_publish_for_anonymous: true
"""


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """The node; that it was not harmed by all of it, its exit status says."""
    folder = tmp_path_factory.mktemp("victim")
    (folder / "config.yml").write_text(CONFIG)
    redis = RedisServer(folder / "redis")
    redis.start()
    settings = {
        "config": folder / "config.yml",
        "max_connections": 200,
        "message_rate": 50,
        "outbox_limit": 200_000,
    }
    node = Victim(folder, redis, settings)
    node.start()
    yield node
    node.stop()
    redis.stop()


@pytest.fixture
async def victim(running: Victim) -> AsyncIterator[Victim]:
    """The node; after each attack it serves as before and keeps nothing of it."""
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
