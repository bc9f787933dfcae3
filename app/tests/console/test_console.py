"""The console's JSON, its access check, and the files of its page."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import wsfleet.console
from lab.waiting import TIMEOUT, settled
from tests.support.nodes import RunningNode, StartNode
from tests.support.topologies import SentinelTopology
from wsfleet.console import samples
from wsfleet.console.samples import STEP, Sample, quantile, series
from wsfleet.redis import key_names
from wsfleet.telemetry.metrics import SECONDS

KEY = "a key"
STATIC = Path(wsfleet.console.__file__).parent / "static"
BUCKETS = len(SECONDS) + 1
CONFIG = f"""
http_api: {{key: "{KEY}"}}
client: {{allow_anonymous_connect_without_token: true}}
channel:
  without_namespace: {{allow_publish_for_client: true, allow_publish_for_anonymous: true}}
"""

Pair = tuple[RunningNode, RunningNode]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a configuration with a key."""
    path = tmp_path / "config.yml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
async def pair(start_node: StartNode, config: Path, tmp_path: Path) -> Pair:
    """Return two nodes without a file of hosts."""
    options: dict[str, Any] = {"config": config, "hosts": tmp_path / "none"}
    return await start_node(**options), await start_node(**options)


@pytest.fixture
async def http(pair: Pair) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of the first node that has the key."""
    async with client(pair[0].url, KEY) as http:
        yield http


def client(url: str, key: str) -> httpx.AsyncClient:
    """Return a client with a key."""
    headers = {"X-API-Key": key}
    return httpx.AsyncClient(
        base_url=f"{url}/console", headers=headers, trust_env=False, timeout=TIMEOUT
    )


async def look(http: httpx.AsyncClient) -> Any:
    """Return the data of the page."""
    answer = await http.get("/api/cluster")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def state(http: httpx.AsyncClient, name: str) -> str:
    """Return a node's state as the page shows it."""
    states = {node["name"]: node["state"] for node in (await look(http))["nodes"]}
    return str(states[name])


@pytest.mark.backends("redis", "memory")
async def test_a_process_of_handlers_that_died_is_a_problem(
    pair: Pair, http: httpx.AsyncClient, store: Any
) -> None:
    """One that sends heartbeats is none."""
    now = time.time()
    await store.zadd(key_names.HANDLERS, {"host-app-1": now - 100, "host-app-2": now + 60})
    (problem,) = (await look(http))["problems"]
    assert problem.startswith("handlers host-app-1: no heartbeat for 1")
    await store.zadd(key_names.HANDLERS, {"host-app-1": now + 60})
    assert (await look(http))["problems"] == []


async def test_every_node_is_seen_from_each(pair: Pair, http: httpx.AsyncClient) -> None:
    """Each node shows connections, states and Redis of all nodes, and no unknown balancer."""
    async with pair[1].connect():
        await settled(lambda: len(pair[1].node.hub) == 1, "it is there")
        await pair[1].node.registry.beat()
        seen = await look(http)
    assert seen["you"]["node"] == "node1"
    assert seen["you"]["balanced"] is False
    nodes = {node["name"]: node for node in seen["nodes"]}
    assert {name: node["state"] for name, node in nodes.items()} == {
        "node1": "ready",
        "node2": "ready",
    }
    assert nodes["node2"]["connections"] == 1
    (server,) = seen["redis"]["servers"]
    assert (server["role"], server["state"]) == ("primary", "up")
    assert pair[0].settings.redis_url.endswith(f"@{server['address']}/0")
    assert seen["balancers"] == seen["problems"] == []


async def test_a_node_that_sheds_clients_is_shown(pair: Pair) -> None:
    """The page has the number of clients that it still moves to other nodes."""
    pair[1].node.shedding.left = 5
    async with client(pair[0].url, KEY) as http:

        async def shown() -> bool:
            nodes = (await look(http))["nodes"]
            return [node["shedding"] for node in nodes] == [0, 5]

        await settled(shown, "it is on the page")


