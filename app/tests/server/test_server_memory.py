"""`wsfleet serve` on a machine without Redis."""

import asyncio
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from websockets.asyncio.client import connect

from lab.ports import free_port
from lab.processes import start, stop
from lab.waiting import settled
from tests.support.api import KEY, Api
from tests.support.clients import exchange
from tests.support.command import COMMAND
from tests.support.nodes import RunningNode
from tests.support.sdk import has, sdk, subscribed
from wsfleet.config.file import BUILT_IN

pytestmark = pytest.mark.usefixtures("processes")


async def test_a_node_without_redis_does_all_that_one_with_redis_does(tmp_path: Path) -> None:
    """Plain clients, recovery of an SDK client, the API, presence, readiness and health."""
    config = tmp_path / "config.yml"
    config.write_text(f"{BUILT_IN}http_api: {{key: {KEY}}}\n")
    port = free_port()
    environment = {"WSFLEET_REDIS_URL": "memory://", "WSFLEET_CONFIG": str(config)}
    environment |= {"WSFLEET_PORT": str(port), "WSFLEET_DRAIN_DELAY": "0"}
    log = tmp_path / "log"
    process = await asyncio.to_thread(start, [*COMMAND, "serve"], log, environment, port=port)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": KEY}, trust_env=False
        ) as http:

            async def ready() -> bool:
                return (await http.get("/ready")).status_code == 200

            await settled(ready, "the node is ready")
            health = (await http.get("/health")).json()
            assert (health["status"], health["redis_connected"]) == ("healthy", True)
            await _plain_clients_talk(port)
            await _a_client_recovers(http)
            cluster = (await http.get("/console/api/cluster")).json()
            assert cluster["redis"]["kind"] == "memory"
            assert [server["address"] for server in cluster["redis"]["servers"]] == ["memory://"]
    finally:
        await asyncio.to_thread(stop, process)
    for event in ("state_in_memory", "drained"):
        assert f'"event":"{event}"' in log.read_text()


async def _plain_clients_talk(port: int) -> None:
    url = f"ws://127.0.0.1:{port}/ws"
    async with connect(url, proxy=None) as ann, connect(url, proxy=None) as bob:
        assert (await exchange(ann, {"client_id": "ann"}))["client_id"] == "ann"
        assert json.loads(await bob.recv())["client_id"] == "ann"
        taken = await exchange(bob, {"client_id": "ann"})
        assert (taken["type"], taken["client_id"] == "ann") == ("ack", False)


async def _a_client_recovers(http: httpx.AsyncClient) -> None:
    api = Api(http)
    node = cast(RunningNode, SimpleNamespace(client_url=str(http.base_url)))
    async with sdk(node) as client:
        _, events = await subscribed(client, "news")
        first = await api("publish", channel="news", data=0, idempotency_key="once")
        assert await api("publish", channel="news", data=0, idempotency_key="once") == first
        await settled(partial(has, events.data, 1), "the publication arrives")
        [member] = (await api("presence", channel="news"))["presence"].values()
        assert member["user"] == ""
        await client.disconnect()
        for number in (1, 2):
            await api("publish", channel="news", data=number)
        await client.connect()
        await settled(lambda: events.data == [0, 1, 2], "what was missed is recovered")
        assert events.offsets == [1, 2, 3]
        assert events.subscribed[-1].recovered
    page: Any = await api("history", channel="news", limit=10)
    assert [each["offset"] for each in page["publications"]] == [1, 2, 3]
    assert page["epoch"] == first["epoch"]
