"""The node's HTTP and its OpenAPI: requests are made from the schema, and answers held to it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.support.redis import RedisServer
from tests.support.victim import Victim
from wsfleet.config.settings import Settings
from wsfleet.node.node import Node
from wsfleet.server.app import create_internal_app

KEY = "a key"
CONFIG = f"""
http_api: {{key: "{KEY}"}}
channel:
  without_namespace: {{presence: true, history_size: 10, history_ttl: 60s}}
"""
schema = schemathesis.openapi.from_dict(create_internal_app(Node(Settings())).openapi())


@pytest.fixture(scope="module")
def url(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a node is, in a process of its own."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "config.yml").write_text(CONFIG)
    redis = RedisServer(folder / "redis")
    redis.start()
    node = Victim(folder, redis, {"config": folder / "config.yml"})
    node.start()
    try:
        asyncio.run(node.ready())
        yield node.internal_url
    finally:
        node.stop()
        redis.stop()


@schema.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_answer_is_described(case: schemathesis.Case[Any], url: str) -> None:
    """No request gets a 5xx; each answer's status, type and body are in the schema."""
    # Not checked: that what the schema allows is taken. To JSON Schema, 1.0 is an integer.
    case.call_and_validate(
        url, headers={"X-API-Key": KEY}, excluded_checks=[positive_data_acceptance]
    )