async def test_nothing_without_the_key(pair: Pair, store: Any) -> None:
    """Without the key no data and no drain; an empty key opens no node that has none."""
    for key in ("", "another"):
        async with client(pair[0].url, key) as http:
            assert (await http.get("/api/cluster")).status_code == 401
            for action in ("drain", "undrain"):
                answer = await http.post(f"/api/{action}", json={"node": "node1"})
                assert answer.status_code == 401
    assert await store.hgetall(key_names.DESIRED) == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [(rb'{"node":"\ud83d"}', 400), (b'{"node":1e400}', 400), (b"\xff", 400), (b"", 400),
     (b"{}", 422), (b'{"node":1}', 422), (b"[]", 422)],
)  # fmt: skip
async def test_an_invalid_drain_request_is_refused(pair: Pair, body: bytes, status: int) -> None:
    """An invalid request gets an error text, and causes no error in the node."""
    async with client(pair[0].url, KEY) as http:
        for action in ("drain", "undrain"):
            answer = await http.post(f"/api/{action}", content=body)
            assert answer.status_code == status
            assert "not" in answer.json()["detail"]


async def test_a_console_without_a_key_is_closed(start_node: StartNode) -> None:
    """Without a configured key the console refuses requests, and the answer names the setting."""
    node = await start_node()
    async with client(node.url, "") as http:
        answer = await http.get("/api/cluster")
    assert answer.status_code == 403
    assert "http_api.key is not configured" in answer.text


async def test_drain_and_undrain(pair: Pair, http: httpx.AsyncClient) -> None:
    """The node follows its desired state; the last ready node drains only with `force`."""
    assert (await http.post("/api/drain", json={"node": "node9"})).status_code == 404
    assert (await http.post("/api/drain", json={"node": "node2"})).status_code == 204
    await settled(lambda: pair[1].node.drain.wanted, "node2 heard it")
    await pair[1].node.registry.beat()
    assert await state(http, "node2") == "drained"
    refused = await http.post("/api/drain", json={"node": "node1"})
    assert refused.status_code == 409
    assert not pair[0].node.drain.wanted
    assert (await http.post("/api/drain", json={"node": "node1", "force": True})).status_code == 204
    await settled(lambda: pair[0].node.drain.wanted, "node1 heard it")
    await pair[0].node.registry.beat()
    assert "no node takes clients: all of them are drained" in (await look(http))["problems"]
    assert (await http.post("/api/undrain", json={"node": "node2"})).status_code == 204
    await settled(lambda: not pair[1].node.drain.wanted, "node2 serves")


async def test_an_operators_word_is_not_the_autoscalers(
    pair: Pair, http: httpx.AsyncClient, store: Any
) -> None:
    """An operator's request replaces the autoscaler's desired state."""
    await store.sadd(key_names.AUTOSCALE_DRAINED, "node2")
    await http.post("/api/drain", json={"node": "node2"})
    assert await store.smembers(key_names.AUTOSCALE_DRAINED) == set()


async def test_a_dead_node_is_down_at_once(start_node: StartNode, config: Path) -> None:
    """A dead node is down although its last report is still in the registry."""
    options: dict[str, Any] = {"config": config, "node_dead_after": 60.0}
    node, dead = await start_node(**options), await start_node(**options)
    await dead.crash()
    async with client(node.url, KEY) as http:

        async def down() -> bool:
            return await state(http, "node2") == "down"

        await settled(down, "it is down")
        assert "node2 is down" in (await look(http))["problems"]


