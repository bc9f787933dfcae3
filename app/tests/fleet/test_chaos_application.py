"""The application of `scripts/chaos --application` on node processes behind HAProxy."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest
import yaml

from chaos.clients import Clients, find_effects, read_events
from chaos.disconnects import CHANNEL, SOURCE, account, read_connections
from lab.waiting import until
from tests.support.fleet import Rig, running_fleet

#: Acknowledged messages of the channel with handlers before the first node is killed.
MESSAGES = 100
NO_FAULTS = {"lost": 0, "duplicated": 0, "reordered": 0, "recovered_wrongly": 0}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return the file with the disconnects that the application handled, of all nodes."""
    return tmp_path / "disconnects.jsonl"


@pytest.fixture
def rig(processes: None, tmp_path: Path, records: Path) -> Iterator[Rig]:
    """Return a fleet with the application; its Redis has no replica for `durability`."""
    config = yaml.safe_load((SOURCE / "deploy.yml").read_text())["wsnode_config"]
    for namespace in config["channel"]["namespaces"]:
        assert namespace.pop("durability") == "replicated"
    file = tmp_path / "wsfleet.yml"
    file.write_text(yaml.safe_dump(config))
    with running_fleet(
        tmp_path,
        nodes=3,
        WSFLEET_APP="chaos_application:realtime",
        WSFLEET_APP_DIR=str(SOURCE),
        WSFLEET_CONFIG=str(file),
        CHAOS_DISCONNECTS=str(records),
        CHAOS_SLEEP="0.1",  # the rates are higher than in deploy.yml: the run is short
        CHAOS_BLOCK="0.05",
        CHAOS_RAISE="0.1",
    ) as running:
        yield running


def kill_the_busiest_node(rig: Rig) -> None:
    """Kill the node with the most clients, and start it again."""
    name = max(rig.nodes, key=rig.connections)
    rig.kill(name)
    rig.start(name)
    until(lambda: rig.ready(name) == 200, "the node is ready again")


def acknowledged(clients: Clients) -> int:
    """Return how many messages have been acknowledged so far."""
    return clients.events.read_bytes().count(b'"event":"acknowledged"')


def test_acknowledged_messages_survive_bad_handlers_and_dead_nodes(
    rig: Rig, records: Path, tmp_path: Path
) -> None:
    """Each is delivered once; others lose nothing; the end of each connection is told."""
    handled = Clients(rig.base_url, 10, CHANNEL, 5.0, tmp_path / "handled.jsonl", keyed=True)
    others = Clients(rig.base_url, 10, "replicated:chaos", 5.0, tmp_path / "others.jsonl")
    with ExitStack() as stack:
        for clients in (handled, others):
            stack.enter_context(clients)
        for clients in (handled, others):
            clients.wait_for_messages()
        until(lambda: acknowledged(handled) >= MESSAGES, "some handlers have failed")
        killed_at = time.time()
        for _ in range(2):
            kill_the_busiest_node(rig)
        verdicts = {clients: clients.finish() for clients in (handled, others)}
    logs = {clients: read_events(clients.events) for clients in verdicts}
    for clients, verdict in verdicts.items():
        assert verdict["ok"], verdict
        assert {name: verdict[name] for name in NO_FAULTS} == NO_FAULTS
        assert verdict["acknowledged"] > 0
        assert verdict["retried_copies"] == 0 or clients is others
    # A handler that raised or slept for too long was retried, and only in its own channel.
    assert any(error.startswith("100 ") for error in verdicts[handled]["errors"])
    effects = [effect for log in logs.values() for effect in find_effects(log)]
    dropped_at = [at for kind, at, _ in effects if kind == "dropped"]
    assert dropped_at
    assert min(dropped_at) >= killed_at  # bad handlers alone cost no connection
    connected = set().union(*map(read_connections, logs.values()))

    def told() -> bool:
        found = account(connected, map(orjson.loads, records.read_text().splitlines()))
        assert found.connections > 2 * (10 + 4)
        return not found.untold and found.of_dead_nodes > 0

    until(told, "the application was told of the end of each connection")
