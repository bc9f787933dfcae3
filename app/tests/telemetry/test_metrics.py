"""The metrics of a node for Prometheus."""

from typing import Any

import pytest
from websockets.asyncio.client import connect

from lab.waiting import settled
from tests.support.metrics import reaches, value
from tests.support.nodes import StartNode
from wsfleet.broker.pubsub import Subscriber
from wsfleet.cluster import node_state
from wsfleet.redis import key_names
from wsfleet.telemetry.metrics import Metrics
from wsfleet.transports.frames import TEXT, frame


async def test_connections_are_counted_by_protocol(start_node: StartNode) -> None:
    """Both protocols are there before anybody comes, and a client counts until it has gone."""
    node = await start_node(max_connections=7)
    assert value(node, "max_connections") == 7
    assert value(node, "connections", protocol="plain") == 0
    assert value(node, "connections", protocol="centrifuge") == 0
    centrifuge = f"{node.url.replace('http', 'ws')}/connection/websocket"
    async with node.connect(), connect(centrifuge, proxy=None):
        await reaches(node, "connections", protocol="plain")
        await reaches(node, "connections", protocol="centrifuge")
    await settled(lambda: not node.node.hub, "they have gone")
    assert value(node, "connections", protocol="plain") == 0
    assert value(node, "connections", protocol="centrifuge") == 0


async def test_a_message_is_counted_on_its_way(start_node: StartNode) -> None:
    """Received and published here, delivered to the others by each node, and how old it was."""
    one, two = await start_node(), await start_node()
    async with one.connect() as sender, two.connect() as listener:
        await sender.send("hello")
        await listener.recv()
        await sender.recv()
    assert value(one, "messages_received_total") == 1
    assert value(one, "publish_seconds_count") == 1
    assert value(one, "deliveries_total") == 0
    assert value(two, "deliveries_total") == 1
    assert value(two, "delivery_seconds_count") == 1
    assert value(two, "delivery_seconds_sum") < 10
    await settled(lambda: not one.node.hub, "the sender has gone")
    assert value(one, "disconnects_total", code="1000") == 1


async def test_unsent_bytes_are_measured(start_node: StartNode) -> None:
    """The bytes that they have not taken are added up when they are asked for."""
    node = await start_node(outbox_limit=2**27)
    async with node.connect(), node.connect(max_size=None) as slow:
        await settled(lambda: len(node.node.hub) == 2, "both are in")
        assert value(node, "outbox_bytes") == 0
        _, connection = node.node.hub
        connection.send(frame(TEXT, b" " * 2**26))  # more than a socket takes at once
        assert value(node, "outbox_bytes") > 0
        await slow.recv()
        assert value(node, "outbox_bytes") == 0


def test_codes_that_clients_invent_share_a_label() -> None:
    """Ours and the standard's have one each, so the number of series has an end."""
    metrics = Metrics()
    for code in (1000, 3001, *range(4000, 4999)):
        metrics.disconnected(code)
    (family,) = [f for f in metrics.registry.collect() if f.name == "wsfleet_disconnects"]
    found = {s.labels["code"]: s.value for s in family.samples if s.name.endswith("_total")}
    assert found == {"1000": 1, "3001": 1, "other": 999}


async def test_the_node_measures_its_surroundings(start_node: StartNode) -> None:
    """Pub/sub, Redis and the event loop, without a client."""
    node = await start_node()
    for name in ("pubsub_probe", "redis", "event_loop_lag"):
        await reaches(node, f"{name}_seconds_count")
    assert value(node, "pubsub_subscribed") == value(node, "redis_connected") == 1


async def test_unheard_probes_are_counted(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pub/sub is stuck, and nothing else is."""
    node = await start_node()
    await reaches(node, "pubsub_probe_seconds_count")
    assert value(node, "pubsub_probes_failed_total") == 0
    monkeypatch.setattr(Subscriber, "_hear", lambda *_: None)
    await reaches(node, "pubsub_probes_failed_total")


async def test_desired_and_actual_states_differ(start_node: StartNode, store: Any) -> None:
    """A node that is drained is not ready because somebody wanted it so."""
    node = await start_node()
    assert value(node, "ready") == value(node, "state", state="serving") == 1
    assert value(node, "drain_wanted") == 0
    await store.hset(key_names.DESIRED, node.settings.name, node_state.DRAIN)
    await reaches(node, "state", state="drained")
    assert value(node, "drain_wanted") == 1
    assert value(node, "ready") == value(node, "state", state="serving") == 0
    await store.hset(key_names.DESIRED, node.settings.name, node_state.SERVE)
    await reaches(node, "ready")
    assert value(node, "drain_wanted") == 0


async def test_a_standby_is_wanted_drained(start_node: StartNode) -> None:
    """Nobody has to be told of a node of the warm pool."""
    node = await start_node(wait=False, standby=True)
    await settled(lambda: node.server.started, "it listens")
    assert value(node, "drain_wanted") == 1