async def test_hosts_and_balancers_of_the_fleet_file(
    start_node: StartNode, config: Path, tmp_path: Path, redis_server: str
) -> None:
    """A node that never started is down, and a balancer without an answer is a problem."""
    fleet = tmp_path / "hosts.json"
    fleet.write_text(
        json.dumps(
            {
                "redis_url": redis_server,
                "base_url": "http://127.0.0.1:1",
                "nodes": {"node1": "http://127.0.0.1:1", "node7": "http://127.0.0.1:1"},
                "loadbalancers": {"lb1": "http://127.0.0.1:1"},
            }
        )
    )
    node = await start_node(config=config, hosts=fleet)
    async with client(node.url, KEY) as http:
        assert await state(http, "node7") == "down"
        seen = await look(http)
    assert seen["balancers"][0]["name"] == "lb1"
    assert [problem.partition(":")[0] for problem in seen["problems"]] == ["node7 is down", "lb1"]


async def test_maintenance_needs_all_balancers(
    start_node: StartNode, config: Path, tmp_path: Path, redis_server: str
) -> None:
    """A node in `maint` at one of two balancers still serves; each check is shown."""
    said = {"lb1": "MAINT", "lb2": "UP"}

    async def statistics(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = said["lb1" if writer.get_extra_info("sockname")[1] == ports[0] else "lb2"]
        text = (
            "# pxname,svname,scur,status,lastchg,type,check_status,last_chk\n"
            "public,FRONTEND,12,OPEN,,0,,\n"
            f"nodes,node1,7,{status},62,2,L7OK,\n"
        )
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(statistics, "127.0.0.1", 0) for _ in said]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    fleet = tmp_path / "hosts.json"
    document = {
        "redis_url": redis_server,
        "base_url": "http://127.0.0.1:1",
        "nodes": {"node1": "http://127.0.0.1:1"},
        "loadbalancers": {
            name: f"http://127.0.0.1:{port}" for name, port in zip(said, ports, strict=True)
        },
    }
    fleet.write_text(json.dumps(document))
    node = await start_node(config=config, hosts=fleet)
    async with servers[0], servers[1], client(node.url, KEY) as http:
        assert await state(http, "node1") == "ready"
        said["lb2"] = "MAINT (via nodes/node2)"
        seen = await look(http)
    assert seen["nodes"][0]["state"] == "maint"
    assert seen["nodes"][0]["balancers"] == said
    assert [balancer["sessions"] for balancer in seen["balancers"]] == [12, 12]


async def test_an_unavailable_redis_is_shown(
    pair: Pair, http: httpx.AsyncClient, redis_process: Any
) -> None:
    """Without Redis the page gets an answer that says so."""
    redis_process.kill()
    await settled(lambda: not pair[0].node.store.connected, "it is noticed")
    seen = await look(http)
    assert seen["redis"]["servers"] == []
    assert seen["problems"] == ["Redis: this node has no connection to a primary"]


async def test_replicas_and_sentinels(
    sentinel: SentinelTopology, start_node: StartNode, config: Path
) -> None:
    """All servers are shown with roles; a dead replica and a dead Sentinel are problems."""
    node = await start_node(config=config, redis_url=sentinel.url)

    async with client(node.url, KEY) as http:
        redis = (await look(http))["redis"]
        roles = sorted(server["role"] for server in redis["servers"])
        assert roles == ["primary", "replica", "replica"]
        assert [each["up"] for each in redis["sentinels"]] == [True] * 3
        assert redis["problems"] == []
        lost = sentinel.replicas[0]
        lost.kill()
        sentinel.sentinels[0].kill()

        async def seen() -> bool:
            redis = (await look(http))["redis"]
            states = {server["address"]: server["state"] for server in redis["servers"]}
            up = [each["up"] for each in redis["sentinels"]]
            return states.get(f"127.0.0.1:{lost.port}") == "down" and up.count(False) == 1

        await settled(seen, "both are missing")


