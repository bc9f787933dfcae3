"""Commands, shapes and settings of the peers and their clients."""

from __future__ import annotations

import os
import re

import pytest
import yaml
from wsfleet.config.settings import Settings

from bench.catalog import HERE, PEERS
from bench.goals import GOALS
from bench.modes import MODES
from bench.rig import ROOT, Shape, fill


def test_names_in_braces_are_replaced() -> None:
    """Other braces stay: they are part of nginx's configuration."""
    assert fill("listen {port}; server { a {}; }", {"port": 80}) == "listen 80; server { a {}; }"


@pytest.mark.parametrize(
    ("name", "in_flight", "rooms", "publishers"),
    [
        ("ws", 1, 1, 1),
        ("ws", 16, 1, 16),
        ("ws", 16, 10, 20),
        ("nats", 16, 1, 1),
        ("nats", 16, 9, 9),
    ],
)
def test_there_is_a_publisher_for_each_message_in_flight(
    name: str, in_flight: int, rooms: int, publishers: int
) -> None:
    """A peer that pipelines has one publisher; rooms have equally many publishers."""
    assert Shape.of(PEERS[name], 2000, in_flight, rooms) == Shape(2000, publishers, rooms)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_complete(name: str) -> None:
    """Its files exist, and it publishes whole messages, to rooms if it has them."""
    peer = PEERS[name]
    files = [word for word in peer.command if word.startswith(f"{HERE}/peers/")]
    assert all((HERE / "peers" / file).is_file() for file in [*files, peer.config or "launch.py"])
    assert "%m" in peer.publish
    texts = [
        *peer.subscriber.arguments,
        *(peer.publisher or peer.subscriber).arguments,
        peer.publish,
    ]
    assert ("%r" in " ".join(texts)) == peer.rooms
    assert not re.search("%[^rmn]", " ".join(texts))


@pytest.mark.parametrize("name", ["wsfleet", "wsfleet-centrifuge"])
def test_the_node_has_the_settings_of_production(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are the role's, except those that docs/performance.md lists."""
    for variable in {variable for variable in os.environ if variable.startswith("WSFLEET_")}:
        monkeypatch.delenv(variable)
    deployed = Settings().model_dump(mode="json")
    role = yaml.safe_load((ROOT / "roles/wsnode/defaults/main.yml").read_text())
    deployed |= {key: role.get(f"wsnode_{key}", value) for key, value in deployed.items()}
    for variable, value in PEERS[name].environment.items():
        monkeypatch.setenv(variable, fill(value, {"port": 1, "redis": 2}))
    measured = Settings().model_dump(mode="json")
    others = {"port", "internal_port", "node_name", "redis_url", "trusted_proxies", "config"}
    others |= {"max_connections", "message_rate", "byte_rate", "drain_delay"}
    differ = {key for key, value in measured.items() if value != deployed[key]}
    assert differ <= others


def test_goals_name_modes_and_peers() -> None:
    """A full run measures the mode, size and peers of every goal."""
    for goal in GOALS:
        assert goal.size in MODES[goal.mode].sizes
        for name in {goal.peer, goal.other or goal.peer}:
            assert MODES[goal.mode].suits(PEERS[name])
