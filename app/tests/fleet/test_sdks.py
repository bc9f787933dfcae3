"""The SDKs for JavaScript and Python, unmodified, through HAProxy on two node processes."""

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
import redis
from websockets.asyncio.client import connect

from lab.waiting import TIMEOUT, settled, tasks_ended, until
from tests.support import sdk_scenarios
from tests.support.fleet import Rig, running_fleet, servers_up
from tests.support.paths import JAVASCRIPT
from tests.support.tokens import SECRET

KEY = "a key"
LIMIT = 60
"""Seconds that a scenario may take."""

CONFIG = f"""
http_api: {{key: "{KEY}"}}
client:
  token: {{hmac_secret_key: "{SECRET}"}}
  expired_close_delay: 1s
  expired_sub_close_delay: 1s
channel:
  without_namespace: &open
    presence: true
    join_leave: true
    force_push_join_leave: true
    history_size: 100
    history_ttl: 300s
    force_recovery: true
    allow_subscribe_for_client: true
    allow_publish_for_subscriber: true
    allow_presence_for_subscriber: true
    allow_history_for_subscriber: true
  namespaces:
    - {{<<: *open, name: brief, history_ttl: 1s}}
"""

Drive = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def fleet(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Return a fleet with a configuration."""
    folder = tmp_path_factory.mktemp("fleet")
    config = folder / "config.yml"
    config.write_text(CONFIG)
    with running_fleet(folder, WSFLEET_CONFIG=str(config)) as rig:
        yield rig


@pytest.fixture(scope="module")
def cluster(fleet: Rig) -> sdk_scenarios.Cluster:
    """Return the fleet's URL, node and secrets for clients."""
    return sdk_scenarios.Cluster(fleet.base_url, fleet.nodes["host1-8001"], KEY, SECRET)


async def javascript(
    cluster: sdk_scenarios.Cluster, scenario: str, channel: str, step: sdk_scenarios.Step
) -> Any:
    """Run a scenario of js/sdk.mjs."""
    process = await asyncio.create_subprocess_exec(
        *("node", "sdk.mjs", scenario, channel, *cluster),
        cwd=JAVASCRIPT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async for line in process.stdout:
            message = json.loads(line)
            if "seen" in message:
                return message["seen"]
            await step(*message["step"])
        pytest.fail((await process.stderr.read()).decode())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def python(
    cluster: sdk_scenarios.Cluster, scenario: str, channel: str, step: sdk_scenarios.Step
) -> Any:
    """Run a scenario of sdk_scenarios.py."""
    seen = await sdk_scenarios.SCENARIOS[scenario](cluster, channel, step)
    await tasks_ended()
    return seen


@pytest.fixture(params=[javascript, python], ids=lambda language: language.__name__)
def drive(request: pytest.FixtureRequest, cluster: sdk_scenarios.Cluster) -> Drive:
    """Run a scenario with an SDK, in a channel of its own."""
    language = request.param
    if language is javascript:
        request.getfixturevalue("modules")

    async def run(scenario: str, step: sdk_scenarios.Step = _no_step) -> Any:
        async with asyncio.timeout(LIMIT):
            return await language(cluster, scenario, f"{scenario}-{language.__name__}", step)

    return run


async def _no_step(*step: str) -> None:
    raise AssertionError(f"the scenario asks for {step}, which the test does not know")


def _node_of(fleet: Rig, client_id: str) -> str:
    with redis.Redis.from_url(fleet.redis_url, decode_responses=True) as client:
        return str(client.get(f"connection:{client_id}"))


async def test_all_features(drive: Drive) -> None:
    """Publish, presence, joins, paged history, errors and the server API work."""
    seen = await drive("features")
    assert seen["publications"] == [
        *([n + 1, {"n": n}, "bob"] for n in range(5)),
        [6, "again", None],
    ]
    assert seen["present"] == ["ann", "bob"]
    assert seen["stats"] == [2, 2]
    assert seen["joins"][:2] == ["ann", "bob"]
    assert seen["leaves"] == ["bob"]
    assert seen["offset"] == 5
    assert seen["pages"] == [[0, 1], [2, 3], [4, 3], [2, 1]]
    assert seen["errors"] == {"rpc": 108, "unknown": 102}
    assert seen["ended"] == [2000]
    assert seen["server"] == [
        ["subscribed", "offers"],
        ["publication", "offers", "cheap"],
        ["unsubscribed", "offers"],
    ]
    assert seen["disconnected"] == [3503]


async def test_tokens_are_refreshed(drive: Drive) -> None:
    """Connection and subscription survive the expiry of their short tokens."""
    seen = await drive("refresh")
    assert seen == {"connections": 1, "subscriptions": 1, "publications": ["still here"]}


async def test_a_killed_node_goes_unnoticed(
    drive: Drive, fleet: Rig, cluster: sdk_scenarios.Cluster
) -> None:
    """Missed messages come once, in order, from the other node, with the same token."""

    async def step(kind: str, client_id: str, channel: str) -> None:
        assert kind == "kill"
        node = _node_of(fleet, client_id)
        fleet.kill(node)
        (left,) = (
            cluster._replace(api_url=url) for name, url in fleet.nodes.items() if name != node
        )
        for n in range(5, 10):
            await left.api("publish", channel=channel, data=n)
        fleet.start(node)

    seen = await drive("killed", step)
    assert seen["publications"] == list(range(11))
    assert seen["subscribed"] == [[False, False], [True, True]]
    assert seen["tokens"] == 1
    assert seen["present"] == ["ann"]
    for url in fleet.nodes.values():
        until(partial(_ready, url), "both nodes are back")
    until(lambda: servers_up(fleet) == len(fleet.nodes), "HAProxy has found it")


def _ready(url: str) -> bool:
    return httpx.get(f"{url}/ready", trust_env=False).status_code == 200


async def test_plain_and_sdk_clients_on_different_nodes_hear_each_other(
    fleet: Rig, cluster: sdk_scenarios.Cluster
) -> None:
    """`broadcast` is one channel for all protocols and nodes."""
    connection, channel = sdk_scenarios.Connection(), sdk_scenarios.Channel()
    client = cluster.client(token=cluster.token(sub="ann"), events=connection)
    subscription = client.new_subscription("broadcast", events=channel)
    await subscription.subscribe()
    await client.connect()
    await subscription.ready(5)
    (other,) = fleet.nodes.keys() - {_node_of(fleet, connection.connected[0])}
    url = f"{cluster.url.replace('http', 'ws')}/ws?token={cluster.token(sub='bob')}"
    async with connect(url, additional_headers={"Cookie": f"WSNODE={other}"}, proxy=None) as plain:
        await plain.send('{"hello": "sdk"}')
        ack = json.loads(await plain.recv())
        assert (ack["type"], ack["hostname"]) == ("ack", other)
        await settled(lambda: channel.data == [{"hello": "sdk"}], "the SDK heard")
        await subscription.publish({"hello": "plain"})
        message = json.loads(await asyncio.wait_for(plain.recv(), TIMEOUT))
        assert (message["type"], message["data"]) == ("message", {"hello": "plain"})
    await client.disconnect()
    await tasks_ended()


async def test_a_failed_recovery_is_reported(drive: Drive, fleet: Rig) -> None:
    """After the history window, or in another epoch, recovery fails with `recovered: false`.

    This test must be the last one, since it deletes the other tests' channels.
    """

    async def step(kind: str) -> None:
        assert kind == "wipe"
        with redis.Redis.from_url(fleet.redis_url) as client:
            client.flushall()

    told = {"subscribed": [[False, False], [True, False]], "publications": ["heard", "live"]}
    assert await drive("away", step) == {"expired": told, "wiped": told}