async def test_samples_for_the_charts_are_kept(pair: Pair, http: httpx.AsyncClient) -> None:
    """A message at one node and its delivery by the other are in the nodes' samples."""
    async with pair[0].connect() as sender, pair[1].connect() as listener:
        await sender.send("hello")
        await asyncio.wait_for(listener.recv(), TIMEOUT)

        async def sampled() -> bool:
            drawn = (await look(http))["series"]
            return any(drawn["received"]) and any(drawn["delivered"])

        await settled(sampled, "both are counted")
        drawn = (await look(http))["series"]
    assert drawn["connections"].keys() == {"node1", "node2"}
    assert any(drawn["publish_p99"])
    assert any(drawn["delivery_p99"])
    assert await pair[0].node.store.call("TTL", key_names.samples("node1")) > 0


def test_a_quantile_is_prometheus_s() -> None:
    """A quantile is interpolated in its bucket; above the last bound it is that bound."""
    assert quantile(0.99, [0] * BUCKETS) is None
    assert quantile(0.5, [0, 10] + [0] * (BUCKETS - 2)) == pytest.approx((0.001 + 0.0025) / 2)
    assert quantile(0.99, [100] + [0] * (BUCKETS - 1)) == pytest.approx(0.00099)
    assert quantile(0.99, [0] * (BUCKETS - 1) + [1]) == SECONDS[-1]


def test_series_add_up_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are sums, p99 is over all nodes, and a missing node's series has a gap."""
    now = 1_000_000 * STEP
    monkeypatch.setattr(time, "time", lambda: now + 1)
    quick, slow = [100] + [0] * (BUCKETS - 1), [0] * (BUCKETS - 2) + [100, 0]

    def sample(connections: int, delivery: list[int]) -> Sample:
        return Sample(5.0, connections, 10, 50, 100, [0] * BUCKETS, delivery)

    drawn = series(
        {
            "a": {999_999: sample(1, quick), 1_000_000: sample(2, quick)},
            "b": {1_000_000: sample(7, slow)},
        }
    )
    assert drawn["time"] == [now - STEP, now]
    assert drawn["connections"] == {"a": [1, 2], "b": [None, 7]}
    assert drawn["received"] == [10, 20]
    assert drawn["delivered"] == [20, 40]
    assert drawn["publish_p99"] == [None, None]
    assert drawn["delivery_p99"] == [0.99, pytest.approx(2470)]


async def test_samples_of_another_release_are_left_out(pair: Pair, store: Any) -> None:
    """Samples in an unknown format or with other buckets do not affect the rest."""
    step = round(time.time() / STEP) - 10
    for offset, text in enumerate(
        (
            '{"seconds": 5}',
            '{"seconds": 5, "connections": 1, "limit": 1, "received": 1, "delivered": 1, '
            '"publish": [1], "delivery": [1]}',
        )
    ):
        await store.xadd(key_names.samples("old"), {"sample": text}, id=f"{step + offset}-1")
    assert await samples.read(pair[0].node.store, ["old"]) == {"old": {}}


async def test_the_page_runs_nothing_but_its_own_files(pair: Pair) -> None:
    """The page and its files have a strict policy; `/console` redirects to the page."""
    async with httpx.AsyncClient(
        base_url=pair[0].url, trust_env=False, follow_redirects=True
    ) as http:
        page = await http.get("/console")
        script = await http.get("/console/vendor/centrifuge.js")
        missing = await http.get("/console/none.js")
    assert "text/html" in page.headers["content-type"]
    assert "text/javascript" in script.headers["content-type"]
    assert missing.status_code == 404
    for answer in (page, script):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text


def test_the_libraries_are_those_of_npm() -> None:
    """Each file is as scripts/vendor.py wrote it, and each library has its licence."""
    folder = STATIC / "vendor"
    packages = json.loads((folder / "vendor.json").read_text())
    listed = {name: file for package in packages for name, file in package["files"].items()}
    assert {path.name for path in folder.iterdir()} == {"vendor.json", *listed}
    for name, file in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file["sha256"], name
    for package in packages:
        assert package["integrity"].startswith("sha512-")
        assert package["license"] == "MIT"
        assert any(file["from"] == "LICENSE" for file in package["files"].values())
